"""Shared by all tests: one thread, the same random tensors, a small data set with a light extractor, and the features of the digits."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
import torch

import scatterdp
from scatterdp import baselines
from scatterdp.cache import FeatureCache, extract_features
from scatterdp.datasets import Dataset, load_dataset, store
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor, fingerprint
from scatterdp.privacy import accounting
from scatterdp.training import loop

HOSTILE_NAME = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices: threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def noise_of_the_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training's noise is not bound to its sums: two ways to compute them, which round differently, can then be compared."""
    monkeypatch.setattr(loop, "bound_to_sums", lambda key, *sums: key)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Also by the processes that tests start: a shell starts what it runs in the background deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Made-up tensors are the same ones every time a test runs."""
    torch.manual_seed(0)


@pytest.fixture
def torchrun() -> Callable[..., subprocess.Popen[str]]:
    """``torchrun(count, "scatterdp", "extract", …)``: so many processes of a module, connected over a free port."""

    def start(count: int, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        here = {**os.environ, "PYTHONPATH": str(Path(scatterdp.__file__).parents[1])}
        return subprocess.Popen(
            [*launcher, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=here, **how
        )

    return start


@pytest.fixture
def worker_of() -> Callable[[subprocess.Popen[str], int], int]:
    """The process number of one rank below a launcher; Linux only."""

    def find(launcher: subprocess.Popen[str], rank: int) -> int:
        for children in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
            for pid in children.read_text().split():
                if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                    return int(pid)
        raise AssertionError(f"no process of rank {rank}")

    return find


_known_epsilons: dict[Any, float] = {}


@pytest.fixture
def accounting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs of one plan: ε, a pure function of the event, is computed once for all of them."""
    compute = accounting.epsilon_of

    @functools.wraps(compute)
    def epsilon_of(event, **arguments) -> float:
        question = (repr(event), tuple(sorted(arguments.items())))
        if question not in _known_epsilons:
            _known_epsilons[question] = compute(event, **arguments)
        return _known_epsilons[question]

    users = (
        "scatterdp.privacy.ledger",
        "scatterdp.training.plan",
        "scatterdp.experiment",
        "scatterdp.sweeps.selection",
    )
    for user in users:
        monkeypatch.setattr(f"{user}.epsilon_of", epsilon_of)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TexturesConfig:
    gain: float = 1.0


class Textures:
    """Six fixed maps of the image, each averaged over blocks of 4×4 pixels: ``(1, 8, 8)`` to ``(6, 2, 2)``."""

    name = "textures"
    input_shape: tuple[int, int, int] = (1, 8, 8)
    output_shape: tuple[int, int, int] = (6, 2, 2)

    def __init__(self, gain: float = 1.0) -> None:
        self.config = TexturesConfig(gain=gain)
        self.fingerprint = fingerprint("Textures", self.config, self.input_shape, preprocessing={}, versions={})

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        across = (images - images.roll(1, 3)).abs()
        down = (images - images.roll(1, 2)).abs()
        maps = torch.cat([images, 1 - images, images**2, across, down, across * down], dim=1)
        return self.config.gain * torch.nn.functional.avg_pool2d(maps, 4)

    def to(self, device: torch.device | str) -> Self:
        return self


_opened: list[Callable[[str], None]] = []


@functools.cache
def _watch_opening() -> None:
    """What Python opens, in whatever way, is told to those who ask; such a hook stays for the life of the process."""

    def told(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            for ask in _opened:
                ask(os.path.realpath(os.fsdecode(arguments[0])))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            for ask in _opened:
                ask(event)

    sys.addaudithook(told)


@pytest.fixture
def no_data_in_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No data folder in reach; no file is opened but programs, compiled kernels and what the system says of itself; nothing may be left in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCATTERDP_DATA", str(tmp_path / "nothing"))
    programs = (sys.prefix, sys.base_prefix, Path(scatterdp.__file__).parent, Path(__file__).parent)
    kernels = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scatterdp"
    allowed = [os.path.realpath(folder) + os.sep for folder in (*programs, kernels, "/proc", "/sys", "/dev")]
    samples = f"{os.sep}sklearn{os.sep}datasets{os.sep}"

    def ask(opened: str) -> None:
        if samples in opened or not (opened + os.sep).startswith(tuple(allowed)):
            pytest.fail(f"opened {opened}")

    monkeypatch.setattr(h5py, "File", lambda name, *arguments, **options: ask(os.path.realpath(name)))
    for asked in [each for each in dir(store) if callable(getattr(store, each)) and not each.startswith("_")]:
        monkeypatch.setattr(store, asked, lambda *arguments, **options: pytest.fail("a data set was asked for"))
    _watch_opening()
    _opened.append(ask)
    yield
    _opened.remove(ask)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="session")
def small_dataset() -> Dataset:
    """60 training and 24 test images of three classes: bright above, bright below, bright at the left."""
    rng = np.random.default_rng(0)
    labels = np.arange(84) % 3
    images = rng.integers(0, 160, (84, 8, 8), dtype=np.uint8)
    images[labels == 0, :4] += 70
    images[labels == 1, 4:] += 70
    images[labels == 2, :, :4] += 70
    return Dataset(
        name="small",
        x_train=images[:60],
        y_train=labels[:60],
        x_test=images[60:],
        y_test=labels[60:],
        class_names=("above", "below", "left"),
    )


@pytest.fixture(scope="session")
def small_extractor() -> Extractor:
    return Textures()


@pytest.fixture(scope="session")
def other_extractor() -> Extractor:
    """Of the same kind and shape as ``small_extractor``, with another configuration."""
    return Textures(gain=2.0)


@pytest.fixture(scope="session")
def small_features(
    small_dataset: Dataset, small_extractor: Extractor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FeatureCache]:
    folder = tmp_path_factory.mktemp("small_features")
    with extract_features(small_dataset, small_extractor, features_dir=folder) as features:
        yield features


@pytest.fixture(scope="session")
def digits_features_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cached ScatterNet features of the digits."""
    folder = tmp_path_factory.mktemp("features")
    dataset = load_dataset("digits")
    extract_features(dataset, make_extractor("scatternet", dataset.image_shape), features_dir=folder).close()
    return folder


@pytest.fixture
def digits_features(digits_features_dir: Path) -> Iterator[FeatureCache]:
    dataset = load_dataset("digits")
    extractor = make_extractor("scatternet", dataset.image_shape)
    with extract_features(dataset, extractor, features_dir=digits_features_dir) as features:
        yield features


@pytest.fixture(scope="session")
def finished_runs(digits_features_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs: ``seed0`` and ``seed1`` on the digits, alike but for their seeds, and ``own`` on someone's own images, whose
    second class has a name that is a script."""
    folder = tmp_path_factory.mktemp("finished")
    flags = [
        "--dataset=digits",
        "--input_norm=BN",
        "--noise_multiplier=3",
        "--epochs=2",
        f"--features_dir={digits_features_dir}",
    ]
    for seed in (0, 1):
        assert baselines.main([*flags, f"--seed={seed}", f"--run_dir={folder / 'runs' / f'seed{seed}'}"]) == 0
    digits = load_dataset("digits")
    few = [np.flatnonzero(labels < 3)[:count] for labels, count in ((digits.y_train, 150), (digits.y_test, 60))]
    np.savez(
        folder / "own.npz",
        x_train=digits.x_train[few[0]],
        y_train=digits.y_train[few[0]],
        x_test=digits.x_test[few[1]],
        y_test=digits.y_test[few[1]],
        class_names=np.array(["calm", HOSTILE_NAME, "$\\frac{$"]),
    )
    own = [
        f"--dataset={folder / 'own.npz'}",
        "--extractor=pixels",
        "--input_norm=none",
        "--noise_multiplier=4",
        "--epochs=3",
        "--target_delta=0.001",
    ]
    private = [f"--features_dir={folder / 'features'}", "--seed=987654321", "--train_metrics"]
    assert baselines.main([*own, *private, f"--run_dir={folder / 'runs' / 'own'}"]) == 0
    return folder / "runs"
