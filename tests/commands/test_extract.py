"""``scatterdp extract``: one process and several, whole and killed."""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.cache import FeatureCache, verify
from scatterdp.commands.extract import ExtractConfig, extract, run
from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor


def only_cache(folder: Path) -> Path:
    (path,) = folder.glob("*.h5")
    return path


def test_caches_what_the_flags_say(tmp_path, capsys):
    arguments = ["--dataset=digits", "--J=1", "--L=6", "--max_order=1", "--mirror", "--feature_dtype=float16"]
    assert run([*arguments, f"--features_dir={tmp_path}"]) == 0
    path = only_cache(tmp_path)
    out = capsys.readouterr().out
    assert "digits: 1437 training and 360 test images of 1×8×8; features 7×4×3" in out
    assert f"features: {path} after" in out
    verify(path)
    expected = make_extractor("scatternet", (1, 8, 8), J=1, L=6, max_order=1, mirror=True)
    with FeatureCache(path, extractor_fingerprint=expected.fingerprint) as cache:
        assert cache.output_shape == (7, 4, 3)
        assert cache.dtype == "float16"


def test_the_baselines_command_finds_it(tmp_path):
    extract(ExtractConfig(dataset="digits", features_dir=tmp_path)).close()
    written = only_cache(tmp_path).stat().st_mtime_ns
    command = [
        sys.executable,
        "-m",
        "scatterdp.baselines",
        "--dataset=digits",
        "--epochs=1",
        f"--features_dir={tmp_path}",
    ]
    subprocess.run([*command, f"--run_dir={tmp_path / 'run'}"], check=True, capture_output=True, timeout=120)
    assert only_cache(tmp_path).stat().st_mtime_ns == written


@pytest.mark.parametrize("flags", [{}, {"max_order": 1}, {"J": 1, "mirror": True}], ids=str)
def test_draws_a_picture(tmp_path, flags):
    path = tmp_path / "scattering.png"
    extract(ExtractConfig(dataset="digits", features_dir=tmp_path, plot=path, **flags)).close()
    with Image.open(path) as picture:
        assert min(picture.size) > 200
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_a_picture_replaces_no_file(tmp_path):
    path = tmp_path / "scattering.png"
    path.write_text("mine")
    with pytest.raises(
        ConfigError, match=r"^plot=.*scattering\.png: is there already, give another name or remove it$"
    ):
        extract(ExtractConfig(dataset="digits", features_dir=tmp_path, plot=path))
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"J": 4}, "J=4: expected images of at least 2^J = 16 pixels a side, these have 8×8; take a smaller J"),
        ({"J": 0}, "J=0: expected an integer from 1 to 12"),
        ({"J": 100_000}, "J=100000: expected an integer from 1 to 12"),
        ({"L": 3000}, "L=3000: expected an integer from 1 to 64"),
        ({"extractor": "scatternet(mirror='False')"}, "mirror='False': expected True or False"),
        ({"extractor": "scatternet(pre_pad=1)"}, "pre_pad=1: expected True or False"),
        ({"extractor": "scatternet(J=2)", "J": 3}, "J=3: of scatternet, whose brackets say J=2; give one of them"),
        ({"normalize": "imagenet"}, "normalize='imagenet': expected RGB images"),
        ({"pre_pad": True}, "pre_pad=True: expected images whose sides are multiples of 2^J = 4"),
        ({"extractor": "wavelets"}, "extractor='wavelets': expected one of"),
        ({"batch_size": 0}, "batch_size=0: expected an integer ≥ 1"),
        ({"plot": Path("picture.jpg")}, "plot=picture.jpg: expected a .png file in a folder that is there"),
        ({"plot": Path("nowhere/picture.png")}, "plot=nowhere/picture.png: expected a .png file in a folder that"),
        ({"device": "cuda:99"}, "device=cuda:99: this machine shows"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        extract(ExtractConfig(dataset="digits", **flags))
    assert str(raised.value).startswith(message)
    assert isinstance(raised.value, ConfigError)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """An .npz of enough images that an extraction takes seconds."""
    path = tmp_path_factory.mktemp("images") / "own.npz"
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (16_000, 32, 32, 3), dtype=np.uint8)
    y = np.arange(16_000) % 3
    np.savez(path, x_train=x[:15_000], y_train=y[:15_000], x_test=x[15_000:], y_test=y[15_000:])
    return path


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    extract(ExtractConfig(dataset=str(images), features_dir=folder, batch_size=66)).close()
    return only_cache(folder)


def command(images: Path, folder: Path) -> list[str]:
    return ["extract", f"--dataset={images}", f"--features_dir={folder}", "--batch_size=66"]


def wait_for(path: Path, launcher: subprocess.Popen[str]) -> None:
    begin = time.monotonic()
    while not path.exists():
        assert launcher.poll() is None, f"it ended before {path.name} was there"
        assert time.monotonic() - begin < 60
        time.sleep(0.005)


def test_two_processes_write_the_same_file(torchrun, images, whole, tmp_path):
    launcher = torchrun(2, "scatterdp", *command(images, tmp_path))
    out, _ = launcher.communicate(timeout=180)
    assert launcher.returncode == 0, out
    assert filecmp.cmp(only_cache(tmp_path), whole, shallow=False)
    assert out.count("features: ") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_the_next_run_completes(torchrun, worker_of, images, whole, tmp_path, rank):
    launcher = torchrun(2, "scatterdp", *command(images, tmp_path))
    wait_for(tmp_path / f"{whole.name}.progress-1", launcher)
    os.kill(worker_of(launcher, rank), signal.SIGKILL)
    out, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0, out
    assert not (tmp_path / whole.name).exists()
    launcher = torchrun(2, "scatterdp", *command(images, tmp_path))
    out, _ = launcher.communicate(timeout=180)
    assert launcher.returncode == 0, out
    assert filecmp.cmp(only_cache(tmp_path), whole, shallow=False)


def interrupted(images, features_dir, journal_name) -> tuple[int, str]:
    """Exit code and messages of an extraction that gets Ctrl-C once something is stored."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scatterdp", *command(images, features_dir)], stderr=subprocess.PIPE, text=True
    )
    journal = features_dir / journal_name
    begin = time.monotonic()
    while process.poll() is None and (not journal.exists() or "[[" not in journal.read_text()):
        assert time.monotonic() - begin < 60
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_leaves_a_sentence_and_what_was_done(images, whole, tmp_path):
    features_dir, code, err = tmp_path, 0, ""
    for attempt in range(30):  # on a busy machine the extraction may be done before it hears of it
        features_dir = tmp_path / str(attempt)
        features_dir.mkdir()
        code, err = interrupted(images, features_dir, f"{whole.name}.progress-0")
        if code != 0:
            break
        shutil.rmtree(features_dir)
    assert code == 130
    assert "Traceback" not in err
    assert err.rstrip().endswith("interrupted: the same command starts again, and uses what was finished")
    assert run(command(images, features_dir)[1:]) == 0
    assert filecmp.cmp(only_cache(features_dir), whole, shallow=False)
