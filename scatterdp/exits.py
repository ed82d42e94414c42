"""How a command ends: user errors as one sentence and exit code 2, Ctrl-C as one sentence and 130.

Of several processes (``torchrun``) the first that ends before its time tells why, in one sentence, and leaves it for ``torchrun``'s own
report; the others, which end for want of it, are silent and give the same exit code.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from scatterdp.errors import ConfigError, ProcessLostError, UserError
from scatterdp.ranks import connected, end, ranks_of_environment, several

INTERRUPTED_WITH_NOTHING = "interrupted: nothing was written"
"""What a command says that keeps nothing of an interrupted run."""

_PATIENCE = 5  # seconds in which torchrun ends the others, if it is on this machine
_LOST = 1  # the exit code when a process is gone that could tell nothing
_UNREAD = 128 + 13  # as a program that SIGPIPE ends
_Config = TypeVar("_Config")


def exit_code(command: Callable[[], int | None]) -> int:
    """Run ``command``; returns its exit code (None: 0), or 2 after a user error told on standard error.

    A process that is connected to others ends here, with that code.
    """
    if several():
        signal.signal(signal.SIGTERM, _interrupt)  # how torchrun ends the others
    code = _code_of(command)
    if connected():
        end(code)
    return code


def _code_of(command: Callable[[], int | None]) -> int:
    try:
        code = command() or 0
        sys.stdout.flush()
        if connected():
            with suppress(ProcessLostError):  # another has ended already
                ranks_of_environment().wait()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return _UNREAD
    except ProcessLostError as error:
        return _told(f"error: {error}", _LOST, because_of_another=True)
    except UserError as error:
        return _told(f"error: {error}", 2)
    except KeyboardInterrupt as interrupt:
        sentence = str(interrupt) or "interrupted: the same command starts again, and uses what was finished"
        return _told(sentence, 130, because_of_another=several())
    except SystemExit as stop:  # the command line's reader, which has told
        if several():
            _first_to_end(stop.code if isinstance(stop.code, int) else 1)
        raise


def _nobody_reads() -> bool:
    """Whether the reader of standard output is gone, as ``head`` is when it has its lines; what is printed from now on goes nowhere."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file
        return False
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def parsed(config: type[_Config], *, prog: str, args: list[str] | None, description: str | None) -> _Config:
    """A command line's config. Of several processes the first reads it for all, so that its errors are told once."""
    ranks = ranks_of_environment()
    read = None
    if ranks.rank == 0:
        import tyro  # a table of commands does without

        given = _without_values(config, sys.argv[1:] if args is None else args)
        read = tyro.cli(config, prog=prog, args=given, use_underscores=True, description=description)
        _check_resume_alone(read, given)
    return ranks.share(read)


def _check_resume_alone(config: Any, args: list[str]) -> None:
    """Refuse flags beside ``--resume``, also those whose value is the default: the run may have another."""
    path, names = getattr(config, "resume", None), {field.name for field in fields(config)} - {"resume"}
    for arg in args if path is not None else ():
        name, _, value = arg.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if arg.startswith("--") and (name in names or name.removeprefix("no_") in names):
            given = f"{name}={value}" if value else name
            raise ConfigError(f"{given} beside resume={path}: a run goes on with its own config, leave {name} out")


def _without_values(config: Any, args: list[str]) -> list[str]:
    """``--flag=True`` and ``--flag=False`` as the flag and its negation, for flags that are one or the other."""
    switches = {field.name for field in fields(config) if field.type == "bool"}
    result: list[str] = []
    for arg in args:
        name, _, value = arg.removeprefix("--").partition("=")
        switch = arg.startswith("--") and name in switches and value.lower() in ("true", "false")
        result.append(f"--{'' if value.lower() == 'true' else 'no_'}{name}" if switch else arg)
    return result


def launcher() -> str:
    """How this command was started, up to the module's name."""
    if not several():
        return "python -m"
    here = os.environ.get("LOCAL_WORLD_SIZE")
    return f"torchrun --nproc_per_node={here} -m" if here == os.environ["WORLD_SIZE"] else "torchrun … -m"


def check_one_process(what: str) -> None:
    """Refuse what several processes would each do in full.

    Raises:
        UserError: ``torchrun`` started more than one process.
    """
    if several():
        raise UserError(
            f"{what}: runs in one process, and {os.environ['WORLD_SIZE']} were started; start it without torchrun"
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _told(sentence: str, code: int, *, because_of_another: bool = False) -> int:
    """Tell a sentence, unless another process has told why all end; returns the exit code."""
    first = _first_to_end(code) if several() else None
    if first is not None:
        # torchrun takes the process that ends first for the cause, so it is not to be this one
        with suppress(KeyboardInterrupt):
            time.sleep(_PATIENCE)
        return first if because_of_another else code
    print(sentence, file=sys.stderr, flush=True)
    if several() and (report := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        more = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(report).write_text(json.dumps({"message": {"message": sentence, "extraInfo": more}}))
    return code


def _first_to_end(code: int) -> int | None:
    """None when no process has ended before this one, else the code of the first."""
    from torch.distributed.rendezvous import rendezvous  # seconds to import

    mine = f"{code} {os.environ['RANK']}"
    try:
        store, _, _ = next(iter(rendezvous("env://")))
        first = store.compare_set("first to end", "", mine).decode()
    except (RuntimeError, ValueError):  # the store has gone with torchrun
        return None
    return None if first == mine else int(first.split()[0])
