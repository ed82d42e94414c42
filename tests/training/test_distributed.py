"""Several processes against one: real processes, started by ``torchrun``, connected by gloo."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scatterdp
from scatterdp.errors import UserError
from scatterdp.privacy.noise import gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.distributed import (
    BLOCK,
    ONE,
    OneProcess,
    RowsOfProcess,
    check_same,
    describe,
    only_process,
    part_of,
)
from scatterdp.training.rows import FeatureRows

CASES = Path(__file__).with_name("distributed_cases.py")
K = 3


class Place(OneProcess):
    """A process of some rank, which only says where it is."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_every_row_is_held_once(num_rows, size):
    parts = [part_of(num_rows, rank, size) for rank in range(size)]
    assert parts[0][0] == 0
    assert parts[-1][1] == num_rows
    assert all(stop == following for (_, stop), (following, _) in itertools.pairwise(parts))
    assert all(first % BLOCK == 0 for first, stop in parts if first < stop)
    blocks = [-(-(stop - first) // BLOCK) for first, stop in parts]
    assert max(blocks) - min(blocks) <= 1


@given(st.lists(st.integers(0, 1499), unique=True), st.integers(1, 4))
def test_the_parts_of_a_batch_are_the_batch(indices, size):
    x = torch.arange(1500.0)[:, None]
    found = []
    for rank in range(size):
        first, stop = part_of(1500, rank, size)
        held = FeatureRows(x[first:stop], torch.arange(first, stop), x[first:stop, 0].square(), 7)
        mine, batch = RowsOfProcess(held, first, stop, begin=first), np.array(indices, dtype=np.int64)
        asked = batch[(batch >= first) & (batch < stop)]
        found += [int(y) for piece in mine.pieces(asked, step=0) for y in piece.y]
        if len(asked) < len(batch):
            with pytest.raises(ValueError, match=f"this process holds {first} to {stop}"):
                mine.pieces(batch, step=0)
    assert sorted(found) == sorted(indices)


def test_processes_that_disagree_are_stopped():
    class Two(Place):
        def gather(self, value: Any) -> list[Any]:
            return [value, self.other]

        other: Any = None

    two = Two(0, 2)
    two.other = two.gather(b"")[0]
    with pytest.raises(UserError, match="take the same"):
        check_same(two, "weights", "take the same")
    check_same(ONE, "weights", "never raised")


def test_a_caller_who_named_no_processes(monkeypatch: pytest.MonkeyPatch):
    assert only_process("fit") is ONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="each would fit, and spend the budget, on its own; give processes="):
        only_process("fit")


def test_what_the_certificate_says():
    told = describe([(0, 2), (40, 1)], sampler="poisson")
    assert told["processes"] == [{"number": 2, "from_step": 0}, {"number": 1, "from_step": 40}]
    assert "one draw in all" in told["noise"]
    assert "draws the blocks of rows in which its own lie" in told["batch"]
    assert "permutes all rows" in describe([(0, 2)], sampler="shuffle")["batch"]
    assert all("batch" not in describe([(0, 2)], sampler=kind) for kind in ("full", "none"))


class TestAnotherNumberOfProcesses:
    @staticmethod
    def checkpoint(*, released: int) -> Checkpoint:
        return Checkpoint(
            key=RandomKey.from_seed(0),
            context="",
            normalizer={},
            ledger=[],
            training={"step": 12},
            metrics=[{"epoch": 1}, {"epoch": 2}],
            seconds=0.0,
            history=((0, 2), (6, 4)),
            released=released,
            threads=(1, 2),
            processors=("AVX2", "AVX2"),
        )

    @pytest.mark.parametrize("released", [2, 3])
    def test_the_same_number_goes_on(self, released):
        assert self.checkpoint(released=released).history_with(4) == ((0, 2), (6, 4))

    def test_another_goes_on_where_nothing_more_was_released(self):
        assert self.checkpoint(released=2).history_with(1) == ((0, 2), (6, 4), (12, 1))

    def test_another_is_refused_where_something_was(self):
        with pytest.raises(
            UserError, match=r"4 processes has shown epoch 3 .* of epoch 2; 2 processes would .* go on with 4"
        ):
            self.checkpoint(released=3).history_with(2)

    def test_other_rounding_goes_on_where_nothing_more_was_released(self):
        same = ("AVX2", "AVX2")
        self.checkpoint(released=2).check_rounding((3, 3), ("AVX512", "AVX512"))
        self.checkpoint(released=3).check_rounding((1, 2), same)
        # Another number of processes has another noise: history_with sees to that.
        self.checkpoint(released=3).check_rounding((3,), ("AVX512",))
        with pytest.raises(
            UserError,
            match=r"with OMP_NUM_THREADS=1, 2 has shown epoch 3 .* of epoch 2; with 3 what .* go on with OMP_NUM_THREADS=1, 2$",
        ):
            self.checkpoint(released=3).check_rounding((3, 3), same)
        with pytest.raises(
            UserError,
            match=r"with processor AVX2 has shown epoch 3 .* with AVX2, AVX512 what .* go on with processor AVX2$",
        ):
            self.checkpoint(released=3).check_rounding((1, 2), ("AVX2", "AVX512"))


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_cases", CASES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def together(digits_features_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of three processes."""
    folder = tmp_path_factory.mktemp("together")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={K}"]
    done = subprocess.run(
        [*launcher, str(CASES), str(digits_features_dir), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(scatterdp.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(K)]


@pytest.fixture(scope="module")
def alone(cases: ModuleType, digits_features_dir: Path) -> dict[str, Any]:
    """The same by this process."""
    return cases.results(ONE, digits_features_dir)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Up to the order in which single-precision numbers are added."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max().clamp(min=1), name


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_all_processes_end_with_the_same_numbers(together):
    for other in together[1:]:
        for name in together[0]:
            if name != "whole fits":
                assert_same(other[name], together[0][name])
        for name, fit in together[0]["whole fits"].items():
            assert_same({**other["whole fits"][name], "told": None}, {**fit, "told": None})


@pytest.mark.parametrize("name", ["poisson", "few rows a batch", "without noise", "full batch", "shuffled", "Adam"])
def test_training_does_not_depend_on_how_many_share_it(together, alone, name):
    """With the same noise, which the cases draw from the key alone: it is added once, with the standard deviation of one draw."""
    found, expected = together[0]["trainings"][name], alone["trainings"][name]
    assert_close(found["weights"], expected["weights"])
    assert found["event"] == expected["event"]
    accuracy, loss = found["accuracy and loss"]
    assert accuracy == pytest.approx(expected["accuracy and loss"][0], abs=1 / 1437)
    assert loss == pytest.approx(expected["accuracy and loss"][1], rel=1e-4)


def test_noise_is_there_at_all(alone):
    """What the test above compares would be equal without any, too."""
    noisy, exact = (alone["trainings"][name]["weights"]["weight"] for name in ("poisson", "without noise"))
    one_draw = gaussian_noise(
        (10, 64),
        noise_multiplier=2.0,
        sensitivity=0.1,
        key=RandomKey.from_seed(1),
        purpose="gradient of weight",
        counter=0,
    )
    assert (noisy - exact).abs().mean() > 0.1 * 2.0 * one_draw.std() / 300


def test_networks_and_augmentation(together, alone):
    found, expected = together[0]["convolutional"], alone["convolutional"]
    assert_close(found["weights"], expected["weights"])
    assert found["event"] == expected["event"]


def test_linear_heads(together, alone):
    found, expected = together[0]["linear heads"], alone["linear heads"]
    assert found.keys() == expected.keys()
    assert len(found) == 8
    for name in expected:
        assert_close(found[name]["weights"], expected[name]["weights"])
        assert found[name].get("event") == expected[name].get("event"), name


def test_a_linear_fit_has_the_ledger_of_one_process_and_noise_of_its_own(together, alone):
    found, expected = together[0]["linear fit"], alone["linear fit"]
    assert found["ledger"] == expected["ledger"]
    assert found["settings"] == expected["settings"]
    name = "classifier.weight"
    assert (found["weights"][name] - expected["weights"][name]).abs().max() > 1e-3


def test_statistics_are_the_same_release(together, alone):
    """To the bit: the noise, whose key is bound to the exact sums, is the same too."""
    assert torch.equal(together[0]["statistics"], alone["statistics"])


class TestWholeFits:
    def test_without_noise(self, together, alone):
        found, expected = (results["whole fits"]["noise 0"] for results in (together[0], alone))
        for name in ("normalizer.mean", "normalizer.scale"):
            assert torch.equal(found["weights"][name], expected["weights"][name])
        assert_close(found["weights"], expected["weights"])
        assert_close(found["average"], expected["average"])
        for row, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert row.pop("epsilon") is other.pop("epsilon") is None
            assert row == pytest.approx(other, rel=1e-4, abs=1 / 360)

    def test_the_guarantee_is_that_of_one_process(self, together, alone):
        found, expected = (results["whole fits"]["noise 4"]["certificate"] for results in (together[0], alone))
        for name in ("epsilon", "epsilon_by_accountant", "ledger", "sampler", "adjacency", "statement", "noise_source"):
            assert found[name] == expected[name]
        assert "computation" not in expected
        assert found["computation"] == describe([(0, K)], sampler="poisson")
        assert [limit for limit in found["limits"] if limit not in expected["limits"]] == [
            "The run was computed by several processes that trust each other: its random key and exact partial sums passed between them "
            "unencrypted. Nothing is promised against someone who controls one of them or reads their network."
        ]

    def test_another_number_of_processes_has_other_noise_but_the_same_batches(self, together, alone):
        found, expected = (results["whole fits"]["noise 4"]["weights"] for results in (together[0], alone))
        assert torch.equal(found["normalizer.mean"], expected["normalizer.mean"])
        assert (found["classifier.weight"] - expected["classifier.weight"]).abs().max() > 1e-3

    def test_the_first_process_tells(self, together):
        told = [results["whole fits"]["noise 4"]["told"] for results in together]
        assert told == [[-K, 1, 2], [], []]


def test_refusals(together):
    refusals = together[0]["refusals"]
    assert refusals["diverging"] == (
        "the processes came to different weights, so their machines compute differently; run on machines that are alike"
    )
    assert refusals["other settings"] == (
        "the processes have different data, settings or versions; give all of them the same"
    )
    assert refusals["nobody named"].startswith("fit: torchrun started several processes, and each would fit")
    assert refusals["engine"].startswith("PrivacyEngine: trains in one process, but torchrun started several")
    assert refusals["device"] == "device=cuda:0: each of several processes takes a device of its own; use --device=cuda"


def test_sums_are_added_in_the_order_of_the_processes(together):
    parts = []
    for rank in range(K):
        generator = torch.Generator().manual_seed(rank)
        parts.append([torch.randn(shape, generator=generator) * 10 ** (3 * rank) for shape in ((7,), (2, 3), ())])
    for results in together:
        for number, total in enumerate(results["added up"]):
            assert torch.equal(total, parts[0][number] + parts[1][number] + parts[2][number])
