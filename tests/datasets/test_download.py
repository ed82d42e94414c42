from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scatterdp.datasets import download as module
from scatterdp.datasets.download import download
from scatterdp.errors import DatasetError


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/good":
            self.reply(200, b"0123456789")
        elif self.path == "/short":
            self.reply(200, b"01234", length=10)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        elif self.path == "/packed":
            wants_gzip = "gzip" in self.headers.get("Accept-Encoding", "")
            self.send_response(200)
            if wants_gzip:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(b"content"))
        elif self.path == "/nonsense":
            self.send_response(200)
            self.send_header("Content-Length", "many")
            self.end_headers()
        elif self.path == "/stall":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 20))
            self.end_headers()
            self.wfile.write(bytes(1 << 17))
            self.wfile.flush()
            time.sleep(3)
        else:
            self.reply(404, b"no")

    def reply(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def tarpit() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_file(site: str, tmp_path: Path) -> None:
    download(f"{site}/good", tmp_path / "f", max_bytes=10)
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_a_gz_file_arrives_as_it_is(site: str, tmp_path: Path) -> None:
    download(f"{site}/packed", tmp_path / "f.gz", max_bytes=100)
    assert gzip.decompress((tmp_path / "f.gz").read_bytes()) == b"content"


def test_an_error_status(site: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="/none answered 404 Not Found"):
        download(f"{site}/none", tmp_path / "f", max_bytes=10)


def test_headers_that_make_no_sense(site: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"/nonsense (failed|cannot be reached) \("):
        download(f"{site}/nonsense", tmp_path / "f", max_bytes=10)


def test_a_short_answer(site: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"/short (failed|cannot be reached) \(.*IncompleteRead"):
        download(f"{site}/short", tmp_path / "f", max_bytes=10)


@pytest.mark.parametrize("path", ["good", "endless"])
def test_an_answer_that_is_too_large(site: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(DatasetError, match=f"/{path} is larger than the expected 9 bytes"):
        download(f"{site}/{path}", tmp_path / "f", max_bytes=9)
    assert (tmp_path / "f").stat().st_size <= 9


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DatasetError, match=r"cannot be reached \(.*[Rr]efused"):
        download(f"http://127.0.0.1:{port}/f", tmp_path / "f", max_bytes=9)


def test_silence_before_the_first_byte(tarpit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BYTE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"cannot be reached|sent nothing for"):
        download(f"http://127.0.0.1:{tarpit}/f", tmp_path / "f", max_bytes=9)
    assert time.monotonic() - started < 3


def test_a_proxy_that_says_nothing(tarpit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BYTE_SECONDS", 0.3)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{tarpit}")
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"cannot be reached|sent nothing for"):
        download("https://data.invalid/f", tmp_path / "f", max_bytes=9)
    assert time.monotonic() - started < 3


def test_name_resolution_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*args: object, **keywords: object) -> None:
        release.wait(5)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(module, "FIRST_BYTE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DatasetError, match="sent nothing for 0 seconds"):
        download("http://data.invalid/f", tmp_path / "f", max_bytes=9)
    assert time.monotonic() - started < 3
    release.set()


def test_a_stall_in_the_middle(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"/stall (sent nothing for|cannot be reached|failed)"):
        download(f"{site}/stall", tmp_path / "f", max_bytes=1 << 20)
    assert time.monotonic() - started < 2.5
