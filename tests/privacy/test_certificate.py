import base64
import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import dp_accounting
import pytest

from scatterdp.privacy.accounting import ACCOUNTANTS, ADJACENCY, Accountant, epsilon_of
from scatterdp.privacy.certificate import make_certificate, with_publication
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import BatchSelection, make_selection
from scatterdp.privacy.statistics import statistics_event

SECRET = bytes(range(100, 132))
POISSON = make_selection("poisson", num_examples=1000, batch_size=100, steps=30)


def certificate(
    ledger: Ledger,
    *,
    key: RandomKey | None = None,
    accountant: Accountant = "pld",
    delta: float = 1e-5,
    selection: BatchSelection = POISSON,
    assumptions: Sequence[str] = (),
) -> dict[str, Any]:
    return make_certificate(
        ledger,
        delta=delta,
        accountant=accountant,
        adjacency=selection.adjacency,
        sampler=selection.describe(),
        key=key or RandomKey(SECRET),
        data={"name": "digits", "num_train": 1000, "commitment": "c0ffee"},
        features={"extractor": "scatternet", "fingerprint": "f00d"},
        not_private=["test_accuracy", "seconds"],
        assumptions=assumptions,
    )


def stated_epsilon(found: dict[str, Any]) -> float:
    number = re.search(r"\(ε = (\d+\.\d+), δ = ", found["statement"])
    assert number is not None
    return float(number[1])


def run_ledger() -> Ledger:
    return Ledger(
        [
            LedgerEntry("channel statistics", statistics_event(8.0), {"feature_clip_norm": [1.5, 4.0]}),
            LedgerEntry("training", POISSON.event(2.0), {"max_grad_norm": 0.1}),
        ]
    )


def test_it_says_what_it_has_to_say():
    found = certificate(run_ledger())
    spent = run_ledger().epsilon(delta=1e-5)
    assert found["epsilon"] == spent
    assert found["delta"] == 1e-5
    assert found["private"] is True
    assert found["adjacency"] == ADJACENCY
    assert found["accountant"] == "pld"
    assert found["sampler"] == POISSON.describe()
    assert [entry["name"] for entry in found["ledger"]] == ["channel statistics", "training"]
    assert Ledger.from_json(found["ledger"]).entries == run_ledger().entries
    assert found["noise_source"]["cryptographic"] is True
    assert found["data"]["commitment"] == "c0ffee"
    assert found["features"]["fingerprint"] == "f00d"
    assert found["not_private"] == ["test_accuracy", "seconds"]
    assert found["versions"]["dp-accounting"] == version("dp-accounting")
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["python"] == platform.python_version()
    assert set(found["versions"]) >= {"scatterdp", "numpy", "scipy", "kymatio", "h5py"}
    limits = " ".join(found["limits"])
    for word in ("public", "compose", "Test examples", "Cached features", "timings", "floating-point"):
        assert word in limits


def test_the_statement_names_epsilon_delta_and_adjacency():
    found = certificate(run_ledger())
    assert stated_epsilon(found) == pytest.approx(found["epsilon"], abs=1.1e-4)
    assert "δ = 1e-05)-differentially private" in found["statement"]
    assert "add or remove one example" in found["statement"]
    assert "NOT" not in found["statement"]


@pytest.mark.parametrize("sigma", [3.0, 3.1, 3.2, 3.3, 3.4, 3.5])
def test_the_stated_epsilon_is_not_below_the_computed_one(sigma):
    found = certificate(Ledger([LedgerEntry("training", dp_accounting.GaussianDpEvent(sigma))]))
    assert found["epsilon"] <= stated_epsilon(found) < found["epsilon"] + 2e-4


def test_it_is_json():
    for ledger in (run_ledger(), Ledger(), Ledger([LedgerEntry("leak", dp_accounting.NonPrivateDpEvent())])):
        found = certificate(ledger)
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_epsilon_comes_from_the_ledger():
    ledger = run_ledger()
    before = certificate(ledger)["epsilon"]
    ledger.record(LedgerEntry("training", POISSON.event(2.0)))
    after = certificate(ledger)
    assert after["epsilon"] > before
    assert len(after["ledger"]) == 3
    assert certificate(Ledger(run_ledger().entries[:1]))["epsilon"] < before
    # A reader recomputes it from the certificate alone.
    composed = Ledger.from_json(json.loads(json.dumps(after))["ledger"]).event
    assert epsilon_of(composed, delta=after["delta"], accountant=after["accountant"]) == after["epsilon"]


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_claim_is_the_asked_accountants(accountant):
    found = certificate(run_ledger(), accountant=accountant, delta=1e-6)
    expected = {name: run_ledger().epsilon(delta=1e-6, accountant=name) for name in ACCOUNTANTS}
    assert found["epsilon_by_accountant"] == expected
    assert found["epsilon"] == expected[accountant]
    assert found["accountant"] == accountant
    assert stated_epsilon(found) == pytest.approx(expected[accountant], abs=1.1e-4)


@pytest.mark.parametrize("leak", [dp_accounting.NonPrivateDpEvent(), dp_accounting.GaussianDpEvent(0.0)])
def test_without_noise_it_claims_nothing(leak):
    found = certificate(Ledger([*run_ledger().entries, LedgerEntry("leak", leak)]))
    assert found["private"] is False
    assert found["epsilon"] is None
    assert found["epsilon_by_accountant"] == dict.fromkeys(ACCOUNTANTS)
    assert found["statement"] == "This run is NOT differentially private: something was released without noise."


def test_shuffled_batches_state_their_own_adjacency():
    shuffled = make_selection("shuffle", num_examples=1000, batch_size=100, steps=30)
    found = certificate(Ledger([LedgerEntry("training", shuffled.event(8.0))]), selection=shuffled)
    assert "zero-out" in found["statement"]
    assert "zero-out" in found["adjacency"]
    assert "add or remove" not in json.dumps(found, ensure_ascii=False)
    assert "PoissonSampled" not in json.dumps(found)


def test_the_key_is_not_in_it():
    text = json.dumps(certificate(run_ledger()), ensure_ascii=False)
    for form in (SECRET.hex(), base64.b64encode(SECRET).decode(), SECRET.decode("latin1"), str(int.from_bytes(SECRET))):
        assert form not in text
    assert SECRET.hex().upper() not in text


def test_a_seed_is_named_as_no_protection():
    found = certificate(run_ledger(), key=RandomKey.from_seed(11))
    assert found["noise_source"]["cryptographic"] is False
    assert found["noise_source"]["key"] == "derived from a seed that the user gave"
    assert "only against those who cannot learn or guess it" in found["statement"]
    assert "11" not in json.dumps(found["noise_source"])
    assert "can subtract the noise" in found["noise_source"]["caveat"]
    assert RandomKey.from_seed(11).secret.hex() not in json.dumps(found)


def test_a_delta_that_allows_publishing_an_example():
    assert "not below 1/N" not in certificate(run_ledger(), delta=9.9e-4)["statement"]
    assert "δ = 0.001 is not below 1/N" in certificate(run_ledger(), delta=1e-3)["statement"]


def test_nothing_released():
    found = certificate(Ledger())
    assert found["epsilon"] == 0.0
    assert found["private"] is True


def test_what_is_published_beside_the_model():
    found = certificate(run_ledger())
    more = with_publication(found, data_name="patients", not_private=["test_accuracy", "peak_memory_bytes"])
    assert more["data"] == {"name": "patients", "num_train": 1000, "commitment": "c0ffee"}
    assert more["not_private"] == ["test_accuracy", "seconds", "peak_memory_bytes"]
    assert more["statement"].startswith(found["statement"].partition(" Not covered: ")[0])
    assert "Not covered: test_accuracy, seconds, peak_memory_bytes." in more["statement"]
    same = ("data", "not_private", "statement")
    assert {name: value for name, value in more.items() if name not in same} == {
        name: value for name, value in found.items() if name not in same
    }
    assert found["not_private"] == ["test_accuracy", "seconds"]


def test_what_is_taken_on_somebodys_word_is_in_the_statement_and_among_the_limits():
    told = "The statistics were given."
    found = certificate(run_ledger(), assumptions=[told])
    plain = certificate(run_ledger())
    assert told in found["statement"]
    assert found["limits"] == [told, *plain["limits"]]
    assert found["epsilon"] == plain["epsilon"]
