"""The feature cache: content, kills at any moment, locks, full disks, damage."""

from __future__ import annotations

import dataclasses
import errno
import filecmp
import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from scatterdp.cache import (
    SPLITS,
    FeatureCache,
    cache_path,
    companion_paths,
    extract_features,
    extraction,
    files,
    journal,
    layout,
    listing,
    lock_owner,
    partial_path,
    summarize,
    verify,
    writer_lock,
)
from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import CacheError, CacheLockedError, ConfigError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import fingerprint

ROOT = Path(__file__).parents[1]
ROWS = {"train": 61, "test": 22}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsConfig:
    scale: float = 1.0
    corners: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.5, 0.5))  # a list of lists once it is stored


class Rows:
    """A light extractor: four multiples of the image. Counts its images; may be slow, or spoil one image."""

    name = "rows"

    def __init__(self, scale: float = 1.0, *, delay: float = 0.0, spoil: Callable[[torch.Tensor], None] | None = None):
        self.config = RowsConfig(scale=scale)
        self.input_shape: tuple[int, int, int] = (1, 8, 8)
        self.output_shape = (4, 8, 8)
        self.fingerprint = fingerprint("Rows", self.config, self.input_shape, preprocessing={}, versions={})
        self.delay, self.spoil, self.images = delay, spoil, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        self.images += len(images)
        features = torch.cat([images * (self.config.scale * k) for k in range(1, 5)], dim=1)
        if self.spoil is not None:
            self.spoil(features)
        return features

    def to(self, device: torch.device | str) -> Self:
        return self


def made_dataset(seed: int = 0, name: str = "made") -> Dataset:
    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for split, rows in ROWS.items():
        arrays[f"x_{split}"] = generator.integers(1, 256, (rows, 8, 8), dtype=np.uint8)
        arrays[f"y_{split}"] = generator.integers(0, 3, rows)
    return Dataset(name=name, class_names=("a", "b", "ç"), **arrays)


DATASET = made_dataset()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Four rows of 1 KiB a chunk, and a journal after each."""
    monkeypatch.setattr(layout, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(extraction, "_BATCH_BYTES", 4096)
    monkeypatch.setattr(extraction, "_JOURNAL_SECONDS", 0.0)


def journaled_count(path: Path) -> int:
    return sum(map(journal.count, journal.journaled(path).values()))


def expected_features(extractor: Rows, split: str, dtype: str = "float32") -> np.ndarray:
    images = torch.from_numpy(to_channels_first_float(DATASET.split(split)[0]))
    return extractor(images).numpy().astype(dtype)


def published(folder: Path, **arguments: Any) -> Path:
    with extract_features(DATASET, Rows(), features_dir=folder, **arguments) as cache:
        return cache.path


def content(path: Path) -> dict[str, Any]:
    """Structure, attributes and arrays of an HDF5 file."""
    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        found[name] = {key: item.attrs[key] for key in item.attrs}
        if isinstance(item, h5py.Dataset):
            found[name] |= {"": (item.shape, item.dtype, item.chunks, item.compression, item[:].tobytes())}

    with h5py.File(path, "r") as file:
        note("/", file)
        file.visititems(note)
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- other processes


class Child:
    """A forked process that runs a function and reports what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        read, write = os.pipe()
        self.read, self.pid = read, os.fork()
        if self.pid == 0:
            try:
                os.close(read)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                torch.set_num_threads(1)
                try:
                    report = {"result": function()}
                except BaseException as error:
                    report = {"error": type(error).__name__, "message": str(error)}
                os.write(write, json.dumps(report).encode())
            finally:
                os._exit(0)
        os.close(write)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> dict[str, Any]:
        """What the function returned or raised; empty when the process was killed."""
        text = b""
        while part := os.read(self.read, 65536):
            text += part
        os.close(self.read)
        os.waitpid(self.pid, 0)
        return json.loads(text) if text else {}


def extract_in_child(folder: Path, extractor: Rows, **arguments: Any) -> Child:
    def extract() -> int:
        extract_features(DATASET, extractor, features_dir=folder, **arguments).close()
        return extractor.images

    return Child(extract)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


# ---------------------------------------------------------------- content


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_holds_features_labels_norms_and_digests(tmp_path, dtype):
    extractor = Rows(2.0)
    with extract_features(DATASET, extractor, features_dir=tmp_path / "new" / "folder", dtype=dtype) as cache:
        assert cache.path == cache_path(DATASET, extractor, features_dir=tmp_path / "new" / "folder", dtype=dtype)
        assert cache.path.name.startswith(f"made-rows-{dtype}-")
        assert (cache.dtype, cache.output_shape, cache.image_shape) == (dtype, (4, 8, 8), (1, 8, 8))
        assert (cache.dataset_name, cache.class_names) == ("made", ("a", "b", "ç"))
        assert (cache.dataset_fingerprint, cache.extractor_fingerprint) == (DATASET.fingerprint, extractor.fingerprint)
        corners = [[1.0, 0.0], [0.5, 0.5]]
        assert (cache.extractor_name, cache.extractor_config) == ("rows", {"scale": 2.0, "corners": corners})
        assert set(cache.versions) == {"scatterdp", "torch", "kymatio", "h5py"}
        assert cache.versions["h5py"] == h5py.__version__
        for split in SPLITS:
            features = expected_features(extractor, split, dtype)
            stored = cache.read(split, range(ROWS[split]))
            assert stored.dtype == dtype
            np.testing.assert_array_equal(stored, features)
            assert cache.num_rows(split) == ROWS[split]
            assert cache.labels(split).dtype == np.int64
            np.testing.assert_array_equal(cache.labels(split), DATASET.split(split)[1])
            norms = (features.astype(np.float64) ** 2).sum((1, 2, 3))
            assert cache.squared_norms(split).dtype == np.float64
            np.testing.assert_allclose(cache.squared_norms(split), norms, rtol=1e-12)
            with h5py.File(cache.path, "r", locking=False) as file:  # as the open cache has it
                group: Any = file[split]
                per_chunk = cache.rows_per_chunk(split)
                assert per_chunk == (4 if dtype == "float32" else 8)
                for chunk, digest in enumerate(group["chunk_xxh3_128"][:]):
                    rows = features[chunk * per_chunk : (chunk + 1) * per_chunk]
                    assert digest.tobytes() == xxhash.xxh3_128_digest(rows.tobytes())
        verify(cache.path)
        assert names(cache.path.parent) == {cache.path.name, cache.path.name + ".lock"}


def test_chunks_hold_about_two_mebibytes(monkeypatch, tmp_path):
    monkeypatch.undo()
    cifar_row, mnist_row = 243 * 64 * 4, 81 * 49 * 4
    assert layout.rows_per_chunk(50000, cifar_row) == 33
    assert layout.rows_per_chunk(50000, mnist_row) == 132
    assert layout.rows_per_chunk(50000, 3 << 20) == 1
    assert layout.rows_per_chunk(7, mnist_row) == 7


def test_the_scatternet_end_to_end(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0])
    dataset = Dataset(
        name="rgb", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1], class_names=("a", "b")
    )
    extractor = make_extractor("scatternet", (3, 8, 8))
    with extract_features(dataset, extractor, features_dir=tmp_path) as cache:
        expected = extractor(torch.from_numpy(to_channels_first_float(images))).numpy()
        np.testing.assert_allclose(cache.read("train", [0, 1, 2]), expected, rtol=0, atol=1e-6)
        assert cache.extractor_config == dataclasses.asdict(extractor.config)
        assert (cache.extractor_config["J"], cache.extractor_config["normalize"]) == (2, "imagenet")
        verify(cache.path)


@given(indices=st.lists(st.integers(0, ROWS["train"] - 1), max_size=80), block=st.integers(1, 70))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_in_any_order_and_any_blocks_read_the_same(shared_cache, indices, block):
    whole = expected_features(Rows(), "train")
    with FeatureCache(shared_cache) as cache:
        np.testing.assert_array_equal(cache.read("train", indices), whole[np.array(indices, dtype=int)])
        blocks = list(cache.iter_rows("train", block))
    assert [start for start, _ in blocks] == list(range(0, 61, block))
    assert all(len(rows) == block for _, rows in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), whole)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_CHUNK_BYTES", 4096)
        patch.setattr(extraction, "_BATCH_BYTES", 4096)
        return published(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9, 1000])
def test_the_file_does_not_depend_on_the_batch_size_or_the_time(shared_cache, tmp_path, batch_size):
    path = published(tmp_path, batch_size=batch_size)
    assert path.name == shared_cache.name
    assert filecmp.cmp(path, shared_cache, shallow=False)
    assert content(path) == content(shared_cache)


def test_file_names_tell_data_set_extractor_and_type_apart(tmp_path):
    paths = {
        cache_path(DATASET, Rows(), features_dir=tmp_path),
        cache_path(DATASET, Rows(), features_dir=tmp_path, dtype="float16"),
        cache_path(DATASET, Rows(2.0), features_dir=tmp_path),
        cache_path(made_dataset(1), Rows(), features_dir=tmp_path),
    }
    assert len(paths) == 4
    assert all(files.FILE_NAME.fullmatch(path.name) for path in paths)
    odd = cache_path(made_dataset(name="a/b c"), Rows(), features_dir=tmp_path)
    assert odd.parent == tmp_path
    assert odd.name.startswith("a_b_c-rows-float32-")


def test_a_second_call_extracts_nothing(tmp_path):
    first = Rows()
    extract_features(DATASET, first, features_dir=tmp_path).close()
    assert first.images == 83
    second = Rows()
    with extract_features(DATASET, second, features_dir=tmp_path) as cache:
        assert cache.num_rows("train") == 61
    assert second.images == 0


def test_progress_is_shown_on_request_and_counts_from_where_it_resumes(tmp_path, capsys):
    interrupted(tmp_path)
    assert capsys.readouterr() == ("", "")
    extract_features(DATASET, Rows(), features_dir=tmp_path, progress=True).close()
    out, error = capsys.readouterr()
    assert out == ""
    assert "40/83" in error
    assert "83/83" in error


def test_reading_imports_no_torch():
    code = "import scatterdp.cache, sys; sys.exit('torch' in sys.modules or 'kymatio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype='bfloat16': expected one of float32, float16"),
        ({"batch_size": 0}, "batch_size=0: expected an integer ≥ 1"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        extract_features(DATASET, Rows(), features_dir=tmp_path, **arguments)
    assert not names(tmp_path)


def test_an_extractor_for_another_image_shape_is_refused(tmp_path):
    extractor = Rows()
    extractor.input_shape = (3, 8, 8)
    with pytest.raises(ConfigError, match=r"input_shape=\(3, 8, 8\): the images of made are \(1, 8, 8\)"):
        extract_features(DATASET, extractor, features_dir=tmp_path)


def test_the_name_of_an_extractor_is_none(tmp_path):
    name: Any = "scatternet"
    with pytest.raises(ConfigError, match=r"^extractor='scatternet': expected what make_extractor\('scatternet', "):
        extract_features(DATASET, name, features_dir=tmp_path)
    assert not names(tmp_path)


def test_arguments_of_the_readers_are_checked(shared_cache):
    split: Any = "validation"
    with FeatureCache(shared_cache) as cache:
        with pytest.raises(ConfigError, match="split='validation': expected 'train' or 'test'"):
            cache.labels(split)
        with pytest.raises(ConfigError, match="rows_per_block=0"):
            next(cache.iter_rows("train", 0))
        for bad in (-1, 61):
            with pytest.raises(IndexError, match="expected 0 to 60"):
                cache.read("train", [3, bad])
        assert cache.read("train", []).shape == (0, 4, 8, 8)


# ---------------------------------------------------------------- kills


def test_killed_at_random_moments_the_next_run_completes_it(shared_cache, tmp_path):
    moments = random.Random(0)
    kills = fresh = resumed = 0
    whole: list[float] = []
    for number in range(4):  # the first also imports
        begin = time.monotonic()
        extract_in_child(tmp_path / f"whole {number}", Rows(delay=0.003)).wait()
        whole.append(time.monotonic() - begin)
    longest = 0.7 * min(whole)  # as slow as the machine is
    while kills < 24:
        folder = tmp_path / str(fresh)
        path = folder / shared_cache.name
        fresh += 1
        while True:
            before = journaled_count(path)
            child = extract_in_child(folder, Rows(delay=0.003))
            time.sleep(moments.uniform(0.0, longest))
            child.signal(signal.SIGKILL)
            report = child.wait()
            if report:  # it was faster than the kill
                break
            kills += 1
            resumed += 0 < before < 83
            if path.exists():
                break
            if moments.random() < 0.15:  # let it finish now
                break
        extractor = Rows()
        extract_features(DATASET, extractor, features_dir=folder).close()
        assert filecmp.cmp(path, shared_cache, shallow=False)
        assert content(path) == content(shared_cache)
        verify(path)
        assert names(folder) <= {path.name, path.name + ".lock", path.name + ".pid", path.name + ".progress-0"}
    assert resumed >= 5, "the kills did not hit the middle of the work"


class Killer:
    """Kills its own process at the n-th thing done to the disk; a write may be half done then."""

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.seen = 0

    def step(self) -> bool:
        self.seen += 1
        return self.seen == self.left

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if self.step():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return wrapped

    def halfway(self, write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(file: Any, offset: int, content: bytes) -> None:
            if self.step():
                write(file, offset, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write(file, offset, content)

        return wrapped

    def arm(self) -> None:
        os.replace, os.fsync = self.around(os.replace), self.around(os.fsync)
        Path.unlink, Path.write_text = self.around(Path.unlink), self.around(Path.write_text)
        layout.allocate = self.around(layout.allocate)
        extraction.write_at = self.halfway(extraction.write_at)
        layout.write_attributes = self.around(layout.write_attributes)
        layout.create_split = self.around(layout.create_split)


class Inline(futures.Executor):
    """Does at once what it is given: the same steps in the same order each time."""

    def __init__(self, *_: Any) -> None: ...

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


def test_killed_before_each_single_step_the_next_run_completes_it(shared_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(layout, "_CHUNK_BYTES", 32 << 10)
    monkeypatch.setattr(extraction, "_BATCH_BYTES", 32 << 10)
    whole = published(tmp_path / "whole")

    def run(folder: Path, moment: int) -> int:
        killer = Killer(moment)
        killer.arm()
        extract_features(DATASET, Rows(), features_dir=folder).close()
        return killer.seen

    steps = Child(lambda: run(tmp_path / "count", 0)).wait()["result"]
    assert steps > 25
    for moment in range(1, steps + 1):
        folder = tmp_path / str(moment)
        assert Child(lambda folder=folder, moment=moment: run(folder, moment)).wait() == {}, "it was not killed"
        path = folder / whole.name
        if path.exists():
            verify(path)
        extract_features(DATASET, Rows(), features_dir=folder).close()
        assert filecmp.cmp(path, whole, shallow=False), f"killed at step {moment}"
        shutil.rmtree(folder)


def test_a_resumed_run_repeats_no_complete_chunk(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    child = extract_in_child(tmp_path, Rows(delay=0.01))
    wait_until(lambda: journaled_count(path) >= 20)
    child.signal(signal.SIGKILL)
    assert child.wait() == {}
    done = journaled_count(path)
    assert 20 <= done < 83
    extractor = Rows()
    extract_features(DATASET, extractor, features_dir=tmp_path).close()
    assert extractor.images == 83 - done
    assert filecmp.cmp(path, shared_cache, shallow=False)


def test_interrupt_leaves_a_resumable_partial_and_propagates(shared_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_JOURNAL_SECONDS", 1000.0)  # so what is saved was saved at the interrupt
    path = tmp_path / shared_cache.name
    child = extract_in_child(tmp_path, Rows(delay=0.01))
    wait_until(partial_path(path).exists)
    time.sleep(0.1)
    child.signal(signal.SIGINT)
    assert child.wait()["error"] == "KeyboardInterrupt"
    assert names(tmp_path) == {path.name + suffix for suffix in (".partial", ".progress-0", ".lock")}
    done = journaled_count(path)
    assert 4 <= done < 83
    extractor = Rows()
    extract_features(DATASET, extractor, features_dir=tmp_path).close()
    assert extractor.images == 83 - done
    assert filecmp.cmp(path, shared_cache, shallow=False)


def test_a_reader_never_sees_an_unfinished_file(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    child = extract_in_child(tmp_path, Rows(delay=0.005))
    wait_until(partial_path(path).exists)
    with pytest.raises(CacheError, match="no such feature cache; extract the features with"):
        FeatureCache(path)
    renamed = tmp_path / "renamed.h5"
    renamed.write_bytes(partial_path(path).read_bytes())
    with pytest.raises(
        CacheError, match=r"the \w+ split is not complete; remove it with `python -m scatterdp cache rm"
    ):
        FeatureCache(renamed)
    wait_until(path.exists)
    verify(path)
    assert child.wait() == {"result": 83}


# ---------------------------------------------------------------- what a last writer may have left


def interrupted(folder: Path, rows: int = 40) -> Path:
    """A partial file with that many rows; returns the path of the cache to be."""

    def stop(features: torch.Tensor) -> None:
        if extractor.images > rows:
            raise KeyboardInterrupt

    extractor = Rows(spoil=stop)
    with pytest.raises(KeyboardInterrupt):
        extract_features(DATASET, extractor, features_dir=folder)
    path = cache_path(DATASET, extractor, features_dir=folder)
    assert journaled_count(path) == rows
    return path


def spoil_partial_truncated(path: Path, patch: pytest.MonkeyPatch) -> None:
    os.truncate(partial_path(path), 30000)


def spoil_partial_text(path: Path, patch: pytest.MonkeyPatch) -> None:
    partial_path(path).write_text("no HDF5 at all")


def spoil_partial_schema(path: Path, patch: pytest.MonkeyPatch) -> None:
    with h5py.File(partial_path(path), "r+") as file:
        file.attrs.modify("schema_version", np.int64(99))


def spoil_partial_versions(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(extraction, "_version", lambda name: "99.0")


def spoil_journal_text(path: Path, patch: pytest.MonkeyPatch) -> None:
    Path(f"{path}.progress-0").write_text("{")


def spoil_journal_rows(path: Path, patch: pytest.MonkeyPatch) -> None:
    Path(f"{path}.progress-0").write_text('{"train": [[0, 41]], "test": []}')


def spoil_journal_range(path: Path, patch: pytest.MonkeyPatch) -> None:
    Path(f"{path}.progress-0").write_text('{"train": [[0, 64]], "test": []}')


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_partial_truncated, "cannot be resumed, starting over (is truncated)"),
        (spoil_partial_text, "cannot be resumed, starting over (is not a readable HDF5 file)"),
        (spoil_partial_schema, "cannot be resumed, starting over (has schema version 99"),
        (spoil_partial_versions, "cannot be resumed, starting over (it was begun by other versions of the libraries)"),
        (spoil_journal_text, "progress-0: is unreadable"),
        (spoil_journal_rows, "train rows 0 to 41 cannot be"),
        (spoil_journal_range, "train rows 0 to 64 cannot be"),
    ],
)
def test_what_cannot_be_resumed_is_started_over_and_said_once(tmp_path, monkeypatch, caplog, spoil, reason):
    path = interrupted(tmp_path)
    spoil(path, monkeypatch)
    extractor = Rows()
    with caplog.at_level(logging.WARNING):
        extract_features(DATASET, extractor, features_dir=tmp_path).close()
    assert extractor.images == 83
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "starting over" in record.getMessage()
    verify(path)
    assert names(tmp_path) == {path.name, path.name + ".lock"}


def test_a_partial_file_without_a_journal_is_written_from_the_first_row(tmp_path):
    path = interrupted(tmp_path)
    Path(f"{path}.progress-0").unlink()
    extractor = Rows()
    extract_features(DATASET, extractor, features_dir=tmp_path).close()
    assert extractor.images == 83


def test_a_journal_without_its_partial_file_counts_for_nothing(tmp_path):
    path = interrupted(tmp_path)
    partial_path(path).unlink()
    extractor = Rows()
    extract_features(DATASET, extractor, features_dir=tmp_path).close()
    assert extractor.images == 83
    verify(path)


# ---------------------------------------------------------------- locks


def hold_lock(path: Path, ready: Path, seconds: float = 60) -> None:
    path.parent.mkdir(exist_ok=True)
    with writer_lock(path):
        ready.touch()
        time.sleep(seconds)


def test_a_live_writer_keeps_others_out_and_a_dead_one_does_not(shared_cache, tmp_path):
    path, ready = tmp_path / "features" / shared_cache.name, tmp_path / "ready"
    child = Child(lambda: hold_lock(path, ready))
    wait_until(ready.exists)
    assert lock_owner(path) == f"process {child.pid}"
    extractor = Rows()
    with pytest.raises(CacheLockedError, match=rf"{path.name}: process {child.pid} is writing this .*; wait until"):
        extract_features(DATASET, extractor, features_dir=path.parent)
    assert extractor.images == 0
    child.signal(signal.SIGKILL)
    child.wait()
    assert Path(f"{path}.pid").exists()  # what it left does not block
    assert lock_owner(path) is None
    extract_features(DATASET, extractor, features_dir=path.parent).close()
    assert extractor.images == 83


def test_a_lock_held_for_an_instant_is_no_error(shared_cache, tmp_path):
    path, ready = tmp_path / "features" / shared_cache.name, tmp_path / "ready"
    child = Child(lambda: hold_lock(path, ready, seconds=0.05))
    wait_until(ready.exists)
    extract_features(DATASET, Rows(), features_dir=path.parent).close()
    assert child.wait() == {"result": None}


def test_a_killed_process_that_held_the_progress_bars_lock_blocks_nobody(tmp_path):
    # tqdm's lock is shared by forked processes, and stays held when its holder is killed.
    def poisoned() -> int:
        tqdm.set_lock(multiprocessing.RLock())

        def die() -> None:
            tqdm.get_lock().acquire()
            os.kill(os.getpid(), signal.SIGKILL)

        assert Child(die).wait() == {}
        extractor = Rows()
        extract_features(DATASET, extractor, features_dir=tmp_path).close()
        return extractor.images

    child = Child(poisoned)
    try:
        wait_until(lambda: bool(list(tmp_path.glob("*.h5"))))
    except AssertionError:
        child.signal(signal.SIGKILL)
        raise
    assert child.wait() == {"result": 83}


def test_who_waits_for_the_lock_takes_what_the_other_has_published(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    child = extract_in_child(tmp_path, Rows(delay=0.01))
    wait_until(partial_path(path).exists)
    extractor = Rows()
    with extract_features(DATASET, extractor, features_dir=tmp_path, lock_timeout=30) as cache:
        assert cache.num_rows("test") == 22
    assert extractor.images == 0
    assert child.wait() == {"result": 83}


def test_two_that_start_at_once_extract_once(shared_cache, tmp_path):
    children = [extract_in_child(tmp_path, Rows(delay=0.002), lock_timeout=30) for _ in range(3)]
    assert sorted(child.wait()["result"] for child in children) == [0, 0, 83]
    assert filecmp.cmp(tmp_path / shared_cache.name, shared_cache, shallow=False)


def test_a_published_cache_opens_while_its_lock_is_held(shared_cache):
    with writer_lock(shared_cache):
        extractor = Rows()
        extract_features(DATASET, extractor, features_dir=shared_cache.parent).close()
        assert extractor.images == 0


# ---------------------------------------------------------------- disks


def test_too_little_free_space_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    extractor = Rows()
    with pytest.raises(
        CacheError, match=r"the disk or quota is full: .* needs about \d{6} bytes, 50000 are free; free"
    ):
        extract_features(DATASET, extractor, features_dir=tmp_path)
    assert extractor.images == 0
    assert {name for name in names(tmp_path) if not name.endswith(".lock")} == set()


def test_a_file_size_limit_is_met_at_the_start(tmp_path):
    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        extractor = Rows()
        try:
            extract_features(DATASET, extractor, features_dir=tmp_path)
        finally:
            assert extractor.images == 0
        return 0

    report = Child(limited).wait()
    assert report["error"] == "CacheError"
    assert "the disk or quota is full" in report["message"]
    assert {name for name in names(tmp_path) if not name.endswith(".lock")} == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_midway_keeps_what_is_complete(shared_cache, tmp_path, monkeypatch, number):
    write, calls = extraction.write_at, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 3 * 6:  # six chunks of four rows
            raise OSError(number, os.strerror(number))
        write(*arguments)

    monkeypatch.setattr(extraction, "write_at", full)
    with pytest.raises(CacheError, match=r"disk or quota is full: .* is kept in made-rows-.*\.partial and taken up by"):
        extract_features(DATASET, Rows(), features_dir=tmp_path)
    monkeypatch.setattr(extraction, "write_at", write)
    extractor = Rows()
    extract_features(DATASET, extractor, features_dir=tmp_path).close()
    assert extractor.images == 83 - 24
    assert filecmp.cmp(tmp_path / shared_cache.name, shared_cache, shallow=False)


def test_the_whole_file_is_allocated_before_the_first_row(tmp_path):
    path = interrupted(tmp_path, rows=4)
    found = partial_path(path).stat()
    if hasattr(os, "posix_fallocate"):
        assert found.st_blocks * 512 >= found.st_size
    assert found.st_size >= 83 * 1024


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/features"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"features_dir=\S*{name}: cannot be written \(.+\); give another"):
        extract_features(DATASET, Rows(), features_dir=tmp_path / name)


# ---------------------------------------------------------------- extractors that go wrong


def spoiler(value: float, image: int) -> Callable[[torch.Tensor], None]:
    """Set a value in the features of one image, counted over the chunks of four."""
    seen = [0]

    def spoil(features: torch.Tensor) -> None:
        if seen[0] <= image < seen[0] + len(features):
            features[image - seen[0], 2, 3, 4] = value
        seen[0] += len(features)

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize(("image", "where"), [(0, "train row 0"), (42, "train row 42"), (61 + 21, "test row 21")])
def test_features_that_are_not_finite_are_refused_by_row(tmp_path, value, image, where):
    with pytest.raises(CacheError, match=f"extractor rows: the features of {where} are NaN or infinite; look at"):
        extract_features(DATASET, Rows(spoil=spoiler(value, image)), features_dir=tmp_path)
    assert not list(tmp_path.glob("*.h5"))


def test_what_overflows_float16_is_refused_with_the_remedy(tmp_path):
    spoil = spoiler(1e5, 42)
    with pytest.raises(
        CacheError, match=r"dtype=float16: .* train row 42 reach 100000, more than 65504; take dtype=floa"
    ):
        extract_features(DATASET, Rows(spoil=spoil), features_dir=tmp_path, dtype="float16")
    with extract_features(DATASET, Rows(spoil=spoiler(1e5, 42)), features_dir=tmp_path) as cache:
        assert cache.read("train", [42])[0, 2, 3, 4] == 1e5


def test_an_extractor_that_breaks_its_word_is_refused(tmp_path):
    class Wrong(Rows):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return super().__call__(images)[:, :3]

    with pytest.raises(CacheError, match=r"returned torch.float32 of shape \(4, 3, 8, 8\), expected .* \(4, 4, 8, 8\)"):
        extract_features(DATASET, Wrong(), features_dir=tmp_path)


# ---------------------------------------------------------------- opening


def test_opening_what_is_no_cache_says_what_it_is(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    remedy = rf"remove it with `python -m scatterdp cache rm --features_dir={tmp_path} {path.name}` and extract again$"
    with pytest.raises(CacheError, match=f"{path.name}: no such feature cache"):
        FeatureCache(path)
    whole = shared_cache.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CacheError, match=f"is truncated; {remedy}"):
            FeatureCache(path)
        with pytest.raises(CacheError, match="is truncated"):  # and the next extraction does not touch it
            extract_features(DATASET, Rows(), features_dir=tmp_path)
    for other in (b"", b"hello", whole[:10]):
        path.write_bytes(other)
        with pytest.raises(CacheError, match=f"is not a readable HDF5 file; {remedy}"):
            FeatureCache(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with pytest.raises(CacheError, match="is an HDF5 file but not a feature cache"):
        FeatureCache(path)


def test_features_of_another_configuration_or_data_set_are_refused(shared_cache, tmp_path):
    other = cache_path(DATASET, Rows(2.0), features_dir=tmp_path)
    shutil.copy(shared_cache, other)
    with pytest.raises(
        CacheError, match=r"holds the features of another extractor configuration .*was it renamed\? Remov"
    ):
        extract_features(DATASET, Rows(2.0), features_dir=tmp_path)
    other = cache_path(made_dataset(1), Rows(), features_dir=tmp_path)
    shutil.copy(shared_cache, other)
    with pytest.raises(CacheError, match="holds the features of another data set"):
        extract_features(made_dataset(1), Rows(), features_dir=tmp_path)
    with pytest.raises(CacheError, match="its name does not belong to its content"):
        verify(other)


def test_another_schema_is_refused(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    shutil.copy(shared_cache, path)
    with h5py.File(path, "r+") as file:
        file.attrs.modify("schema_version", np.int64(1))
    with pytest.raises(CacheError, match="has schema version 1, this version of scatterdp reads 2; remove it with"):
        FeatureCache(path)


@pytest.mark.parametrize(
    "name", ["train/features", "test/labels", "train/squared_norms", "test/chunk_xxh3_128", "train"]
)
def test_a_missing_array_is_refused(shared_cache, tmp_path, name):
    path = tmp_path / shared_cache.name
    shutil.copy(shared_cache, path)
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(CacheError, match="its structure is damaged"):
        FeatureCache(path)


def test_arrays_that_do_not_fit_together_are_refused(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    shutil.copy(shared_cache, path)
    with h5py.File(path, "r+") as file:
        del file["test/labels"]
        file["test/labels"] = np.zeros(21, np.int64)
    with pytest.raises(CacheError, match="the test split's arrays do not fit together"):
        FeatureCache(path)


def test_changed_attributes_are_refused(shared_cache, tmp_path):
    path = tmp_path / shared_cache.name
    shutil.copy(shared_cache, path)
    with h5py.File(path, "r+") as file:
        file.attrs["class_names"] = np.bytes_(b'["a", "b", "d"]')
    with pytest.raises(CacheError, match="its attributes are damaged"):
        FeatureCache(path)


# ---------------------------------------------------------------- verify


def places(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Byte ranges (start, stop) of each array's values in the file."""
    found: dict[str, list[tuple[int, int]]] = {}
    with h5py.File(path, "r") as file:
        for split in SPLITS:
            group: Any = file[split]
            for name in ("labels", "squared_norms", "chunk_xxh3_128"):
                start = group[name].id.get_offset()
                found[f"{split}/{name}"] = [(start, start + group[name].nbytes)]
            features = group["features"]
            ranges = []
            for chunk in range(features.id.get_num_chunks()):
                info = features.id.get_chunk_info(chunk)
                rows = min(features.chunks[0], len(features) - info.chunk_offset[0])
                ranges.append((info.byte_offset, info.byte_offset + rows * 1024))
            found[f"{split}/features"] = ranges
    return found


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_flipped_bit_anywhere_in_the_arrays_is_found(shared_cache, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / shared_cache.name
    ranges = places(shared_cache)
    name = data.draw(st.sampled_from(sorted(ranges)))
    start, stop = data.draw(st.sampled_from(ranges[name]))
    # The lowest bits of a norm are below the tolerance that other processors need.
    position = data.draw(st.integers(start, stop - 1).filter(lambda at: "norms" not in name or (at - start) % 8 >= 3))
    changed = bytearray(shared_cache.read_bytes())
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    split, _, array = name.partition("/")
    with pytest.raises(CacheError, match=split) as caught:
        verify(path)
    if array == "features":
        first = 4 * ranges[name].index((start, stop))
        assert f"{split} rows {first} to {first + (stop - start) // 1024 - 1} do not match" in str(caught.value)


def rewritten(source: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy with changed features of the test split, and digests that agree with them."""
    path = folder / source.name
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        group: Any = file["test"]
        change(group)
        features = group["features"][:]
        for chunk in range(len(group["chunk_xxh3_128"])):
            digest = xxhash.xxh3_128_digest(features[4 * chunk : 4 * chunk + 4].tobytes())
            group["chunk_xxh3_128"][chunk] = np.frombuffer(digest, np.uint8)
    return path


def test_verify_looks_at_values_and_not_at_digests_alone(shared_cache, tmp_path):
    def not_finite(group: Any) -> None:
        group["features"][9, 0, 0, 0] = np.nan

    with pytest.raises(CacheError, match="test rows 8 to 11 hold NaN or infinity"):
        verify(rewritten(shared_cache, tmp_path, not_finite))

    def other_norm(group: Any) -> None:
        group["features"][21] *= 1.001

    with pytest.raises(CacheError, match="test rows 20 to 21 do not match their squared norms"):
        verify(rewritten(shared_cache, tmp_path, other_norm))

    def label_out_of_range(group: Any) -> None:
        group["labels"][3] = 7
        group.attrs["labels_sha256"] = np.bytes_(hashlib.sha256(group["labels"][:].tobytes()).hexdigest())

    with pytest.raises(CacheError, match="labels of the test split range from 0 to 7, expected 0 to 2"):
        verify(rewritten(shared_cache, tmp_path, label_out_of_range))
    verify(rewritten(shared_cache, tmp_path, lambda group: None))


# ---------------------------------------------------------------- what a folder holds


def test_summaries_of_a_published_an_unfinished_and_a_damaged_cache(shared_cache, tmp_path):
    found = summarize(shared_cache)
    assert (found.published, found.damage, found.rows, found.rows_done) == (True, None, (61, 22), 83)
    assert found.size == shared_cache.stat().st_size
    assert found.attributes["dataset_name"] == "made"
    path = interrupted(tmp_path)
    found = summarize(path)
    assert (found.published, found.damage, found.rows, found.rows_done) == (False, None, (61, 22), 40)
    os.truncate(partial_path(path), 100)
    assert summarize(path).damage is not None
    assert listing.list_caches(tmp_path) == [path]
    assert not set(companion_paths(path)) & {path}


class Cramped(Rows):
    """An extractor on a device with room for a few images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.calls = room, []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(images)


def test_a_device_without_memory_gets_smaller_batches(shared_cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extraction, "_BATCH_BYTES", 16 << 10)
    extractor = Cramped(room=5)
    with extract_features(DATASET, extractor, features_dir=tmp_path) as cache:
        assert filecmp.cmp(cache.path, shared_cache, shallow=False)
    assert extractor.calls[:3] == [16, 8, 4]
    assert max(extractor.calls[3:]) == 4
    assert [record.message for record in caplog.records] == [
        f"the device ran out of memory: going on with batches of {size} images" for size in (8, 4)
    ]


def test_a_device_without_room_for_one_image(tmp_path):
    with pytest.raises(
        CacheError, match=r"^extractor rows: the device has no memory for one image; take --device=cpu$"
    ):
        extract_features(DATASET, Cramped(room=0), features_dir=tmp_path)


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.02])
def test_nothing_is_stored_after_a_batch_that_could_not_be(tmp_path, monkeypatch, seconds):
    """The extractor runs ahead of the disk: what it hands over after a failure must leave no gap in the journal."""
    store, calls = extraction._Writer._store, []

    def fails_once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            time.sleep(seconds)
            raise OSError(errno.EIO, "Input/output error")
        store(*arguments)

    monkeypatch.setattr(extraction._Writer, "_store", fails_once)
    with pytest.raises(OSError, match="Input/output error"):
        extract_features(DATASET, Rows(), features_dir=tmp_path)
    (path,) = listing.list_caches(tmp_path)
    assert journal.journaled(path) == {"train": [(0, 8)], "test": []}
    assert len(calls) == 3
    extract_features(DATASET, Rows(), features_dir=tmp_path).close()
    verify(path)


# ---------------------------------------------------------------- several processes


class Team:
    """Threads that act as the processes of one extraction."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.value = size, threading.Barrier(size), None

    def member(self, rank: int) -> Any:
        member = types.SimpleNamespace(rank=rank, size=self.size, wait=lambda: self.barrier.wait(20))

        def share(value: Any) -> Any:
            if rank == 0:
                self.value = value
            self.barrier.wait(20)
            shared = self.value
            self.barrier.wait(20)
            return shared

        member.share = share
        return member

    def extract(self, folder: Path, extractors: list[Rows]) -> list[BaseException | None]:
        def one(rank: int) -> BaseException | None:
            try:
                extract_features(DATASET, extractors[rank], features_dir=folder, ranks=self.member(rank)).close()
            except BaseException as error:
                self.barrier.abort()
                return error
            return None

        with futures.ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))


@pytest.mark.parametrize("size", [2, 3, 7])
def test_processes_together_write_the_file_that_one_would(shared_cache, tmp_path, size):
    extractors = [Rows() for _ in range(size)]
    assert Team(size).extract(tmp_path, extractors) == [None] * size
    assert sum(extractor.images for extractor in extractors) == 83
    assert max(extractor.images for extractor in extractors) <= 83 // size + 8
    path = tmp_path / shared_cache.name
    assert filecmp.cmp(path, shared_cache, shallow=False)
    assert names(tmp_path) == {path.name, path.name + ".lock"}


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("size_after", [1, 2, 5])
def test_the_rows_of_a_lost_process_are_done_again_and_no_others(shared_cache, tmp_path, lost, size_after):
    def dies(features: torch.Tensor) -> None:
        if extractors[lost].images > 12:
            raise KeyboardInterrupt

    extractors = [Rows(spoil=dies if rank == lost else None) for rank in range(3)]
    errors = Team(3).extract(tmp_path, extractors)
    assert isinstance(errors[lost], KeyboardInterrupt)
    path = tmp_path / shared_cache.name
    assert not path.exists()
    done = journaled_count(path)
    assert done > 12 + 40  # the others had nothing to wait for
    again = [Rows() for _ in range(size_after)]
    assert Team(size_after).extract(tmp_path, again) == [None] * size_after
    assert sum(extractor.images for extractor in again) == 83 - done
    assert filecmp.cmp(path, shared_cache, shallow=False)
    assert names(tmp_path) == {path.name, path.name + ".lock"}


@given(rows=st.integers(1, 60), data=st.data())
def test_missing_rows_are_those_in_no_interval(rows, data):
    ends = st.tuples(st.integers(0, rows), st.integers(0, rows)).map(sorted).filter(lambda pair: pair[0] < pair[1])
    intervals = [tuple(pair) for pair in data.draw(st.lists(ends, max_size=6))]
    covered = {row for first, stop in intervals for row in range(first, stop)}
    whole = journal.merged(intervals)
    assert {row for first, stop in whole for row in range(first, stop)} == covered
    assert journal.count(whole) == len(covered)
    assert {row for first, stop in journal.missing(whole, rows) for row in range(first, stop)} == set(
        range(rows)
    ) - covered


@pytest.mark.parametrize(("free", "expected"), [(80 << 30, 128 << 20), (1 << 30, 32 << 20), (1 << 20, 32 << 10)])
def test_a_devices_batches_go_by_its_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2 * free))
    assert extraction._batch_bytes() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_writes_the_file_that_a_cpu_does(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16), dtype=np.uint8)
    dataset = Dataset(name="made", class_names=("a", "b"), x_train=images[:50], y_train=np.arange(50) % 2,
                      x_test=images[50:], y_test=np.arange(20) % 2)  # fmt: skip
    for device in ("cpu", "cuda"):
        extractor = make_extractor("scatternet", (1, 16, 16)).to(device)
        extract_features(dataset, extractor, features_dir=tmp_path / device).close()
    (ours,), (expected,) = ((tmp_path / device).glob("*.h5") for device in ("cuda", "cpu"))
    with FeatureCache(ours) as a, FeatureCache(expected) as b:
        np.testing.assert_allclose(a.read("train", range(50)), b.read("train", range(50)), atol=1e-5)
