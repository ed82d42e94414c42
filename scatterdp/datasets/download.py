"""One file from the web, with limits on size and on silence."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pooch
import requests

from scatterdp.errors import DatasetError

FIRST_BYTE_SECONDS = 8.0
"""Longest wait for the first byte of content."""
STALL_SECONDS = 30.0
"""Longest silence after it."""
TOTAL_SECONDS = 1800.0
"""Longest download."""


class _Sink:
    """The file that a download writes to; it refuses more than ``max_bytes`` and, once abandoned, everything."""

    def __init__(self, file: BinaryIO, max_bytes: int, url: str) -> None:
        self._file, self._max_bytes, self._url = file, max_bytes, url
        self.received = 0
        self.last_write = time.monotonic()
        self.abandoned = False

    def write(self, chunk: bytes) -> int:
        if self.abandoned:
            raise DatasetError(f"{self._url} was given up")
        self.received += len(chunk)
        self.last_write = time.monotonic()
        if self.received > self._max_bytes:
            raise DatasetError(f"{self._url} is larger than the expected {self._max_bytes} bytes")
        return self._file.write(chunk)

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is closed."""


def download(url: str, path: Path, *, max_bytes: int) -> None:
    """Download ``url`` to ``path``.

    The transfer runs in a thread that is abandoned when it stays silent, since no timeout of an HTTP client
    covers all ways to hang: name resolution, a proxy that accepts and says nothing, headers that trickle.

    Raises:
        DatasetError: no answer, an error status, a stall, or more than ``max_bytes`` bytes; ``path`` may then
            hold a part.
    """
    outcome: list[BaseException] = []
    started = time.monotonic()
    downloader = pooch.HTTPDownloader(
        chunk_size=1 << 16,
        timeout=(FIRST_BYTE_SECONDS, STALL_SECONDS),
        headers={"Accept-Encoding": "identity"},  # else a .gz file may arrive already decompressed
    )
    file = path.open("wb")
    sink = _Sink(file, max_bytes, url)

    def transfer() -> None:
        try:
            with file:
                downloader(url, sink, None)  # type: ignore[arg-type]
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=transfer, name=f"download {url}", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
            now = time.monotonic()
            silence = STALL_SECONDS if sink.received else FIRST_BYTE_SECONDS
            if thread.is_alive() and now - sink.last_write > silence:
                raise DatasetError(f"{url} sent nothing for {silence:.0f} seconds")
            if thread.is_alive() and now - started > TOTAL_SECONDS:
                raise DatasetError(f"{url} took more than {TOTAL_SECONDS:.0f} seconds")
    finally:
        sink.abandoned = True
    if not outcome:
        return
    error = outcome[0]
    if isinstance(error, requests.HTTPError) and error.response is not None:
        raise DatasetError(f"{url} answered {error.response.status_code} {error.response.reason}") from error
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        raise DatasetError(f"{url} cannot be reached ({_innermost(error)})") from error
    if isinstance(error, DatasetError):
        raise error
    # ValueError: headers that make no sense.
    if isinstance(error, requests.RequestException | OSError | ValueError):
        raise DatasetError(f"{url} failed ({_innermost(error)})") from error
    raise error


def _innermost(error: BaseException) -> str:
    """The shortest true reason: HTTP clients wrap it several times over."""
    reason = error
    while True:
        inner = getattr(reason, "reason", None) or (reason.args[0] if reason.args else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = " ".join(str(reason).split())
    # urllib3 puts the connection object in front of the sentence.
    text = text.rpartition(">: ")[2] if ">: " in text else text.rpartition("): ")[2] if "): " in text else text
    text = re.sub(r"\"\)+$", "", text)  # what is left of the wrapping
    return f"{type(reason).__name__}: {text[:160]}" if text else type(reason).__name__
