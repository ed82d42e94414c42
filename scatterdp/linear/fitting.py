"""A private linear classifier of a user's features, from arrays to weights with their ledger."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import dp_accounting
import numpy as np
import torch
from torch import nn

from scatterdp.errors import UserError
from scatterdp.heads import Head
from scatterdp.linear.choice import CENTRE_SHARE, Budget, HeadName, make_method, worth_centring
from scatterdp.linear.method import Method, Problem, store
from scatterdp.linear.sphere import UnitSphere, release_centre
from scatterdp.privacy.calibration import calibrate_noise_multiplier, check_target
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import DRAWS
from scatterdp.training.distributed import ONE, Processes, check_same, part_of
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH, FeatureRows

_BLOCK = 4096
_PIECE = 2**21  # numbers of a physical batch: of short rows many, or calls cost more than arithmetic


class Matrix(Protocol):
    """Rows that can be sliced: a NumPy array, a memory map, an HDF5 data set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """A private classifier and its ledger.

    Args:
        head: ``(B, …) -> (B, C)`` logits of features as they came.
        ledger: everything that was released.
        sampler: what the certificate says of batches.
        method: its name.
        settings: what it was made with, JSON values.
    """

    head: Head
    ledger: Ledger
    sampler: dict[str, Any]
    method: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """What a fit will release, before it touches data: a function of public numbers.

    Args:
        method: with its settings.
        centre_noise_multiplier: σ of the features' mean; None when it is not released.
        noise_multiplier: σ that the method is given.
    """

    method: Method
    centre_noise_multiplier: float | None
    noise_multiplier: float

    @property
    def centre_event(self) -> dp_accounting.DpEvent:
        """Of the features' mean."""
        return _centre_event(self.centre_noise_multiplier)

    @property
    def event(self) -> dp_accounting.DpEvent:
        """Of everything."""
        return dp_accounting.ComposedDpEvent([self.centre_event, self.method.event(self.noise_multiplier)])


def plan_linear(
    problem: Problem,
    *,
    budget: Budget,
    head: HeadName = "auto",
    centre: bool | None = None,
    channels: int | None = None,
) -> LinearPlan:
    """Choose a method and solve for its noise; the arguments are those of :func:`fit_linear`.

    Raises:
        ConfigError: a value out of range.
        BudgetError: the budget cannot be met.
    """
    check_target(budget.epsilon, budget.delta, name="epsilon")
    method = make_method(head, problem, budget, channels=channels)
    centred = worth_centring(problem, budget) if centre is None else centre
    centre_noise_multiplier = budget.one_release(CENTRE_SHARE) if centred else None
    sigma = calibrate_noise_multiplier(
        method.event,
        target_epsilon=budget.epsilon,
        target_delta=budget.delta,
        accountant=budget.accountant,
        prior=_centre_event(centre_noise_multiplier),
    )
    return LinearPlan(method=method, centre_noise_multiplier=centre_noise_multiplier, noise_multiplier=sigma)


def fit_linear(
    x: Matrix,
    y: np.ndarray,
    *,
    num_classes: int,
    budget: Budget,
    key: RandomKey,
    head: HeadName = "auto",
    centre: bool | None = None,
    channels: int | None = None,
    processes: Processes = ONE,
) -> LinearFit:
    """Fit a linear classifier with differential privacy.

    Every row is brought to length one (:mod:`scatterdp.linear.sphere`), the method and its settings are chosen from public numbers, the noise is solved for so that
    centre and method together stay within the budget, and one pass or many are made over the rows, which are held in memory
    in the precision in which they came (float64 becomes float32).

    Several processes (:mod:`scatterdp.training.distributed`) call this together, each with all of ``x`` and ``y``: each reads and holds its part
    of the rows. Whatever is released is a sum over all of them, with one draw of noise, and the fit is the same on all.

    Args:
        x: ``(N, …)`` private features, finite.
        y: ``(N,)`` class numbers 0 … C - 1.
        num_classes: C ≥ 2, public.
        budget: what may be spent.
        key: random key; it is bound to everything that decides the fit, the data included.
        head: the method, ``"auto"`` for the documented rule.
        centre: release the features' mean and take it away; None: the documented rule.
        channels: the rows are maps of so many channels; a covariance is then one of channels.
        processes: which fit together.

    Raises:
        ConfigError: a value out of range.
        BudgetError: the budget cannot be met.
        UserError: features that are not finite, class numbers out of range.
    """
    problem = Problem(num_examples=x.shape[0], num_features=int(np.prod(x.shape[1:])), num_classes=num_classes)
    given = repr((problem, head, budget, centre, channels))
    check_same(processes, given, "the processes have different rows or settings; give all the same")
    plan = None
    if processes.rank == 0:
        plan = plan_linear(problem, budget=budget, head=head, centre=centre, channels=channels)
    plan, key = processes.share((plan, key))
    if len(y) and not (np.min(y) >= 0 and np.max(y) < num_classes):
        raise UserError(f"y: class numbers from {np.min(y)} to {np.max(y)}, expected 0 to {num_classes - 1}")
    first, stop = part_of(problem.num_examples, processes.rank, processes.size)
    rows, digest = unit_rows(x, y, first, stop)
    if processes.size > 1:  # each has digested its own part
        digest = repr(processes.gather(digest))
    key = key.bound_to(repr((digest, plan.method, budget, centre, DRAWS)))
    entries: list[LedgerEntry] = []
    mean = None
    if plan.centre_noise_multiplier is not None:
        mean, entry = release_centre(
            rows, problem, noise_multiplier=plan.centre_noise_multiplier, key=key, processes=processes
        )
        entries.append(entry)
    sphere = UnitSphere(problem.num_features, mean)
    if mean is not None:
        rows = _centred(rows, sphere)
    solution = plan.method.solve(rows, noise_multiplier=plan.noise_multiplier, key=key, processes=processes)
    solution = processes.share(solution)
    classifier = nn.Linear(problem.num_features, num_classes)
    classifier.load_state_dict({"weight": solution.weight.cpu(), "bias": solution.bias.cpu()})
    return LinearFit(
        head=Head(sphere, classifier).eval(),
        ledger=Ledger([*entries, *solution.entries]),
        sampler=solution.sampler,
        method=plan.method.name,
        settings={"head": head, "centre": mean is not None, "noise_multiplier": plan.noise_multiplier},
    )


def _centre_event(noise_multiplier: float | None) -> dp_accounting.DpEvent:
    return dp_accounting.NoOpDpEvent() if noise_multiplier is None else dp_accounting.GaussianDpEvent(noise_multiplier)


def unit_rows(x: Matrix, y: np.ndarray, first: int = 0, stop: int | None = None) -> tuple[FeatureRows, str]:
    """Unit rows in memory, in the precision of ``x`` (single at most), and a digest of rows and all labels for the key alone.

    Args:
        x: all rows.
        y: all labels.
        first, stop: only the rows from ``first`` to before ``stop`` (None: to the last).
    """
    stop = x.shape[0] if stop is None else stop
    count, size = stop - first, int(np.prod(x.shape[1:]))
    half = getattr(x, "dtype", None) == np.float16
    stored = torch.empty(count, size, dtype=torch.float16 if half else torch.float32)
    squares = torch.empty(count)
    sphere, digest = UnitSphere(size), hashlib.sha256(np.ascontiguousarray(y, "<i8").tobytes())
    for start in range(0, count, _BLOCK):
        block = np.ascontiguousarray(x[first + start : first + min(start + _BLOCK, count)])
        digest.update(block.tobytes())
        values = torch.from_numpy(np.require(block, np.float32, "W")).flatten(1)
        finite = values.isfinite().all(1)
        if not finite.all():
            raise UserError(
                f"X: row {first + start + int((~finite).nonzero()[0])} has NaN or infinite values; remove the example or repair it"
            )
        store(stored, squares, start, sphere(values))
    labels = torch.from_numpy(np.ascontiguousarray(y[first:stop], np.int64))
    return FeatureRows(stored, labels, squares, max(DEFAULT_PHYSICAL_BATCH, _PIECE // size)), digest.hexdigest()


def _centred(rows: FeatureRows, sphere: UnitSphere) -> FeatureRows:
    """The same memory, its rows less the mean and of length one again."""
    for start in range(0, len(rows.y), _BLOCK):
        store(rows.x, rows.squared_norms, start, sphere(rows.x[start : start + _BLOCK]))
    return rows
