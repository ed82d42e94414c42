"""What estimators' certificates have in common, and certificates of several fits together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import dp_accounting

from scatterdp.errors import UserError
from scatterdp.linear import Budget, Matrix
from scatterdp.linear.method import every_row
from scatterdp.privacy.accounting import ADJACENCY, Accountant
from scatterdp.privacy.certificate import make_certificate, rounded_up
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import Origin, RandomKey
from scatterdp.privacy.sampling import ShuffledBatches, common_adjacency
from scatterdp.training.distributed import LIMITS, describe

NAME = "the arrays given to fit"

#: Where examples are told apart by position, one that is added or removed would move all after it.
BY_POSITION_ADJACENCY = ShuffledBatches.adjacency
REFITS = (
    "Every further fit on the same people is a fresh spend, and cross-validation fits many times: scatterdp.estimators.tuning_certificate "
    "says what a search cost, composed_certificate what the steps of a pipeline cost together."
)


def estimator_certificate(
    ledger: Ledger,
    X: Matrix,
    *,
    budget: Budget,
    key: RandomKey,
    sampler: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    features: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    not_private: Sequence[str] = (),
    more_limits: Sequence[str] = (),
    processes: int = 1,
) -> dict[str, Any]:
    """The certificate of one fit.

    Args:
        ledger: what was released.
        X: the rows or images that were given, of which shape and type are public.
        budget: δ and accountant of the claim.
        key: the fit's.
        sampler: None: every row is read, none is drawn.
        classes, image_shape: public facts, where there are any.
        features: how X became features; None: it was features.
        model: how the model was made.
        not_private, more_limits: see :func:`scatterdp.privacy.certificate.make_certificate`.
        processes: how many of them made the fit together.
    """
    sampler = sampler or every_row(X.shape[0])
    data: dict[str, Any] = {"name": NAME, "num_train": X.shape[0]}
    if image_shape is not None:
        data["image_shape"] = list(image_shape)
    if classes is not None:
        data["classes"] = list(classes)
    return make_certificate(
        ledger,
        delta=budget.delta,
        accountant=budget.accountant,
        adjacency=sampler["adjacency"],
        sampler=sampler,
        key=key,
        data=data,
        features=features
        or {"extractor": "given", "shape": [int(n) for n in X.shape[1:]], "dtype": str(getattr(X, "dtype", ""))},
        not_private=list(not_private),
        model=model,
        computation=None if processes == 1 else describe([(0, processes)], sampler=sampler["kind"]),
        more_limits=[*more_limits, REFITS, *(LIMITS if processes > 1 else ())],
    )


def compose(
    parts: Sequence[tuple[str, dict[str, Any]]],
    more: Sequence[LedgerEntry] = (),
    *,
    delta: float | None = None,
    accountant: Accountant | None = None,
    model: dict[str, Any] | None = None,
    more_limits: Sequence[str] = (),
    more_origins: Sequence[Origin] = (),
    adjacency: str = ADJACENCY,
    assumptions: Sequence[str] = (),
) -> dict[str, Any]:
    """One certificate of several fits on the same examples: ε of their ledgers together, not the sum of their ε.

    Args:
        parts: name and certificate of each fit.
        more: what else was released.
        delta: of the claim; None: the largest of the parts'.
        accountant: None: the first part's.
        model: see :func:`scatterdp.privacy.certificate.make_certificate`.
        more_limits: sentences beside those of the parts.
        more_origins: where the noise of ``more`` comes from.
        adjacency: of the whole; a part's that is another than the usual one is that of the whole, too.
        assumptions: see :func:`scatterdp.privacy.certificate.make_certificate`.

    Raises:
        UserError: no part, or parts on different numbers of examples.
    """
    certificates = [certificate for _, certificate in parts]
    if not certificates:
        raise UserError("certificate: no step is differentially private; there is nothing to certify")
    sizes = sorted({certificate["data"]["num_train"] for certificate in certificates})
    if len(sizes) > 1:
        raise UserError(f"certificate: the parts were fitted on {sizes} examples; compose fits on the same ones")
    entries = [
        LedgerEntry(f"{name}: {entry.name}", entry.event, entry.details)
        for name, certificate in parts
        for entry in Ledger.from_json(certificate["ledger"]).entries
    ]
    first, last = certificates[0], certificates[-1]
    adjacency = common_adjacency([adjacency, *(certificate["adjacency"] for certificate in certificates)])
    return make_certificate(
        Ledger([*entries, *more]),
        delta=max(certificate["delta"] for certificate in certificates) if delta is None else delta,
        accountant=accountant or first["accountant"],
        adjacency=adjacency,
        sampler={"kind": "composed", "num_examples": sizes[0], "adjacency": adjacency},
        key=_weakest([*more_origins, *(certificate["noise_source"]["origin"] for certificate in certificates)]),
        data=first["data"] | last["data"],
        features=first["features"],
        not_private=list(dict.fromkeys(name for c in certificates for name in c["not_private"])),
        model=model,
        more_limits=list(dict.fromkeys([*more_limits, REFITS])),
        assumptions=list(
            dict.fromkeys([*assumptions, *(word for c in certificates for word in c.get("assumptions", []))])
        ),
    )


def count_fit(estimator: Any, certificate: dict[str, Any]) -> None:
    """Remember a fit's releases in the estimator, and warn when it is not its first: with what all of them cost together."""
    again = hasattr(estimator, "_spent")
    estimator._spent = [*getattr(estimator, "_spent", []), *certificate["ledger"]]
    if not again:
        return
    delta, accountant = certificate["delta"], certificate["accountant"]
    epsilon = Ledger.from_json(estimator._spent).epsilon(delta=delta, accountant=accountant)
    warnings.warn(
        f"{type(estimator).__name__}.fit: a further fit is a fresh spend; on the same people, the fits of this object so far are together "
        f"(ε = {rounded_up(epsilon)}, δ = {delta!r})-private",
        stacklevel=3,
    )


def without_privacy(name: str) -> LedgerEntry:
    """The entry of something that was computed from private data without noise."""
    return LedgerEntry(name, dp_accounting.NonPrivateDpEvent())


def _weakest(origins: Sequence[Origin]) -> Origin:
    """The origin that promises least."""
    return next(origin for origin in ("seed", "caller", "system") if origin in origins)
