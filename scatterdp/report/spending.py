"""What each mechanism of a run spends: alone, and all together."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from scatterdp.privacy.accounting import Accountant
from scatterdp.privacy.ledger import Ledger, finite_or_none

TOGETHER = "together"


@dataclass(frozen=True)
class Spending:
    """ε of a mechanism at the run's δ by the run's accountant; None: no guarantee."""

    mechanism: str
    epsilon: float | None


def spending(certificate: dict[str, Any]) -> list[Spending]:
    """ε of every name in the ledger as if nothing else had been released, and last of everything :data:`TOGETHER`.

    Args:
        certificate: checked, see :func:`scatterdp.privacy.checking.check_certificate`.
    """
    ledger = json.dumps([{**entry, "details": {}} for entry in certificate["ledger"]])
    return _spending(ledger, certificate["delta"], certificate["accountant"])


@functools.cache
def _spending(records: str, delta: float, accountant: Accountant) -> list[Spending]:
    """Seeds of one setting share a ledger: accounted once."""
    entries = Ledger.from_json(json.loads(records)).entries
    parts = {name: Ledger(e for e in entries if e.name == name) for name in dict.fromkeys(e.name for e in entries)}
    parts[TOGETHER] = Ledger(entries)
    return [
        Spending(name, finite_or_none(part.epsilon(delta=delta, accountant=accountant))) for name, part in parts.items()
    ]
