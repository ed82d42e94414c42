"""``python -m scatterdp sweep`` as a user has it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scatterdp.commands import sweep
from scatterdp.exits import exit_code
from scatterdp.sweeps import probe
from scatterdp.sweeps.probe import Pace
from scatterdp.training.plan import TrainingPlan

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMOKES = sorted(path.stem for path in EXPERIMENTS.glob("*_smoke.toml"))
SMALL = """
command = "baselines"
[config]
dataset = "digits"
extractor = "pixels"
input_norm = "BN"
accountant = "rdp"
batch_size = 700
[grid]
epochs = [2, 4]
bn_noise_multiplier = [0.5, 20]
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    threads = torch.get_num_threads()

    def command(*arguments: str) -> tuple[int, str, str]:
        code = exit_code(lambda: sweep.run([*arguments, "--device=cpu"]))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield command
    torch.set_num_threads(threads)


class TestDryRun:
    def test_prints_the_runs_and_their_noise_and_leaves_nothing(self, run, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(
            probe,
            "probe",
            lambda planned, dataset: seen.append(planned) or Pace(seconds_per_example=1e-3, seconds_per_image=0.0),
        )
        code, out, err = run("small.toml", "--dry_run", "--workers=2")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "small: 4 runs of scatterdp.baselines on digits"
        assert "fails: target_epsilon=3.0: what is spent beside training" in lines[2]
        assert re.search(r"epochs=2, bn_noise_multiplier=20 +4 +0\.4871 +\d\.\d{4} +≤ 3$", lines[3])
        assert "2 different budgets" in out
        assert "if all of them run: 2 runs looked at the private data" in out
        # 4 and 8 steps of 700 examples at 1 ms each, on two workers: the longer run decides.
        assert "about 6 s on 2 workers of this machine with 1 threads each" in out
        assert [planned.config.epochs for planned in seen] == [2]
        assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]

    def test_the_probe_looks_at_no_example(self, run, tmp_path, monkeypatch):
        from scatterdp.sweeps import sweep as sweeps

        load = sweeps.load_dataset

        def poisoned(*arguments, **named):
            dataset = load(*arguments, **named)
            dataset.x_train.flags.writeable = True
            dataset.x_train[:] = (
                0  # features of nothing but zeros: BN would refuse, and the numbers would be other ones
            )
            return dataset

        measured = []
        fit = probe.fit
        monkeypatch.setattr(sweeps, "load_dataset", poisoned)
        monkeypatch.setattr(
            probe,
            "fit",
            lambda features, *a, **k: (
                measured.append(next(features.iter_rows("train", 9))[1]) or fit(features, *a, **k)
            ),
        )
        (tmp_path / "small.toml").write_text(SMALL.replace('"BN"', '"none"').replace("bn_noise", "noise"))
        code, out, _ = run("small.toml", "--dry_run")
        assert code == 0
        assert re.search(r"about \d+ s on", out)
        assert measured[0].std() > 0.1


class TestPace:
    def test_adds_up(self):
        plans = [
            TrainingPlan(num_examples=100, batch_size=10, epochs=epochs, lr=1.0, noise_multiplier=1.0)
            for epochs in (1, 2, 3)
        ]
        pace = Pace(seconds_per_example=0.01, seconds_per_image=0.5)
        assert pace.seconds(plans, 10, workers=1) == pytest.approx(5 + 6.0)
        assert pace.seconds(plans, 10, workers=2) == pytest.approx(5 + 3.0)
        assert pace.seconds(plans, 10, workers=100) == pytest.approx(5 + 3.0)  # no faster than the longest run


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("none.toml",), "error: outline=none.toml: cannot be read"),
            (("small.toml", "--workers=0"), "error: workers=0: expected a whole number ≥ 1"),
            (("small.toml", "--workers=1", "--scheduler=tcp://x:1"), "leave workers out"),
            (("small.toml", "--random=0.3"), "error: random=0.3: expected"),
            (("small.toml", "--out=small.toml"), "is a file and is left alone"),
        ],
    )
    def test_are_one_sentence_and_2(self, run, tmp_path, arguments, message):
        code, _, err = run(*arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]

    @pytest.mark.parametrize("place", ["flag", "outline"])
    def test_a_device_that_is_not_there_is_told_before_anything_runs(self, tmp_path, monkeypatch, capsys, place):
        monkeypatch.chdir(tmp_path)
        device = 'device = "tpu"\n[grid]' if place == "outline" else "[grid]"
        (tmp_path / "small.toml").write_text(SMALL.replace("[grid]", device))
        code = exit_code(lambda: sweep.run(["small.toml", *(["--device=tpu"] if place == "flag" else [])]))
        assert code == 2
        assert capsys.readouterr().err == "error: device='tpu': expected auto, cpu, cuda or cuda:N\n"
        assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]

    def test_a_scheduler_that_is_not_there(self, run, tmp_path):
        code, _, err = run("small.toml", "--scheduler=tcp://127.0.0.1:9")
        assert code == 2
        assert err.startswith("error: scheduler=tcp://127.0.0.1:9: no scheduler answers there")
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
class TestShipped:
    @pytest.mark.parametrize("name", SMOKES)
    def test_every_smoke_outline_ends_in_two_minutes(self, name, tmp_path):
        begin = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "scatterdp",
            "sweep",
            str(EXPERIMENTS / f"{name}.toml"),
            f"--out={tmp_path / 'out'}",
        ]
        done = subprocess.run(
            [*command, f"--features_dir={tmp_path / 'features'}"], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        assert " 0 failed" in done.stdout
        assert time.monotonic() - begin < 120
