"""A scikit-learn classifier with a certificate.

>>> from sklearn.datasets import load_digits
>>> digits = load_digits()
>>> classifier = DPClassifier(epsilon=3.0, random_state=0).fit(digits.data[:1437], digits.target[:1437])
>>> classifier.score(digits.data[1437:], digits.target[1437:]) > 0.7
True
>>> classifier.privacy_certificate_["epsilon"] <= 3.0
True
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from scatterdp.estimators import inputs

if TYPE_CHECKING:
    from scatterdp.estimators.fitting import Images
    from scatterdp.heads import Head
    from scatterdp.linear import Budget, HeadName, Matrix
    from scatterdp.privacy.accounting import Accountant
    from scatterdp.privacy.ledger import LedgerEntry
    from scatterdp.training.distributed import Processes


class DPClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier with (ε, δ)-differential privacy: one example more or less in ``X, y`` hardly changes what is learnt.

    Rows are brought to length one, so their scale is of no account, but what separates classes by length alone is lost.

    Args:
        epsilon, delta: the budget of one :meth:`fit`; every further fit on the same people spends as much again.
        features: None: X holds features ``(N, D)``. Else the specification of a fixed extractor, such as ``"scatternet"``
            (:mod:`scatterdp.extractors.specification`), and X holds images ``(N, H, W)`` or ``(N, H, W, 3)``, uint8.
        head: how to fit, one of :data:`scatterdp.linear.HEADS`; ``"auto"`` chooses by public numbers.
        accountant: which ε counts, one of :data:`scatterdp.privacy.accounting.ACCOUNTANTS`.
        classes: all labels that there may be, public. None: those that occur in ``y``; this set is then treated as public.
        centre: release the features' mean first and take it away; None: when it is worth its share.
        random_state: None: noise from the operating system. An integer or a numpy ``RandomState``: reproducible noise; the guarantee then
            holds only against those who do not know it.

    Attributes:
        classes_: ``(C,)`` labels, sorted.
        n_features_in_: D, or the number of values of an image.
        privacy_certificate_: what is guaranteed, JSON values; see :mod:`scatterdp.privacy.certificate`.
        head_: torch module, features as they came → logits.
    """

    if TYPE_CHECKING:
        accountant: Accountant
        head: HeadName
        classes_: np.ndarray
        feature_names_in_: np.ndarray
        n_features_in_: int
        privacy_certificate_: dict[str, Any]
        head_: Head
        images_: Images | None
        _spent: list[dict[str, Any]]  # what all fits of the object released

    def __init__(
        self,
        epsilon: float = 3.0,
        delta: float = 1e-5,
        features: str | None = None,
        head: HeadName = "auto",
        *,
        accountant: Accountant = "pld",
        classes: Any = None,
        centre: bool | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.features = features
        self.head = head
        self.accountant = accountant
        self.classes = classes
        self.centre = centre
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit with fresh noise; spends the budget. A second fit of the object warns, and says what all of its fits cost together.

        Args:
            X: ``(N, D)`` numbers or images, see ``features``: any array that can be sliced by rows (NumPy, a memory map, an HDF5
                data set), which is read in blocks.
            y: ``(N,)`` labels.

        Raises:
            ValueError: X or y are not what they should be.
            ConfigError: a parameter is out of range.
            BudgetError: the budget cannot be met.
        """
        return self.fit_together(X, y)

    def fit_together(self, X: Any, y: Any, processes: Processes | None = None) -> Self:
        """:meth:`fit` by several processes, each of which calls it with the same X and y."""
        from scatterdp.estimators.certificates import count_fit
        from scatterdp.estimators.fitting import fit_classifier
        from scatterdp.training.distributed import ONE

        rows = self._checked(X, reset=True)
        labels = inputs.check_labels(rows, y)
        classes, numbers = inputs.class_numbers(labels, self.classes)
        self.head_, self.images_, self.privacy_certificate_ = fit_classifier(
            rows,
            numbers,
            classes=classes,
            classes_from_labels=self.classes is None,
            features=self.features,
            budget=self._budget(),
            head=self.head,
            centre=self.centre,
            key=inputs.random_key(self.random_state),
            processes=processes or ONE,
        )
        self.classes_ = classes
        count_fit(self, self.privacy_certificate_)
        return self

    def planned_ledger(self, num_examples: int, input_shape: tuple[int, ...], num_classes: int) -> list[LedgerEntry]:
        """What :meth:`fit` will release, known before it sees data.

        Args:
            num_examples: N.
            input_shape: ``(D,)``, or that of an image, ``(H, W)`` or ``(H, W, 3)``.
            num_classes: C.
        """
        from scatterdp.estimators.fitting import planned_event
        from scatterdp.privacy.ledger import LedgerEntry

        event = planned_event(
            num_examples,
            input_shape,
            num_classes,
            features=self.features,
            budget=self._budget(),
            head=self.head,
            centre=self.centre,
        )
        return [LedgerEntry("linear classifier", event)]

    def predict(self, X: Any) -> np.ndarray:
        """``(N,)`` labels."""
        best = self._scores(X).argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """``(N, C)`` float64 probabilities, in the order of ``classes_``."""
        scores = self._scores(X)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    def save(self, path: str | Path) -> None:
        """Write the fitted classifier as safetensors: no pickle, nothing of the data, not the ``random_state``."""
        from scatterdp.estimators.storage import save_classifier

        check_is_fitted(self)
        save_classifier(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The classifier that :meth:`save` wrote.

        Raises:
            UserError: the file is none of these.
        """
        from scatterdp.estimators.storage import load_classifier

        return load_classifier(cls, Path(path))

    def _budget(self) -> Budget:
        from scatterdp.linear import Budget

        return Budget(epsilon=self.epsilon, delta=self.delta, accountant=self.accountant)

    def _scores(self, X: Any) -> np.ndarray:
        """``(N, C)`` float64 logits, computed in blocks."""
        from scatterdp.estimators.fitting import logits

        check_is_fitted(self)
        rows = self._checked(X, reset=False)
        return np.concatenate([logits(self.head_, self.images_, block).numpy() for block in inputs.blocks_of(rows)])

    def _checked(self, X: Any, *, reset: bool) -> Matrix:
        if self.features is None:
            return inputs.check_rows(self, X, reset=reset)
        return inputs.check_images(
            self, X, reset=reset, shape=None if reset or not self.images_ else self.images_.shape
        )
