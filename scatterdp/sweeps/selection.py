r"""What a sweep cost the people in the data, and what choosing its best run costs.

**All runs.** Each run is a release. Whatever is published of k runs – all results, some, one that is chosen by looking at the results – is a function of all of
them, so the composition of their k ledgers covers it. Choosing by accuracy on *public* test data adds nothing: that score is computed from released weights. Choosing
by accuracy on held-out *private* examples needs noise, and the noise an entry in each run's ledger; an exact score leaves the choice without a guarantee.
A fixed number of runs gets no better bound here: the best of k may indeed cost that much (Papernot & Steinke 2021, arXiv 2110.03620, section 4).

**The best of a random number.** Let Q be one trial: draw a candidate from the outline, uniformly and independently of everything; run it with fresh noise; put out its
model and its score. Draw K from the truncated negative binomial distribution :math:`\mathcal D_{\eta,\gamma}`; run Q K times; publish the output with the best score and
nothing else. Theorem 2 of the paper bounds that by one trial's Rényi divergences (:mod:`scatterdp.privacy.tuning`). It assumes, and here is how each is met:

1. *Trials are independent and alike.* Candidates are drawn with replacement by a key from the operating system, noise comes fresh from the system (outlines with seeds are
   refused), and no trial is changed by another's result.
2. *One bound for every trial.* Which candidate was drawn is independent of the data, so a trial's divergence at each order is at most the largest of the candidates' at
   that order. The bound takes all candidates of the outline, drawn or not.
3. *The score is part of the output.* It is computed from the trial's weights and public test data, or is the noisy validation accuracy of the trial's ledger. Which
   candidate was drawn may be published with the best; ties go to the earlier run, which says nothing about the data.
4. *A failed trial is an output*, with the lowest score. A candidate whose budget cannot be met fails by public numbers alone. That no run fails *because of* one
   example's data (memory, numerics) is taken for granted, as for any single run.
5. *K is drawn independently of the data and stays secret.* The bound holds against someone who sees the published best only. Whoever sees the sweep's folder, its
   progress or how long it took learns K or all results; against them only the composition counts.
6. *All K trials are run.* A sweep that is stopped early, or whose best is taken before it has finished, has no such bound. One that was killed goes on with the same trials and noise.
   One that has finished tries nothing again: there is one best.

Both figures hold for the neighbouring data sets that all combinations of the outline hold for, and are computed at the largest δ of the runs.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting import rdp

from scatterdp.privacy.accounting import Accountant, epsilon_of
from scatterdp.privacy.certificate import rounded_up
from scatterdp.privacy.ledger import finite_or_none
from scatterdp.privacy.renyi import divergences_of, tight_epsilon
from scatterdp.privacy.sampling import common_adjacency
from scatterdp.privacy.tuning import NumberOfTrials
from scatterdp.training.plan import TrainingPlan

_ORDERS = tuple(rdp.RdpAccountant().orders.tolist())
_FEW = 12  # different events, and an ε, up to which privacy loss distributions take seconds
_SMALL = 40.0
_DISCRETIZATION = 1e-3

SHAPE = 1.0
"""η of the number of trials: 1, the geometric distribution."""


def composed(plans: Sequence[TrainingPlan]) -> tuple[float, Accountant]:
    """ε of all these runs together at their largest δ, and which accountant bounds it. ``inf`` where one has no noise.

    Privacy loss distributions where that takes seconds, else Rényi divergences; both are upper bounds.
    """
    if not plans:
        return 0.0, "pld"
    delta = max(plan.delta for plan in plans)
    if len(plans) == 1:
        return _epsilon_of(plans[0].cost_only), plans[0].accountant
    equal = Counter(plan.cost_only for plan in plans)
    event = dp_accounting.ComposedDpEvent(
        [dp_accounting.SelfComposedDpEvent(plan.event(), count) for plan, count in equal.items()]
    )
    bound = epsilon_of(event, delta=delta, accountant="rdp")
    if len(equal) > _FEW or not bound <= _SMALL:
        return bound, "rdp"
    return min(bound, epsilon_of(event, delta=delta, discretization=_DISCRETIZATION)), "pld"


@functools.lru_cache(maxsize=1024)
def _epsilon_of(plan: TrainingPlan) -> float:
    """Of one run; asked again whenever a run of the sweep has ended."""
    return plan.epsilon()


def best_of_random_number(candidates: Sequence[TrainingPlan], trials: NumberOfTrials) -> float:
    """ε, at the candidates' largest δ, of publishing only the best of a random number of trials, each of one candidate drawn at random."""
    distinct = {plan.cost_only for plan in candidates}
    each = [divergences_of(plan.event(), _ORDERS) for plan in distinct]
    if not each:
        return 0.0
    worst = np.max(each, axis=0)
    return tight_epsilon(trials.divergences(worst, _ORDERS), max(plan.delta for plan in candidates), _ORDERS)


def selection_cost(
    looked: Sequence[TrainingPlan],
    candidates: Sequence[TrainingPlan],
    *,
    random_mean: float | None,
    score: str,
    exact_on_private_data: bool,
    seeded: bool,
) -> dict[str, Any]:
    """What a sweep cost and what choosing its best costs, as JSON values.

    Args:
        looked: plans of the runs that may have released something, whether they finished or not.
        candidates: plans of all combinations of the outline.
        random_mean: the mean of the random number of runs; None for a grid.
        score: what the best is chosen by.
        exact_on_private_data: the score is computed from private examples without noise.
        seeded: noise comes from seeds.

    Returns:
        ``scheme`` (``"grid"`` or ``"random"``), ``score``, ``runs_that_looked``, ``delta``, ``adjacency``; ``epsilon_if_tuning_were_free``: of the costliest run alone (of a random search: of the costliest candidate, drawn or
        not), the figure that is often reported; ``epsilon_composed`` with ``composed_by``: of all that looked; ``epsilon_of_best``: of publishing the chosen run and nothing else; ``statement``: all of it in
        words. An ε is None where nothing is guaranteed.
    """
    delta = max((plan.delta for plan in (*looked, *candidates)), default=1e-5)
    everything, accountant = composed(looked)
    # Which candidates a random search drew tells of their number: what is said beside its best must not depend on it.
    counted = candidates if random_mean is not None else looked or candidates
    alone = max((_epsilon_of(plan) for plan in {plan.cost_only for plan in counted}), default=0.0)
    if exact_on_private_data:
        best = math.inf
    elif random_mean is None:
        best = everything
    else:
        best = best_of_random_number(candidates, NumberOfTrials(mean=random_mean, shape=SHAPE))
    found: dict[str, Any] = {
        "scheme": "grid" if random_mean is None else "random",
        "score": score,
        "runs_that_looked": len(looked),
        "delta": delta,
        "adjacency": common_adjacency(plan.selection().adjacency for plan in (*looked, *candidates)),
        "epsilon_if_tuning_were_free": finite_or_none(alone),
        "epsilon_composed": finite_or_none(everything),
        "composed_by": accountant,
        "epsilon_of_best": finite_or_none(best),
    }
    if random_mean is not None:
        found |= {"mean_trials": random_mean, "shape": SHAPE}
    return found | {"statement": _statement(found, exact_on_private_data, seeded)}


def statement_of_best(found: dict[str, Any]) -> str:
    """What may be said beside the published best of a random search; tells nothing of the number of runs but its distribution."""
    if found["epsilon_of_best"] is None:
        return "The choice has no guarantee."
    return (
        f"The best by {found['score']} of a random number of runs is {_pair(found['epsilon_of_best'], found['delta'])}-differentially private (Papernot & Steinke 2021, arXiv 2110.03620, theorem 2; truncated negative binomial number of runs, η = {found['shape']:g}, mean "
        f"{found['mean_trials']:g}), if nothing else of the search is published: no other run, not how many there were, not how long it took. Counting one "
        f"run alone, the costliest of the outline, as if tuning were free, would say ε = {_told(found['epsilon_if_tuning_were_free'])}. Neighbouring data sets: {found['adjacency']}."
    )


def _statement(found: dict[str, Any], exact: bool, seeded: bool) -> str:
    looked, free = found["runs_that_looked"], _told(found["epsilon_if_tuning_were_free"])
    if not looked:
        return "No run has looked at the private data."
    runs = "1 run looked" if looked == 1 else f"{looked} runs looked"
    together = f"{runs} at the private data: together {_pair(found['epsilon_composed'], found['delta'])}."
    if exact:
        choice = (
            f"The best is chosen by {found['score']} on private examples without noise: a choice without any guarantee (give "
            "validation_noise_multiplier). Published without choosing, all models have that of their composition."
        )
    elif found["scheme"] == "grid":
        choice = (
            f"Choosing the best by {found['score']} and publishing it, alone or with all others, costs this composition: the number of runs was fixed. "
            f"Counting the chosen run alone, as if tuning were free, would say ε = {free}."
        )
    else:
        choice = (
            f"{statement_of_best(found)} The number of runs must stay secret: whoever sees this folder, the sweep's progress or the time it took learns it, or "
            "all results, and against them only the composition counts. A sweep that is stopped early has no such bound: finish it."
        )
    neighbours = f" Neighbouring data sets: {found['adjacency']}." * (exact or found["scheme"] == "grid")
    seeds = " The noise comes from seeds: all of this holds only against those who cannot learn or guess them." * seeded
    return f"{together} {choice}{neighbours}{seeds}"


def _pair(epsilon: float | None, delta: float) -> str:
    return "without any guarantee" if epsilon is None else f"(ε = {rounded_up(epsilon)}, δ = {delta:g})"


def _told(epsilon: float | None) -> str:
    return "∞" if epsilon is None else rounded_up(epsilon)
