"""A certificate against its own ledger; every claim with a negative control."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import dp_accounting
import pytest

from scatterdp.errors import UserError
from scatterdp.linear.method import gaussian_entry
from scatterdp.privacy.accounting import ADJACENCY
from scatterdp.privacy.certificate import make_certificate, opening_of_statement
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import Sampling, make_selection
from scatterdp.privacy.statistics import statistics_event, statistics_selection


def certificate(
    *, sampling: Sampling = "poisson", batch_size: int = 100, noise: float = 2.0, sample: int = 1000
) -> dict[str, Any]:
    """A run's certificate as it is read from a file."""
    selection = make_selection(sampling, num_examples=1000, batch_size=batch_size, steps=30)
    training = {
        "sampler": selection.describe(),
        "noise_multiplier": noise,
        "max_grad_norm": 0.1,
        "noise_standard_deviation": noise * 0.1,
    }
    statistics: dict[str, Any] = {"feature_clip_norm": [2.0, 5.0], "noise_standard_deviation": [16.0, 40.0]}
    if drawn := statistics_selection(1000, sample):
        statistics["sample"] = drawn.describe()
    ledger = Ledger(
        [
            LedgerEntry("channel statistics", statistics_event(8.0, sample / 1000), statistics),
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
    [{}, {"sampling": "shuffle"}, {"batch_size": 1000}, {"noise": 0.0}, {"sample": 200}],
    ids=["poisson", "shuffle", "full", "no noise", "statistics of a sample"],
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


def another_adjacency(values: dict[str, Any]) -> None:
    values["adjacency"] = "replace one example"


def smaller_deviation(values: dict[str, Any]) -> None:
    values["ledger"][1]["details"]["noise_standard_deviation"] = 1e-9


def smaller_deviation_of_statistics(values: dict[str, Any]) -> None:
    values["ledger"][0]["details"]["noise_standard_deviation"][1] *= 0.5


def larger_delta_in_the_statement(values: dict[str, Any]) -> None:
    values["statement"] = values["statement"].replace("δ = 1e-05", "δ = 1e-09")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_adjacency, "its neighbouring data sets are not those of its sampler"),
        (smaller_deviation, "the noise of its training is not its noise multiplier times max_grad_norm"),
        (smaller_deviation_of_statistics, "the noises of the channel statistics are not one multiple of their bounds"),
        (noise_of_the_statistics, "the event of the channel statistics is not that of its noise and bounds"),
        (larger_delta_in_the_statement, "its statement does not begin with"),
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
        (another_statement, "its statement does not begin with 'This run is (ε = "),
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", -1),
        ("count", 2.5),
        ("sampling_probability", -0.1),
        ("sampling_probability", 1.5),
        ("noise_multiplier", -2.0),
    ],
)
def test_numbers_that_no_mechanism_has(honest, name, value):
    values = copy.deepcopy(honest)
    event = values["ledger"][1]["event"]
    while name not in event:
        event = event["event"]
    event[name] = value
    with pytest.raises(UserError, match=rf"is damaged \(ValueError: {name}="):
        check_certificate(values)


def test_noise_too_small_for_numbers_is_no_traceback(honest):
    values = copy.deepcopy(honest)
    values["ledger"][0]["event"]["event"]["noise_multiplier"] = 1e-200
    with pytest.raises(UserError, match="is damaged"):
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


def test_logistic_regression_draws_no_batches_and_names_no_number_of_examples(honest):
    bare = LedgerEntry("logistic regression without noise", dp_accounting.NonPrivateDpEvent())
    changes = {"ledger": Ledger([bare]).to_json(), "sampler": {"kind": "none"}, "epsilon": None, "private": False}
    changes |= {"epsilon_by_accountant": dict.fromkeys(honest["epsilon_by_accountant"])}
    values = honest | changes | {"statement": opening_of_statement(None, 1e-5)}
    assert check_certificate(values).disagreements == []


@pytest.fixture(scope="module")
def closed() -> dict[str, Any]:
    ledger = Ledger(
        [
            gaussian_entry("mean of the features", 40.0, 1.0),
            gaussian_entry("gradients", 9.0, 2**0.5, steps=3),
        ]
    )
    values = make_certificate(
        ledger,
        delta=1e-5,
        accountant="pld",
        adjacency=ADJACENCY,
        sampler={"kind": "none", "num_examples": 1000, "adjacency": ADJACENCY},
        key="system",
        data={"name": "arrays", "num_train": 1000},
        features={"extractor": "given"},
        not_private=[],
    )
    return json.loads(json.dumps(values))


class TestClosedForms:
    """Certificates of methods that draw no batches: every release is a sum with Gaussian noise."""

    def test_what_the_code_writes_agrees_with_itself(self, closed):
        assert check_certificate(closed).disagreements == []
        assert "every model update" not in closed["statement"]
        assert "Not covered" not in closed["statement"]

    @pytest.mark.parametrize(
        ("path", "value", "said"),
        [
            (
                ("ledger", 0, "event", "noise_multiplier"),
                80.0,
                "the event of the mean of the features is not that of its noise",
            ),
            (
                ("ledger", 0, "details", "noise_multiplier"),
                80.0,
                "the event of the mean of the features is not that of its noise",
            ),
            (("ledger", 1, "event", "count"), 1, "the event of the gradients is not that of its noise multiplier, 9.0"),
            (("ledger", 1, "details", "steps"), 30, "the event of the gradients is not that of its noise multiplier"),
            (("ledger", 1, "event", "event", "noise_multiplier"), 10.0, "the event of the gradients is not that of"),
            (
                ("ledger", 0, "details", "noise_standard_deviation"),
                1.0,
                "is not its noise multiplier times its sensitivity",
            ),
            (
                ("ledger", 1, "details", "sensitivity"),
                1.0,
                "the noise of the gradients is not its noise multiplier times",
            ),
            (("sampler", "num_examples"), 10_000, "its sampler draws from 10000 examples, its data has 1000"),
            (("data", "num_train"), 10_000, "its sampler draws from 1000 examples, its data has 10000"),
            (("ledger", 1, "name"), "training", "is damaged"),
        ],
    )
    def test_what_was_changed_is_found(self, closed, path, value, said):
        values = copy.deepcopy(closed)
        *way, last = path
        target = values
        for step in way:
            target = target[step]
        target[last] = value
        try:
            found = check_certificate(values).disagreements
        except UserError as error:
            found = [str(error)]
        assert any(said in sentence for sentence in found)

    def test_batches_need_a_sampler(self, honest):
        values = copy.deepcopy(honest)
        values["sampler"] = {"kind": "none", "num_examples": 1000, "adjacency": ADJACENCY}
        found = check_certificate(values).disagreements
        assert "its ledger has 1 entries named training, a sampler of kind none has none" in found

    def test_a_sampler_needs_batches(self, closed, honest):
        found = check_certificate({**closed, "sampler": honest["sampler"]}).disagreements
        assert "its ledger has 0 entries named training, a run has one" in found

    def test_of_several_fits_each_is_checked(self, honest):
        values = copy.deepcopy(honest)
        values["sampler"] = {"kind": "composed", "num_examples": 1000, "adjacency": ADJACENCY}
        values["ledger"][1]["name"] = "second fit: training"
        assert check_certificate(values).disagreements == []
        values["ledger"][1]["event"]["count"] = 10
        found = check_certificate(values).disagreements
        assert "the event of its second fit: training is not that of its sampler and noise multiplier" in found
        values["ledger"][1]["details"]["sampler"]["num_examples"] = 2000
        assert any("draws from 2000 examples" in sentence for sentence in check_certificate(values).disagreements)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            ("details", "sample", "expected_batch_size"),
            100,
            "the numbers of its statistics' sample do not fit each other",
        ),
        (("details", "sample", "sample_rate"), 0.1, "the numbers of its statistics' sample do not fit each other"),
        (("details", "sample", "steps"), 2, "the numbers of its statistics' sample do not fit each other"),
        (("details", "sample", "kind"), "shuffle", "the numbers of its statistics' sample do not fit each other"),
        (("details", "sample", "num_examples"), 2000, "its statistics sample 2000 examples, its data has 1000"),
        (("event", "sampling_probability"), 0.1, "is not that of their sample, noise and bounds"),
        (("event", "event", "noise_multiplier"), 8.0, "is not that of their sample, noise and bounds"),
        (("details", "noise_standard_deviation"), [32.0, 80.0], "is not that of their sample, noise and bounds"),
        (("details", "sample"), None, "is damaged"),
    ],
)
def test_what_was_changed_of_a_sample_is_found(place, value, said):
    values = certificate(sample=200)
    entry = values["ledger"][0]
    for name in place[:-1]:
        entry = entry[name]
    entry[place[-1]] = value
    if value is None:
        with pytest.raises(UserError, match=said):
            check_certificate(values)
    else:
        assert any(said in sentence for sentence in check_certificate(values).disagreements)
