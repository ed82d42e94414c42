"""The ledger: what a run has released, as data.

An entry is a name, a ``dp_accounting`` event and what a reader needs to check it (sensitivity, where a bound came
from). ε is computed from the ledger and from nothing else. The ledger only grows.

>>> import dp_accounting
>>> ledger = Ledger()
>>> ledger.record(LedgerEntry("statistics", dp_accounting.GaussianDpEvent(8.0)))
>>> ledger.record(LedgerEntry("training", dp_accounting.GaussianDpEvent(4.0)))
>>> round(ledger.epsilon(delta=1e-5), 2)
1.05
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import dp_accounting
from dp_accounting.dp_event import RepeatAndSelectDpEvent

from scatterdp.privacy.accounting import Accountant, epsilon_of

_SCALAR_FIELDS: dict[type[dp_accounting.DpEvent], tuple[str, ...]] = {
    dp_accounting.NoOpDpEvent: (),
    dp_accounting.NonPrivateDpEvent: (),
    dp_accounting.GaussianDpEvent: ("noise_multiplier",),
    dp_accounting.PoissonSampledDpEvent: ("sampling_probability",),
    dp_accounting.SelfComposedDpEvent: ("count",),
    dp_accounting.ComposedDpEvent: (),
    RepeatAndSelectDpEvent: ("mean", "shape"),
}
_INFINITE = "infinite"  # JSON has no number for it
_TYPES = {kind.__name__: kind for kind in _SCALAR_FIELDS}


def event_to_json(event: dp_accounting.DpEvent) -> dict[str, Any]:
    """An event as plain JSON values; :func:`event_from_json` reads it back, equal.

    Raises:
        TypeError: an event type that the ledger does not know.
    """
    kind = type(event)
    if kind not in _SCALAR_FIELDS:
        raise TypeError(f"event {event}: the ledger stores {', '.join(sorted(_TYPES))}")
    record: dict[str, Any] = {"type": kind.__name__}
    record |= {name: getattr(event, name) for name in _SCALAR_FIELDS[kind]}
    if record.get("shape") == math.inf:
        record["shape"] = _INFINITE
    if isinstance(
        event, dp_accounting.PoissonSampledDpEvent | dp_accounting.SelfComposedDpEvent | RepeatAndSelectDpEvent
    ):
        record["event"] = event_to_json(event.event)
    if isinstance(event, dp_accounting.ComposedDpEvent):
        record["events"] = [event_to_json(part) for part in event.events]
    return record


def event_from_json(record: dict[str, Any]) -> dp_accounting.DpEvent:
    """The event that :func:`event_to_json` wrote.

    Raises:
        ValueError: a type that the ledger does not know, or a number that no mechanism has.
    """
    kind = _TYPES.get(record["type"])
    if kind is None:
        raise ValueError(f"event type {record['type']!r}: expected one of {', '.join(sorted(_TYPES))}")
    values = {name: record[name] for name in _SCALAR_FIELDS[kind]}
    if values.get("shape") == _INFINITE:
        values["shape"] = math.inf
    if "event" in record:
        values["event"] = event_from_json(record["event"])
    if "events" in record:
        values["events"] = [event_from_json(part) for part in record["events"]]
    _check_range(values)
    return kind(**values)


def _check_range(values: dict[str, Any]) -> None:
    """Raise ValueError for numbers that no mechanism has; an accountant would make something of them all the same."""
    count, rate, noise = (values.get(name) for name in ("count", "sampling_probability", "noise_multiplier"))
    if count is not None and not (isinstance(count, int) and count >= 0):
        raise ValueError(f"count={count!r}: expected a whole number ≥ 0")
    if rate is not None and not 0 <= rate <= 1:
        raise ValueError(f"sampling_probability={rate!r}: expected a number from 0 to 1")
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise_multiplier={noise!r}: expected a finite number ≥ 0")


@dataclass(frozen=True)
class LedgerEntry:
    """One release: its name, its event and the public facts that make the event true."""

    name: str
    event: dp_accounting.DpEvent
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "event": event_to_json(self.event), "details": self.details}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> LedgerEntry:
        """The entry that :meth:`to_json` wrote."""
        return cls(record["name"], event_from_json(record["event"]), dict(record["details"]))


class Ledger:
    """An append-only list of :class:`LedgerEntry`."""

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        self._entries: list[LedgerEntry] = []
        for entry in entries:
            self.record(entry)

    def record(self, entry: LedgerEntry) -> None:
        """Append one release.

        Raises:
            TypeError: an event that could not be written down, before anything changes.
        """
        event = event_from_json(event_to_json(entry.event))  # a copy: nobody else holds its lists
        self._entries.append(LedgerEntry(entry.name, event, dict(entry.details)))

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        return tuple(self._entries)

    @property
    def event(self) -> dp_accounting.DpEvent:
        """Everything spent so far as one composed event."""
        return dp_accounting.ComposedDpEvent([entry.event for entry in self._entries])

    def epsilon(self, *, delta: float, accountant: Accountant = "pld") -> float:
        """ε spent so far at ``delta``; 0 for an empty ledger, ``inf`` when something was released without noise."""
        return epsilon_of(self.event, delta=delta, accountant=accountant) if self._entries else 0.0

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [entry.to_json() for entry in self._entries]

    @classmethod
    def from_json(cls, records: list[dict[str, Any]]) -> Ledger:
        """The ledger that :meth:`to_json` wrote."""
        return cls(LedgerEntry.from_json(record) for record in records)


def finite_or_none(epsilon: float) -> float | None:
    """ε for JSON, which has no infinity: ``None`` stands for "no guarantee"."""
    return epsilon if math.isfinite(epsilon) else None
