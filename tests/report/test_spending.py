"""ε of each mechanism alone, by the same accountant as ε of all."""

from __future__ import annotations

import json

import dp_accounting
import pytest

from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.report.spending import TOGETHER, Spending, spending


def certificate(*entries: LedgerEntry, accountant: str = "pld", delta: float = 1e-5) -> dict:
    return {"ledger": Ledger(entries).to_json(), "accountant": accountant, "delta": delta}


STATISTICS = LedgerEntry("channel statistics", dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.0), 2))
TRAINING = LedgerEntry(
    "training",
    dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(2.0)), 20),
)


@pytest.mark.parametrize("accountant", ["pld", "rdp", "rdp_classic"])
def test_each_alone_and_all_together(accountant):
    found = {
        part.mechanism: part.epsilon for part in spending(certificate(STATISTICS, TRAINING, accountant=accountant))
    }
    assert list(found) == ["channel statistics", "training", TOGETHER]
    for name, event in (
        ("channel statistics", STATISTICS.event),
        ("training", TRAINING.event),
        (TOGETHER, dp_accounting.ComposedDpEvent([STATISTICS.event, TRAINING.event])),
    ):
        assert found[name] == pytest.approx(epsilon_of(event, delta=1e-5, accountant=accountant), rel=1e-9)
    alone = [epsilon or 0.0 for name, epsilon in found.items() if name != TOGETHER]
    assert (found[TOGETHER] or 0.0) < sum(alone)


def test_another_delta_is_another_answer():
    loose, tight = (spending(certificate(TRAINING, delta=delta))[-1].epsilon for delta in (1e-3, 1e-7))
    assert loose is not None
    assert tight is not None
    assert loose < tight


def test_entries_of_one_name_are_one_mechanism():
    found = spending(certificate(STATISTICS, STATISTICS))
    assert [part.mechanism for part in found] == ["channel statistics", TOGETHER]
    assert (
        found[0].epsilon
        == found[1].epsilon
        == pytest.approx(
            epsilon_of(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.0), 4), delta=1e-5), rel=1e-9
        )
    )


def test_no_noise_is_no_guarantee():
    bare = LedgerEntry("logistic regression", dp_accounting.NonPrivateDpEvent())
    assert spending(certificate(STATISTICS, bare))[1:] == [
        Spending("logistic regression", None),
        Spending(TOGETHER, None),
    ]


def test_the_total_is_that_of_the_certificate(finished_runs):
    for run in ("seed0", "own"):
        values = json.loads((finished_runs / run / "certificate.json").read_text())
        assert spending(values)[-1].epsilon == pytest.approx(values["epsilon"], rel=1e-9)
