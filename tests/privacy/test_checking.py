"""A certificate against its own ledger; every claim with a negative control."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from scatterdp.errors import UserError
from scatterdp.privacy.certificate import make_certificate
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import Sampling, make_selection
from scatterdp.privacy.statistics import statistics_event


def certificate(*, sampling: Sampling = "poisson", batch_size: int = 100, noise: float = 2.0) -> dict[str, Any]:
    """A run's certificate as it is read from a file."""
    selection = make_selection(sampling, num_examples=1000, batch_size=batch_size, steps=30)
    training = {"sampler": selection.describe(), "noise_multiplier": noise, "max_grad_norm": 0.1}
    ledger = Ledger(
        [
            LedgerEntry("channel statistics", statistics_event(8.0)),
            LedgerEntry("training", selection.event(noise), training),
        ]
    )
    values = make_certificate(
        ledger,
        delta=1e-5,
        accountant="pld",
        adjacency=selection.adjacency,
        sampler=selection.describe(),
        key=RandomKey(bytes(range(32))),
        data={"name": "digits", "num_train": 1000, "classes": ["a", "b"]},
        features={"extractor": "scatternet"},
        not_private=["test_accuracy"],
    )
    return json.loads(json.dumps(values))


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    return certificate()


@pytest.mark.parametrize(
    "made",
    [{}, {"sampling": "shuffle"}, {"batch_size": 1000}, {"noise": 0.0}],
    ids=["poisson", "shuffle", "full", "no noise"],
)
def test_what_the_code_writes_agrees_with_itself(made):
    values = certificate(**made)
    checked = check_certificate(values)
    assert checked.disagreements == []
    assert checked.epsilons == pytest.approx(values["epsilon_by_accountant"])


def noise_of_the_event(values: dict[str, Any]) -> None:
    values["ledger"][1]["event"]["event"]["event"]["noise_multiplier"] = 2.5


def noise_of_the_statistics(values: dict[str, Any]) -> None:
    values["ledger"][0]["event"]["event"]["noise_multiplier"] = 80


def fewer_steps(values: dict[str, Any]) -> None:
    values["ledger"][1]["event"]["count"] = 10


def smaller_rate(values: dict[str, Any]) -> None:
    values["ledger"][1]["event"]["event"]["sampling_probability"] = 0.05


def another_rate_beside_it(values: dict[str, Any]) -> None:
    for sampler in (values["sampler"], values["ledger"][1]["details"]["sampler"]):
        sampler["sample_rate"] = 0.05


def another_sampler(values: dict[str, Any]) -> None:
    values["sampler"]["kind"] = "shuffle"


def more_examples(values: dict[str, Any]) -> None:
    values["data"]["num_train"] = 10_000


def lower_epsilon(values: dict[str, Any]) -> None:
    values["epsilon"] = 0.5
    values["statement"] = values["statement"].replace("ε = ", "ε = 0.5000, ")


def lower_epsilon_everywhere(values: dict[str, Any]) -> None:
    lower_epsilon(values)
    values["epsilon_by_accountant"]["pld"] = 0.5


def lower_epsilon_of_another(values: dict[str, Any]) -> None:
    values["epsilon_by_accountant"]["rdp_classic"] *= 0.99


def not_private(values: dict[str, Any]) -> None:
    values["private"] = False


def another_statement(values: dict[str, Any]) -> None:
    values["statement"] = "This run is (ε = 0.1000, δ = 1e-05)-differentially private."


def no_training(values: dict[str, Any]) -> None:
    del values["ledger"][1]


def infinite_claim(values: dict[str, Any]) -> None:
    values["epsilon_by_accountant"]["rdp"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (noise_of_the_event, "not that of its sampler and noise multiplier"),
        (noise_of_the_statistics, "its ledger gives"),
        (fewer_steps, "not that of its sampler"),
        (smaller_rate, "not that of its sampler"),
        (another_rate_beside_it, "its sampler's numbers do not fit each other"),
        (another_sampler, "the sampler that it names is not the one in its ledger"),
        (more_examples, "its sampler draws from 1000 examples, its data has 10000"),
        (lower_epsilon, "by its accountant, pld"),
        (lower_epsilon_everywhere, "it claims ε = 0.5000 by pld"),
        (lower_epsilon_of_another, "by rdp_classic, its ledger gives"),
        (not_private, "it says private: False"),
        (another_statement, "its statement does not say ε ="),
        (no_training, "has 0 entries named training"),
        (infinite_claim, "it claims ε = ∞ by rdp"),
    ],
)
def test_what_was_changed_is_found(honest, change: Callable[[dict[str, Any]], None], said):
    values = copy.deepcopy(honest)
    change(values)
    assert any(said in sentence for sentence in check_certificate(values).disagreements)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "has no ledger"),
        ({"epsilon": 1.0}, "has no ledger"),
        ({"ledger": []}, "has schema None, this version reads 1"),
        ({"ledger": [], "schema": 1}, "is damaged"),
    ],
)
def test_what_is_no_certificate(values, message):
    with pytest.raises(UserError, match=message):
        check_certificate(values)


def test_a_sampler_without_steps_is_none(honest):
    values = copy.deepcopy(honest)
    for sampler in (values["sampler"], values["ledger"][1]["details"]["sampler"]):
        sampler["steps"] = 0
    with pytest.raises(UserError, match="steps=0: expected at least 1"):
        check_certificate(values)


@pytest.mark.parametrize("value", [None, 0, "1e-5", 2.0, float("nan")])
def test_a_delta_that_is_none(honest, value):
    with pytest.raises(UserError, match="is damaged"):
        check_certificate({**honest, "delta": value})


def test_an_unknown_event(honest):
    values = copy.deepcopy(honest)
    values["ledger"][0]["event"]["type"] = "LaplaceDpEvent"
    with pytest.raises(UserError, match=r"is damaged.*LaplaceDpEvent"):
        check_certificate(values)
