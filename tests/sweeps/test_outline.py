"""Outlines: what they expand to, and what is said of wrong ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterdp.config import CnnsConfig
from scatterdp.errors import ConfigError
from scatterdp.sweeps.outline import parse_outline, read_outline, run_name

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
HEAD = 'command = "cnns"\n'

SHIPPED = {
    "opacus_baseline": 108,
    **{f"{data}_linear": 360 for data in ("cifar10", "mnist", "fmnist")},
    **{f"{data}_cnn": 72 for data in ("cifar10", "mnist", "fmnist")},
    **{f"{data}_scattering_cnn": 360 for data in ("cifar10", "mnist", "fmnist")},
}


class TestExpansion:
    def test_grids_are_crossed_and_the_last_changes_fastest(self):
        outline = parse_outline(HEAD + "[grid]\nlr = [1, 2]\nepochs = [3, 4]", name="x")
        assert outline.runs() == [
            {"lr": 1, "epochs": 3},
            {"lr": 1, "epochs": 4},
            {"lr": 2, "epochs": 3},
            {"lr": 2, "epochs": 4},
        ]

    def test_zipped_lists_go_together_and_several_are_crossed(self):
        text = (
            HEAD
            + '[[zip]]\nlr = [1, 2]\nbatch_size = [10, 20]\n[[zip]]\ninput_norm = ["BN", "GN"]\nnum_groups = ["", 9]'
        )
        assert parse_outline(text, name="x").runs() == [
            {"lr": 1, "batch_size": 10, "input_norm": "BN"},
            {"lr": 1, "batch_size": 10, "input_norm": "GN", "num_groups": 9},
            {"lr": 2, "batch_size": 20, "input_norm": "BN"},
            {"lr": 2, "batch_size": 20, "input_norm": "GN", "num_groups": 9},
        ]

    def test_every_combination_has_every_seed(self):
        outline = parse_outline(HEAD + "seeds = [0, 7]\n[grid]\nlr = [1, 2]", name="x")
        assert [tuple(changes.values()) for changes in outline.runs()] == [(1, 0), (1, 7), (2, 0), (2, 7)]
        assert outline.combinations() == [{"lr": 1}, {"lr": 2}]

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 3))
    def test_the_number_of_runs_is_the_product(self, sizes, pairs, seeds):
        names = ("lr", "momentum", "max_grad_norm")
        grid = "".join(
            f"{name} = {[0.01 * (n + 1) for n in range(size)]}\n" for name, size in zip(names, sizes, strict=False)
        )
        pair = f"[zip]\nepochs = {list(range(1, pairs + 1))}\nbatch_size = {list(range(1, pairs + 1))}"
        outline = parse_outline(f"{HEAD}seeds = {list(range(seeds))}\n[grid]\n{grid}{pair}", name="x")
        assert len(outline.runs()) == math.prod(sizes) * pairs * seeds

    def test_configs_are_those_of_the_command(self):
        text = HEAD + 'validation = 0.2\n[config]\ndataset = "digits"\n[grid]\nlr = [1]'
        outline = parse_outline(text, name="x")
        expected = CnnsConfig(dataset="digits", lr=1.0, validation=0.2, run_dir=Path("here"), seed=3)
        found = outline.config_of({"lr": 1, "seed": 3}, run_dir=Path("here"))
        assert found == expected
        assert type(found.lr) is float

    def test_the_score_is_what_is_held_out_unless_said(self):
        assert parse_outline(HEAD, name="x").score == "test_accuracy"
        held_out = HEAD + "validation = 0.1\n"
        assert parse_outline(held_out, name="x").score == "validation_accuracy"
        assert parse_outline(held_out, name="x").score_is_exact_on_private_data
        assert not parse_outline(held_out + "validation_noise_multiplier = 3", name="x").score_is_exact_on_private_data
        by_test = parse_outline(held_out + 'score = "test_accuracy"', name="x")
        assert not by_test.score_is_exact_on_private_data

    def test_names_are_good_for_folders_and_stay_apart(self):
        changes = {"extractor": "views(patches)/é\n" + "x" * 200, "lr": 0.1}
        name = run_name(12, changes)
        assert name.startswith("012-views_patches_")
        assert len(name) <= 80
        assert not set(name) & set("/\n() é")

    def test_names_do_not_tell_seeds(self):
        assert run_name(3, {"lr": 0.1, "seed": 98765}) == "003-0.1"


class TestShipped:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_each_has_its_number_of_runs_and_a_smoke_of_the_same_kind(self, name):
        outline, smoke = (read_outline(EXPERIMENTS / f"{name}{end}.toml") for end in ("", "_smoke"))
        assert len(outline.runs()) == SHIPPED[name]
        assert 2 <= len(smoke.runs()) <= 4
        assert smoke.config["dataset"] == "digits"
        assert (smoke.command, smoke.score) == (outline.command, outline.score)
        assert smoke.grid.keys() == outline.grid.keys()
        assert [one.keys() for one in smoke.zip] == [one.keys() for one in outline.zip]

    def test_there_are_no_others(self):
        assert {path.stem for path in EXPERIMENTS.glob("*.toml")} == {
            f"{n}{end}" for n in SHIPPED for end in ("", "_smoke")
        }


WRONG = {
    "no TOML": ("command = ", "is no TOML"),
    "no command": ("seeds = [1]", "command=None: expected one of baselines, cnns"),
    "another command": ('command = "cnn"', "command='cnn': expected one of"),
    "unknown key": (HEAD + "sedes = [1]", "sedes: unknown, did you mean seeds?"),
    "unknown flag": (
        HEAD + "[grid]\nmax_grad_nrom = [1]",
        r"\[grid\] max_grad_nrom: unknown, did you mean max_grad_norm?",
    ),
    "unknown flag in config": (
        HEAD + "[config]\nbatchsize = 1",
        r"\[config\] batchsize: unknown, did you mean batch_size?",
    ),
    "empty list": (HEAD + "[grid]\nlr = []", r"\[grid\] lr=\[\]: is empty"),
    "no list": (HEAD + "[grid]\nlr = 1", r"\[grid\] lr=1: expected a list, \[1\]"),
    "empty seeds": (HEAD + "seeds = []", r"seeds=\[\]: is empty"),
    "seeds that are no seeds": (HEAD + "seeds = [1.5]", r"seeds=\[1.5\]: expected a list of whole numbers"),
    "a seed twice": (HEAD + "seeds = [1, 1]", "names a seed twice"),
    "seed as a flag": (HEAD + "[config]\nseed = 1", r"\[config\] seed: write seeds = \[…\]"),
    "a run folder": (HEAD + '[config]\nrun_dir = "x"', "every run has its place"),
    "lengths": (HEAD + "[zip]\nlr = [1, 2]\nepochs = [1]", "lr has 2, epochs has 1 values"),
    "two places": (HEAD + "[config]\nlr = 1\n[grid]\nlr = [1]", r"lr: stands in \[config\] and in \[grid\]"),
    "the same twice": (HEAD + "[grid]\nlr = [1, 1.0]", "lr=1.0: comes twice"),
    "a word": (HEAD + '[grid]\nlr = ["big"]', "lr='big': expected a number"),
    "half an epoch": (HEAD + "[grid]\nepochs = [2.5]", "epochs=2.5: expected a whole number"),
    "true as a number": (HEAD + "[config]\nepochs = true", "epochs=True: expected a whole number"),
    "unknown choice": (
        HEAD + '[grid]\narch = ["resnet2"]',
        "arch='resnet2': expected one of .*, did you mean resnet20?",
    ),
    "refused by the command": (HEAD + "[grid]\nlr = [1, -1]", "x, lr=-1: lr=-1.0: expected a finite number > 0"),
    "contradiction": (HEAD + "[grid]\nnoise_multiplier = [1]\ntarget_epsilon = [3]", "each determines the other"),
    "several data sets": (HEAD + '[grid]\ndataset = ["mnist", "digits"]', "write an outline for each"),
    "noise for nothing": (HEAD + "validation_noise_multiplier = 3", "has no effect without validation"),
    "score of nothing": (HEAD + 'score = "validation_accuracy"', "nothing is held out"),
    "unknown score": (HEAD + 'score = "accuracy"', "score='accuracy': expected one of"),
    "share": (HEAD + "validation = 2", "validation=2.0: expected a share"),
    "a table that is none": (HEAD + "grid = 3", r"grid=3: expected a table, \[grid\]"),
    "too many": (
        HEAD + f"[grid]\nlr = {list(range(1, 200))}\nepochs = {list(range(1, 200))}",
        "expected at most 10000 runs",
    ),
}


class TestErrors:
    @pytest.mark.parametrize("kind", WRONG)
    def test_are_one_sentence_that_names_the_place(self, kind):
        text, message = WRONG[kind]
        with pytest.raises(ConfigError, match=message) as caught:
            parse_outline(text, name="x")
        assert str(caught.value).startswith("outline x")
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match="No such file"):
            read_outline(tmp_path / "none.toml")

    def test_a_file_that_is_no_text(self, tmp_path):
        (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="is no text"):
            read_outline(tmp_path / "x.toml")
