import itertools
import json
import math

import dp_accounting
import pytest
from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.privacy.accounting import ACCOUNTANTS, epsilon_of
from scatterdp.privacy.ledger import Ledger, LedgerEntry, event_from_json, event_to_json, finite_or_none

EVENTS = st.recursive(
    st.one_of(
        st.builds(NoOpDpEvent),
        st.builds(NonPrivateDpEvent),
        st.builds(GaussianDpEvent, st.floats(0, 1e6, allow_nan=False)),
    ),
    lambda inner: st.one_of(
        st.builds(PoissonSampledDpEvent, st.floats(0, 1), inner),
        st.builds(SelfComposedDpEvent, inner, st.integers(1, 10**9)),
        st.builds(ComposedDpEvent, st.lists(inner, max_size=4)),
    ),
    max_leaves=12,
)
DETAILS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.none(), st.floats(-1e9, 1e9), st.text(max_size=5), st.lists(st.integers(), max_size=3)),
)
STATISTICS = LedgerEntry("statistics", SelfComposedDpEvent(GaussianDpEvent(8.0), 2), {"feature_clip_norm": [1.5, 4.0]})
TRAINING = LedgerEntry("training", SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(2.0)), 50))
FULL = LedgerEntry("full", SelfComposedDpEvent(GaussianDpEvent(30.0), 20))


@given(EVENTS)
def test_events_survive_json(event):
    assert event_from_json(json.loads(json.dumps(event_to_json(event), allow_nan=False))) == event


@given(st.lists(st.builds(LedgerEntry, st.text(max_size=8), EVENTS, DETAILS), max_size=4))
def test_ledgers_survive_json(entries):
    ledger = Ledger(entries)
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json(), allow_nan=False)))
    assert again.entries == ledger.entries == tuple(entries)
    assert again.event == ledger.event == ComposedDpEvent([entry.event for entry in entries])
    assert again.to_json() == ledger.to_json()


def test_the_form_is_frozen():
    # A frozen value: certificates and checkpoints that exist must stay readable.
    assert TRAINING.to_json() == {
        "name": "training",
        "event": {
            "type": "SelfComposedDpEvent",
            "count": 50,
            "event": {
                "type": "PoissonSampledDpEvent",
                "sampling_probability": 0.1,
                "event": {"type": "GaussianDpEvent", "noise_multiplier": 2.0},
            },
        },
        "details": {},
    }
    assert event_to_json(ComposedDpEvent([NoOpDpEvent(), NonPrivateDpEvent()])) == {
        "type": "ComposedDpEvent",
        "events": [{"type": "NoOpDpEvent"}, {"type": "NonPrivateDpEvent"}],
    }


def test_a_ledger_read_back_has_the_same_epsilon():
    ledger = Ledger([STATISTICS, TRAINING])
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again.epsilon(delta=1e-5) == ledger.epsilon(delta=1e-5) > 0.6


def test_it_only_grows():
    ledger = Ledger([STATISTICS])
    before, event = ledger.entries, ledger.event
    ledger.record(TRAINING)
    ledger.record(TRAINING)
    assert ledger.entries == (STATISTICS, TRAINING, TRAINING)
    assert before == (STATISTICS,)
    assert event == ComposedDpEvent([STATISTICS.event])
    # What it hands out cannot be used to shorten it.
    assert isinstance(ledger.entries, tuple)
    ledger.event.events.clear()  # pyright: ignore[reportAttributeAccessIssue]
    ledger.to_json().clear()
    assert len(ledger.entries) == 3
    assert not [name for name in ("remove", "clear", "pop", "__delitem__", "__setitem__") if hasattr(ledger, name)]
    with pytest.raises(AttributeError):
        ledger.entries = ()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        STATISTICS.event = NoOpDpEvent()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_was_recorded_cannot_be_taken_back():
    parts: list[dp_accounting.DpEvent] = [GaussianDpEvent(1.0)]
    ledger = Ledger([LedgerEntry("parts", ComposedDpEvent(parts))])
    spent = ledger.epsilon(delta=1e-5)
    parts.clear()
    assert ledger.epsilon(delta=1e-5) == spent > 4


def test_the_list_that_it_was_made_of_is_not_its_own():
    entries = [STATISTICS, TRAINING]
    ledger = Ledger(entries)
    entries.clear()
    assert len(ledger.entries) == 2


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_nothing_spent(accountant):
    assert Ledger().entries == ()
    assert Ledger().epsilon(delta=1e-5, accountant=accountant) == 0.0
    assert Ledger.from_json([]).epsilon(delta=1e-5, accountant=accountant) == 0.0


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_epsilon_is_of_everything_composed(accountant, exact_gaussian_epsilon):
    ledger = Ledger([STATISTICS, TRAINING, FULL])
    everything = ComposedDpEvent([STATISTICS.event, TRAINING.event, FULL.event])
    expected = epsilon_of(everything, delta=1e-5, accountant=accountant)
    assert ledger.epsilon(delta=1e-5, accountant=accountant) == pytest.approx(expected, rel=1e-12)
    parts = [Ledger([entry]).epsilon(delta=1e-5, accountant=accountant) for entry in ledger.entries]
    assert max(parts) < expected < sum(parts)
    gaussians = Ledger([STATISTICS, FULL]).epsilon(delta=1e-5, accountant=accountant)
    assert gaussians >= exact_gaussian_epsilon([8.0] * 2 + [30.0] * 20, 1e-5) - 1e-6


def test_pld_is_the_default():
    ledger = Ledger([STATISTICS, TRAINING])
    assert ledger.epsilon(delta=1e-5) == ledger.epsilon(delta=1e-5, accountant="pld")
    assert ledger.epsilon(delta=1e-5) < ledger.epsilon(delta=1e-5, accountant="rdp")


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_order_of_entries_does_not_matter(accountant):
    epsilons = [
        Ledger(order).epsilon(delta=1e-5, accountant=accountant)
        for order in itertools.permutations([STATISTICS, TRAINING, FULL])
    ]
    assert max(epsilons) - min(epsilons) < 1e-6


@pytest.mark.parametrize(
    "leak", [NonPrivateDpEvent(), GaussianDpEvent(0.0), ComposedDpEvent([SelfComposedDpEvent(NonPrivateDpEvent(), 2)])]
)
def test_one_release_without_noise_spends_everything(leak):
    ledger = Ledger([STATISTICS, LedgerEntry("leak", leak), TRAINING])
    assert ledger.epsilon(delta=1e-5) == math.inf


@pytest.mark.parametrize(
    "event",
    [
        dp_accounting.LaplaceDpEvent(1.0),
        dp_accounting.UnsupportedDpEvent(),
        ComposedDpEvent([GaussianDpEvent(1.0), dp_accounting.LaplaceDpEvent(1.0)]),
        SelfComposedDpEvent(PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(1.0)), 3),
    ],
)
def test_unknown_events_are_refused_before_anything_changes(event):
    ledger = Ledger([STATISTICS])
    with pytest.raises(TypeError, match="the ledger stores ComposedDpEvent, GaussianDpEvent, NoOpDpEvent"):
        ledger.record(LedgerEntry("unknown", event))
    assert ledger.entries == (STATISTICS,)
    with pytest.raises(TypeError, match="the ledger stores"):
        Ledger([STATISTICS, LedgerEntry("unknown", event)])


def test_a_record_of_an_unknown_type():
    with pytest.raises(
        ValueError, match="event type 'LaplaceDpEvent': expected one of ComposedDpEvent, GaussianDpEvent"
    ):
        event_from_json({"type": "LaplaceDpEvent", "noise_multiplier": 1.0})


def test_finite_or_none():
    assert finite_or_none(2.5) == 2.5
    assert finite_or_none(0.0) == 0.0
    assert finite_or_none(math.inf) is None
    assert finite_or_none(math.nan) is None
