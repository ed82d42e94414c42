"""One certificate for a pipeline of private steps."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Binarizer, FunctionTransformer, Normalizer
from sklearn.utils.validation import check_is_fitted

from scatterdp.privacy.accounting import Accountant

Part = tuple[str, dict[str, Any]]

#: Transformers whose output for a row is a function of that row alone.
ROW_BY_ROW = (Binarizer, Normalizer)


def composed_certificate(
    pipeline: Any, *, delta: float | None = None, accountant: Accountant | None = None
) -> dict[str, Any]:
    """What a fitted pipeline guarantees: ε of all its steps' releases together, by the accountant, not the sum of the steps' ε.

    A step that learns from the data without noise (``PCA``, ``StandardScaler``, …) makes the whole not private, and the ledger names it. Steps
    known to take each row by itself (``Normalizer``, ``Binarizer``, ``FunctionTransformer()`` without a function, ``"passthrough"``) cost nothing;
    any other is taken to learn, also a ``FunctionTransformer`` of a function, which may read all rows at once.

    Args:
        pipeline: a fitted :class:`sklearn.pipeline.Pipeline`, or a single estimator.
        delta: of the claim; None: the largest of the steps'.
        accountant: which ε counts; None: the first private step's.

    Raises:
        UserError: no step is private.
        sklearn.exceptions.NotFittedError: the pipeline is not fitted.
    """
    from scatterdp.estimators.certificates import compose, without_privacy

    check_is_fitted(pipeline)
    parts, exposed = parts_of(pipeline, type(pipeline).__name__)
    if not exposed and len(parts) == 1 and delta is None and accountant is None:
        return parts[0][1]
    return compose(
        parts,
        [without_privacy(f"{name}, fitted without privacy") for name in exposed],
        delta=delta,
        accountant=accountant,
        model={"name": "pipeline", "steps": [name for name, _ in steps_of(pipeline)]},
    )


def parts_of(estimator: Any, name: str) -> tuple[list[Part], list[str]]:
    """The certificates in it, by step name, and the names of steps that learn without privacy."""
    leaves = leaves_of(estimator, name)
    parts = [(leaf, step.privacy_certificate_) for leaf, step in leaves if hasattr(step, "privacy_certificate_")]
    return parts, [leaf for leaf, step in leaves if not (hasattr(step, "privacy_certificate_") or learns_nothing(step))]


def leaves_of(estimator: Any, name: str) -> list[tuple[str, Any]]:
    """The steps of a pipeline and of the pipelines in it, ``outer: inner``; of something else, itself by this name."""
    if not isinstance(estimator, Pipeline):
        return [(name, estimator)]
    return [
        (f"{step}: {leaf}" if isinstance(part, Pipeline) else leaf, inside)
        for step, part in estimator.steps
        for leaf, inside in leaves_of(part, step)
    ]


def steps_of(estimator: Any) -> list[tuple[str, Any]]:
    """A pipeline's steps; of something else, itself."""
    return estimator.steps if isinstance(estimator, Pipeline) else [(type(estimator).__name__, estimator)]


def learns_nothing(step: Any) -> bool:
    """Whether it is known to turn each row into another by itself: needing no ``fit`` is not enough, for ``transform`` sees all rows."""
    if isinstance(step, str) or step is None:
        return step in (None, "passthrough")
    if type(step) is FunctionTransformer:
        return step.func is None
    return type(step) in ROW_BY_ROW


def fresh(estimator: Any) -> Any:
    """The same parameters, not fitted."""
    return clone(estimator)
