"""Frameworks on tiny examples: every one takes the step that autograd takes; the other process's ends are told. Nothing of jax is needed."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scatterdp.benchmarking import epochs, frameworks
from scatterdp.benchmarking.epochs import TRAININGS, Reference, Settings, TorchTraining, separated
from scatterdp.benchmarking.frameworks import FRAMEWORKS, Row, Trial, check, fastest, images, measure
from scatterdp.benchmarking.peer import Peer
from scatterdp.errors import ConfigError, UserError
from scatterdp.exits import exit_code
from scatterdp.heads import make_classifier
from scatterdp.report.framework_epochs import epoch_table, trial_table

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compare_frameworks.py"
N = 11
OURS = ["torch", "scatterdp", "opacus_hooks", "opacus_ghost"]
Rows = tuple[Tensor, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_classifier("cnn", (1, 28, 28), 10)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return images("mnist", data_dir=None, count=N)


@pytest.fixture(scope="module")
def reference(model, rows: Rows) -> Reference:
    return Reference.of(model, *rows)


def settings(**changes) -> Settings:
    values: dict[str, Any] = {
        "batch_size": 4,
        "physical_batch_size": 3,
        "noise_multiplier": 0.0,
        "max_grad_norm": 0.5,
        "lr": 0.1,
        "momentum": 0.9,
    }
    return Settings(**(values | changes))


def test_examples_that_rounding_may_lead_elsewhere_are_left_out():
    x = torch.tensor([[4.0, 1.0, 2.0, 3.0], [4.0, 1.0, 4.0, 3.0], [4.0, 4.0 - 2.4e-7, 2.0, 3.0], [4.0, 3.9, 2.0, 3.0]])
    assert separated(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.MaxPool2d(2)), x).tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert separated(nn.Linear(4, 2), x).all()


def test_half_of_the_examples_are_clipped(reference):
    clipped, plain = (torch.cat([g.flatten() for g in sums.values()]) for sums in (reference.clipped, reference.plain))
    assert 0 < clipped.norm() < 0.999 * plain.norm()


@pytest.mark.parametrize("physical", [2, 4, 256])
@pytest.mark.parametrize("name", OURS)
def test_a_step_is_autograds(name, physical, reference):
    training = TorchTraining(name, reference.model, reference.x, reference.y, reference.settings(physical))
    training.train(1)
    private = FRAMEWORKS[name] is not None
    assert reference.difference(training.weights(), private=private) < 1e-4
    assert reference.difference(training.weights(), private=not private) > 1e-2  # the other sum is another one


@pytest.mark.parametrize("name", OURS)
def test_as_many_steps_as_asked_and_the_next_ones_later(name, model, rows: Rows, monkeypatch):
    counted = []
    plain_step = torch.optim.SGD.step

    def step(self, *arguments, **more):
        counted.append(1)
        return plain_step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    before = [p.detach().clone() for p in model.parameters()]
    training = TorchTraining(name, model, *rows, settings(noise_multiplier=1.0))
    for steps in (1, 4, 3):  # an epoch is two
        counted.clear()
        training.train(steps)
        assert len(counted) == steps
    assert not any(torch.equal(p, torch.from_numpy(w)) for p, w in zip(before, training.weights(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", OURS[1:])
def test_noise_is_that_of_the_multiplier(name, model, rows: Rows):
    """The same steps with tiny clipped gradients: what the weights move by is noise of σ · C ÷ B a step."""
    training = TorchTraining(name, model, *rows, settings(noise_multiplier=3.0, max_grad_norm=1e-3, lr=1e3, momentum=0))
    before = training.weights()
    training.train(1)
    moved = torch.cat([torch.from_numpy(b - a).flatten() for b, a in zip(before, training.weights(), strict=True)])
    # Opacus divides by N / ⌊N / B⌋ = 5.5, as a whole number
    assert moved.std().item() == pytest.approx(3.0 / (4 if name == "scatterdp" else 5), rel=0.02)


class TestMeasuring:
    def test_rows_and_tables(self, model, rows: Rows):
        trials = list(check("mnist", model, OURS, None, physical_batch_sizes=(2, 4), max_grad_norm=1.0))
        assert [(t.framework, t.physical_batch_size) for t in trials] == [(n, s) for n in OURS for s in (2, 4)]
        assert all(trial.agrees for trial in trials)
        found = measure("mnist", model, *rows, fastest(trials), None, settings(), steps=1, rounds=2)
        assert [row.framework for row in found] == OURS
        assert all(row.batch_size == 4 and row.steps_per_epoch == 2 and len(row.seconds) == 2 for row in found)
        lines = epoch_table(found).splitlines()[2:]
        assert [line.split(" | ")[2] for line in lines] == OURS
        assert all(line.endswith("| 1 of 2 |") for line in lines)
        assert trial_table({"mnist": trials}).count("**") == 2 * len(OURS)

    def test_figures_of_the_table(self):
        def row(framework, *seconds, compiled=None):
            common = {"network": "mnist", "batch_size": 4, "way": "way", "steps": 1, "steps_per_epoch": 2}
            return Row(framework=framework, seconds=seconds, compile_seconds=compiled, **common)

        found = [row("scatterdp", 3.0, 9.0, 6.0), row("jax", 2.0, compiled=1.5), row("jax_privacy", 12.0, compiled=2.0)]
        cells = [[cell.strip() for cell in line.split("|")[3:9]] for line in epoch_table(found).splitlines()[2:]]
        assert cells == [
            ["scatterdp", "6", "3–9", "–", "1.00", "–"],  # its torch was not trained
            ["jax", "2", "2–2", "–", "0.33", "1.5"],
            ["jax_privacy", "12", "12–12", "6.00", "2.00", "2.0"],
        ]

    def test_an_epochs_seconds_are_scaled(self, model, rows: Rows, monkeypatch):
        monkeypatch.setattr(frameworks, "take_turns", lambda turns, rounds, device: {"torch": [0.5] * rounds})
        trial = Trial(framework="torch", convolution=None, physical_batch_size=4, seconds=1.0, difference=0.0)
        (found,) = measure("mnist", model, *rows, {"torch": trial}, None, settings(batch_size=3), steps=2, rounds=1)
        assert (found.steps, found.steps_per_epoch, found.seconds) == (2, 3, (0.75,))

    def test_a_wrong_gradient_is_told(self, model, rows: Rows, monkeypatch):
        def wrong(model, x, y, settings):
            for _ in TRAININGS["torch"](model, x, y, settings):
                with torch.no_grad():
                    next(model.parameters())[0] += 0.1
                yield

        monkeypatch.setitem(epochs.TRAININGS, "scatterdp", wrong)
        (trial,) = check("mnist", model, ["scatterdp"], None, physical_batch_sizes=(4,), max_grad_norm=1.0)
        assert not trial.agrees


WORKER = """
import json, os, sys
print(json.dumps({"thing": "1.0", "threads": os.environ["NPROC"], "path": os.environ.get("PYTHONPATH")}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "fail":
        raise SystemError("what went wrong")
    print(json.dumps({"twice": 2 * asked["value"]}), flush=True)
"""


class TestPeer:
    @pytest.fixture
    def worker(self, tmp_path) -> Path:
        path = tmp_path / "worker.py"
        path.write_text(WORKER)
        return path

    def start(self, worker: Path, python: str | Path = sys.executable) -> Peer:
        return Peer(Path(python), worker, threads=3, argument="other_python", remedy="make one")

    def test_asked_and_answered(self, worker, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with self.start(worker) as peer:
            assert peer.versions == {"thing": "1.0", "threads": "3", "path": None}
            assert [peer.ask("double", value=value)["twice"] for value in (1, 4)] == [2, 8]

    def test_its_last_words_are_told(self, worker):
        with (
            self.start(worker) as peer,
            pytest.raises(UserError, match=r"exit code 1 \(SystemError: what went wrong\)"),
        ):
            peer.ask("fail")
        with self.start(worker) as peer:
            peer._process.kill()
            with pytest.raises(UserError, match="ended with exit code -9"):
                peer.ask("double", value=1)

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("import no_such_module", "exit code 1 (ModuleNotFoundError: No module named 'no_such_module'); make one"),
            ("print('hello')", "answers 'hello', which is no answer; make one"),
            ("", "ended with exit code 0; make one"),
        ],
    )
    def test_what_does_not_tell_what_it_is(self, worker, code, said):
        worker.write_text(code)
        with pytest.raises(ConfigError) as error:
            self.start(worker)
        assert str(error.value).startswith(f"other_python={sys.executable}: the process of the other environment ")
        assert str(error.value).endswith(said)

    def test_no_interpreter(self, worker, tmp_path):
        with pytest.raises(ConfigError) as error:
            self.start(worker, tmp_path / "nothing")
        assert (
            str(error.value)
            == f"other_python={tmp_path / 'nothing'}: does not run (No such file or directory); make one"
        )


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("compare_frameworks", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # where its dataclasses look their annotations up
    specification.loader.exec_module(module)
    return module


class TestWrongUse:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--frameworks", "torch", "tensorflow"], "frameworks=tensorflow: expected some of torch, scatterdp, "),
            (["--networks", "imagenet"], "networks=imagenet: expected some of mnist, cifar10"),
            (["--batch_sizes", "0"], "batch_sizes=0: expected whole numbers ≥ 1"),
            (["--batch_sizes", "60000"], "batch_sizes=60000: expected at most 50000, the examples of cifar10"),
            (["--examples", "1", "2", "3"], "examples=1 2 3: expected one number, or 2, one a network"),
            (["--physical_batch_sizes", "3", "8"], "physical_batch_sizes=3: expected a divisor of the largest, 8"),
            (["--rounds=0"], "rounds=0: expected a whole number ≥ 1"),
            (["--noise_multiplier=0"], "noise_multiplier=0.0: expected a number > 0"),
            (["--momentum=1"], "momentum=1.0: expected a number in [0, 1)"),
            (
                ["--num_examples=5000", "--data_dir=."],
                "num_examples=5000: is about made-up images; leave it or data_dir ",
            ),
            (
                ["--frameworks", "jax"],
                "frameworks=jax: run in another environment; make an environment with `python3.11 ",
            ),
            (["--jax_python=nothing"], "jax_python=nothing: does not run (No such file or directory); make an environ"),
        ],
    )
    def test_is_told_and_nothing_is_written(self, script, tmp_path, monkeypatch, capsys, flags, said):
        monkeypatch.chdir(tmp_path)
        assert exit_code(lambda: script.main(flags)) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_in_use_is_left_alone(self, script, tmp_path, capsys):
        (tmp_path / "file").write_text("mine")
        assert exit_code(lambda: script.main([f"--out={tmp_path}"])) == 2
        assert capsys.readouterr().err.startswith(f"error: out={tmp_path}: holds files already and is left alone")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]

    def test_a_gradient_that_differs_ends_it(self, script, tmp_path, monkeypatch, capsys):
        trial = Trial(framework="scatterdp", convolution=None, physical_batch_size=4, seconds=1.0, difference=0.1)
        monkeypatch.setattr(script, "check", lambda *_, **__: iter([trial]))
        monkeypatch.setattr(script, "measure", lambda *_, **__: pytest.fail("timed"))
        assert script.main(["--num_examples=9", "--batch_sizes=4", "--threads=1", f"--out={tmp_path / 'out'}"]) == 1
        assert "DIFFERS by more than 0.0001" in capsys.readouterr().out


def test_the_worker_needs_nothing_of_this_environment():
    tree = ast.parse((ROOT / "scripts" / "jax_worker.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {str(module).split(".")[0] for module in modules} & {"scatterdp", "torch", "opacus"} == set()
    assert "jax_privacy" in modules


class TestScript:
    FLAGS = ("--networks=mnist", "--batch_sizes=4", "--examples=4", "--num_examples=9", "--rounds=1", "--threads=1")

    def run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)

    def test_without_jax(self, tmp_path):
        done = self.run(*self.FLAGS, "--physical_batch_sizes", "2", "4", f"--out={tmp_path / 'out'}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("jax and jax_privacy are left out: make an environment with `python3.11 -m venv ")
        content = json.loads((tmp_path / "out" / "frameworks.json").read_text())
        assert [row["framework"] for row in content["rows"]] == OURS
        assert (tmp_path / "out" / "frameworks.md").read_text().count("| mnist | 4 | ") == len(OURS)

    def test_a_python_without_jax_privacy(self, tmp_path):
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'jax_privacy'\" >&2\nexit 1\n")
        python.chmod(0o755)
        done = self.run(*self.FLAGS, f"--jax_python={python}", f"--out={tmp_path / 'out'}")
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"error: jax_python={python}: the process of the other environment has ended with exit code 1 "
            "(ModuleNotFoundError: No module named 'jax_privacy'); make an environment with `python3.11 -m venv "
        )
        assert not (tmp_path / "out").exists()
