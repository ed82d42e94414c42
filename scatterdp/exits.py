"""How a command ends: user errors as one sentence and exit code 2, Ctrl-C as one sentence and 130."""

from __future__ import annotations

import sys
from collections.abc import Callable

from scatterdp.errors import UserError

INTERRUPTED_WITH_NOTHING = "interrupted: nothing was written"
"""What a command says that keeps nothing of an interrupted run."""


def exit_code(command: Callable[[], int | None]) -> int:
    """Run ``command``; returns its exit code (None: 0), or 2 after a user error told on standard error."""
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(
            str(interrupt) or "interrupted: what was finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
