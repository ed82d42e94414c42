"""A Python of another environment that answers questions: for libraries that cannot be installed beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scatterdp.errors import ConfigError, UserError

_PATIENCE = 5  # seconds for a process that was told to end


class Peer:
    """A process that reads one JSON object a line and answers each with one; before any question it tells what it is (:attr:`versions`).

    Args:
        python: the interpreter.
        worker: the file that it runs; imports nothing of scatterdp.
        threads: how many threads jax may use there.
        argument: the flag that named the interpreter, for messages.
        remedy: half a sentence: how to make the environment.

    Raises:
        ConfigError: it does not run, or ends without telling what it is.
    """

    def __init__(self, python: Path, worker: Path, *, threads: int, argument: str, remedy: str) -> None:
        # NPROC is what XLA's thread pool goes by.
        environment = {**os.environ, "NPROC": str(threads), "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        environment["JAX_TRACEBACK_FILTERING"] = "off"  # the last line of an error is then the error
        environment.pop("PYTHONPATH", None)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        try:
            self._process = subprocess.Popen([str(python), str(worker)], text=True, env=environment, **pipes)
        except OSError as error:
            self._errors.close()
            raise ConfigError(f"{argument}={python}: does not run ({error.strerror}); {remedy}") from error
        try:
            self.versions: dict[str, str] = self._answer()
        except UserError as error:
            self.close()
            raise ConfigError(f"{argument}={python}: {error}; {remedy}") from None

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Raises:
            UserError: the process has ended; tells its last words.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return answer
        if line:
            raise UserError(f"the process of the other environment answers {line.strip()[:80]!r}, which is no answer")
        code = self._process.wait()
        self._errors.seek(0)
        words = [told.strip() for told in self._errors if told.strip()]
        raise UserError(
            f"the process of the other environment has ended with exit code {code}"
            + (f" ({words[-1]})" if words else "")
        )

    def close(self) -> None:
        """Let it end, or end it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
