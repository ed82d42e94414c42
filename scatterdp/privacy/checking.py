"""Does a certificate say what its own ledger says?

A certificate is a file that anyone may have changed, by accident or not. What can be checked without the data is checked here: that ε follows
from the ledger, that the ledger's training event is that of the sampler which the certificate names, and that the noise of every release is the
noise of its event. Whether the run did what its ledger says is a matter of the code, not of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dp_accounting
from dp_accounting.dp_event import RepeatAndSelectDpEvent

from scatterdp.errors import UserError
from scatterdp.privacy.accounting import ACCOUNTANTS
from scatterdp.privacy.certificate import SCHEMA, TRAINING, opening_of_statement
from scatterdp.privacy.ledger import Ledger, LedgerEntry, event_to_json, finite_or_none
from scatterdp.privacy.sampling import make_selection

TOLERANCE = 1e-3  # relative: another version of the accounting library rounds otherwise

_WITHOUT_BATCHES = ("none", "composed")  # nothing is sampled, or each of several fits has a sampler of its own


@dataclass(frozen=True)
class Checked:
    """What was found.

    Args:
        epsilons: ε by accountant, computed again from the ledger; None where there is no guarantee.
        disagreements: one sentence each; empty when the certificate agrees with its ledger.
    """

    epsilons: dict[str, float | None]
    disagreements: list[str]


def check_certificate(certificate: Any) -> Checked:
    """Compute everything again that a certificate claims and its ledger decides.

    Args:
        certificate: the JSON values of a ``certificate.json``.

    Raises:
        UserError: these are not a certificate's values, or one of another schema.
    """
    if not isinstance(certificate, dict) or "ledger" not in certificate:
        raise UserError(
            "certificate: has no ledger, so it is no certificate of a run; give a run folder or its certificate.json"
        )
    if certificate.get("schema") != SCHEMA:
        raise UserError(f"certificate: has schema {certificate.get('schema')!r}, this version reads {SCHEMA}")
    try:
        return _check(certificate)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise UserError(f"certificate: is damaged ({type(error).__name__}: {error})") from error


def _check(certificate: dict[str, Any]) -> Checked:
    ledger = Ledger.from_json(certificate["ledger"])
    delta, accountant = certificate["delta"], certificate["accountant"]
    if not isinstance(delta, float) or not 0 < delta < 1:
        raise ValueError(f"δ = {delta!r}")
    epsilons = {name: finite_or_none(ledger.epsilon(delta=delta, accountant=name)) for name in ACCOUNTANTS}
    found: list[str] = []
    claims = certificate["epsilon_by_accountant"]
    for name, epsilon in epsilons.items():
        if not _close(claims[name], epsilon):
            found.append(f"it claims ε = {_told(claims[name])} by {name}, its ledger gives {_told(epsilon)}")
    if certificate["epsilon"] != claims[accountant]:
        found.append(
            f"it claims ε = {_told(certificate['epsilon'])}, but {_told(claims[accountant])} by its accountant, {accountant}"
        )
    if certificate["private"] != (certificate["epsilon"] is not None):
        found.append(f"it says private: {certificate['private']}, with ε = {_told(certificate['epsilon'])}")
    opening = opening_of_statement(certificate["epsilon"], delta)
    if not certificate["statement"].startswith(opening):
        found.append(f"its statement does not begin with '{opening}'")
    found += _of_releases(ledger.entries, certificate["data"]["num_train"])
    found += _of_sampler(certificate, ledger)
    found = list(dict.fromkeys(found))
    return Checked(epsilons, found)


def _of_releases(entries: Iterable[LedgerEntry], num_train: int) -> list[str]:
    """Each entry's event against the noise, and the sampler, that its details name."""
    found = []
    for entry in entries:
        if "sampler" in entry.details or entry.name == TRAINING:
            found += _of_steps(entry, num_train)
        elif "feature_clip_norm" in entry.details:
            found += _of_statistics(entry, num_train)
        elif "trials" in entry.details:
            found += _of_trials(entry, num_train)
        elif "noise_multiplier" in entry.details:
            found += _of_sums(entry)
    return found


def _of_steps(entry: LedgerEntry, num_train: int) -> list[str]:
    """Model updates on batches: the event is the sampler's."""
    sampler, found = entry.details["sampler"], []
    if sampler["num_examples"] > num_train:
        found.append(f"its sampler draws from {sampler['num_examples']} examples, its data has {num_train}")
    selection = make_selection(
        "shuffle" if sampler["kind"] == "shuffle" else "poisson",
        num_examples=sampler["num_examples"],
        batch_size=sampler["expected_batch_size"],
        steps=sampler["steps"],
    )
    if event_to_json(selection.event(entry.details["noise_multiplier"])) != event_to_json(entry.event):
        found.append(f"the event of its {entry.name} is not that of its sampler and noise multiplier")
    if selection.describe() != sampler:
        found.append("its sampler's numbers do not fit each other")
    deviation = entry.details["noise_multiplier"] * entry.details["max_grad_norm"]
    if not math.isclose(entry.details["noise_standard_deviation"], deviation, rel_tol=1e-9):
        found.append(f"the noise of its {entry.name} is not its noise multiplier times max_grad_norm")
    return found


def _of_statistics(entry: LedgerEntry, num_train: int) -> list[str]:
    """Channel statistics: a Gaussian mechanism for each release, its noise in units of the release's bound."""
    bounds, deviations = entry.details["feature_clip_norm"], entry.details["noise_standard_deviation"]
    noise_multiplier = deviations[0] / bounds[0]
    found = []
    if not all(math.isclose(s, noise_multiplier * b, rel_tol=1e-9) for s, b in zip(deviations, bounds, strict=True)):
        found.append(f"the noises of the {entry.name} are not one multiple of their bounds")
    event = entry.event
    if "sample" in entry.details:
        found += _of_sample(entry.details["sample"], event, noise_multiplier, num_train)
    elif not (
        isinstance(event, dp_accounting.SelfComposedDpEvent)
        and isinstance(event.event, dp_accounting.GaussianDpEvent)
        and event.count == len(bounds)
        and math.isclose(event.event.noise_multiplier, noise_multiplier, rel_tol=1e-9)
    ):
        found.append(f"the event of the {entry.name} is not that of its noise and bounds")
    return found


def _of_sample(
    sample: dict[str, Any], event: dp_accounting.DpEvent, noise_multiplier: float, num_train: int
) -> list[str]:
    """Statistics of a Poisson sample: both releases are one Gaussian mechanism on it."""
    found, rate = [], sample["expected_batch_size"] / sample["num_examples"]
    if sample["num_examples"] != num_train:
        found.append(f"its statistics sample {sample['num_examples']} examples, its data has {num_train}")
    if sample["kind"] != "poisson" or sample["sample_rate"] != rate or sample["steps"] != 1:
        found.append("the numbers of its statistics' sample do not fit each other")
    if not (
        isinstance(event, dp_accounting.PoissonSampledDpEvent)
        and event.sampling_probability == rate
        and isinstance(event.event, dp_accounting.GaussianDpEvent)
        and math.isclose(event.event.noise_multiplier, noise_multiplier / math.sqrt(2), rel_tol=1e-9)
    ):
        found.append("the event of the channel statistics is not that of their sample, noise and bounds")
    return found


def _of_sums(entry: LedgerEntry) -> list[str]:
    """Sums with Gaussian noise: the event is that of the noise."""
    details, found = entry.details, []
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(details["noise_multiplier"])
    if "steps" in details:
        event = dp_accounting.SelfComposedDpEvent(event, details["steps"])
    if event != entry.event:
        found.append(
            f"the event of the {entry.name} is not that of its noise multiplier, {details['noise_multiplier']}"
        )
    if not math.isclose(
        details["noise_standard_deviation"], details["noise_multiplier"] * details["sensitivity"], rel_tol=1e-9
    ):
        found.append(f"the noise of the {entry.name} is not its noise multiplier times its sensitivity")
    return found


def _of_trials(entry: LedgerEntry, num_train: int) -> list[str]:
    """The best of a random number of trials: the event is that of one trial's releases and of the numbers' distribution."""
    trial, trials = Ledger.from_json(entry.details["releases"]), entry.details["trials"]
    found = _of_releases(trial.entries, num_train)
    shape = math.inf if trials["shape"] is None else trials["shape"]
    if entry.event != RepeatAndSelectDpEvent(trial.event, trials["mean"], shape):
        found.append(f"the event of the {entry.name} is not that of its trials")
    return found


def _of_sampler(certificate: dict[str, Any], ledger: Ledger) -> list[str]:
    """The sampler that the certificate names against the one in its ledger."""
    entries = [entry for entry in ledger.entries if entry.name == TRAINING]
    sampler, num_train = certificate["sampler"], certificate["data"]["num_train"]
    expected = 0 if sampler["kind"] in _WITHOUT_BATCHES else 1
    if len(entries) != expected:
        said = "a run has one" if expected else f"a sampler of kind {sampler['kind']} has none"
        return [f"its ledger has {len(entries)} entries named {TRAINING}, {said}"]
    found = []
    if entries and entries[0].details["sampler"] != sampler:
        found.append("the sampler that it names is not the one in its ledger")
    unsaid = num_train if sampler["kind"] == "none" else None  # logistic regression samples nothing and says nothing
    if sampler.get("num_examples", unsaid) != num_train:
        found.append(f"its sampler draws from {sampler.get('num_examples')} examples, its data has {num_train}")
    if sampler.get("adjacency", certificate["adjacency"]) != certificate["adjacency"]:
        found.append("its neighbouring data sets are not those of its sampler")
    return found


def _close(claim: float | None, epsilon: float | None) -> bool:
    if claim is None or epsilon is None:
        return claim is epsilon
    return math.isclose(claim, epsilon, rel_tol=TOLERANCE)


def _told(epsilon: float | None) -> str:
    return "∞" if epsilon is None else f"{epsilon:.4f}"
