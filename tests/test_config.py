"""What the user may say: every flag, its checks, its record."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.config import BaselinesConfig
from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.training.plan import plan_from_config

FLAGS: dict[str, tuple[list[str], Any]] = {
    "dataset": (["--dataset=some/folder"], "some/folder"),
    "augment": (["--augment"], True),
    "mirror": (["--mirror=False"], False),
    "schedule": (["--schedule=cosine"], "cosine"),
    "precondition": (["--precondition=100"], 100),
    "precondition_power": (["--precondition_power=0.7"], 0.7),
    "extractor": (["--extractor=patches(size=5)"], "patches(size=5)"),
    "batch_size": (["--batch_size=4096"], 4096),
    "mini_batch_size": (["--mini_batch_size", "64"], 64),
    "lr": (["--lr=8"], 8.0),
    "optim": (["--optim=Adam"], "Adam"),
    "momentum": (["--momentum=0"], 0.0),
    "nesterov": (["--nesterov"], True),
    "noise_multiplier": (["--noise_multiplier=3.04"], 3.04),
    "max_grad_norm": (["--max_grad_norm=0.1"], 0.1),
    "epochs": (["--epochs=40"], 40),
    "input_norm": (["--input_norm=GN"], "GN"),
    "num_groups": (["--num_groups=27"], 27),
    "bn_noise_multiplier": (["--bn_noise_multiplier=8"], 8.0),
    "max_epsilon": (["--max_epsilon=3"], 3.0),
    "sample_batches": (["--sample_batches"], True),
    "logdir": (["--logdir=logs/a"], Path("logs/a")),
    "target_epsilon": (["--target_epsilon=2.5"], 2.5),
    "target_delta": (["--target_delta=1e-6"], 1e-6),
    "accountant": (["--accountant=rdp_classic"], "rdp_classic"),
    "sampling": (["--sampling=shuffle"], "shuffle"),
    "seed": (["--seed=0"], 0),
    "device": (["--device=cuda:1"], "cuda:1"),
    "data_dir": (["--data_dir=/somewhere"], Path("/somewhere")),
    "features_dir": (["--features_dir=elsewhere"], Path("elsewhere")),
    "feature_dtype": (["--feature_dtype=float16"], "float16"),
    "memory_budget": (["--memory_budget=4GB"], "4GB"),
    "run_dir": (["--run_dir=runs/one"], Path("runs/one")),
    "resume": (["--resume=runs/one"], Path("runs/one")),
    "train_metrics": (["--train_metrics"], True),
    "validation": (["--validation=0.1"], 0.1),
}

NEEDS_ANOTHER = {"validation_noise_multiplier"}  # flags that are refused alone

PUBLISHED_COMMANDS = {
    "mnist": "--dataset=mnist --batch_size=4096 --lr=8 --input_norm=BN --bn_noise_multiplier=8 --noise_multiplier=3.04",
    "fmnist": "--dataset=fmnist --batch_size=8192 --lr=16 --input_norm=GroupNorm --num_groups=27 --noise_multiplier=4.05",
    "cifar10": "--dataset=cifar10 --batch_size=8192 --lr=4 --input_norm=BN --bn_noise_multiplier=8 --noise_multiplier=5.67",
}


def parse(*arguments: str) -> BaselinesConfig:
    return tyro.cli(BaselinesConfig, args=list(arguments), use_underscores=True)


class TestFlags:
    def test_the_table_above_has_every_flag(self):
        assert FLAGS.keys() | NEEDS_ANOTHER == {field.name for field in dataclasses.fields(BaselinesConfig)}

    @pytest.mark.parametrize("name", FLAGS)
    def test_each_is_accepted_and_changes_its_field_alone(self, name):
        arguments, value = FLAGS[name]
        expected = dataclasses.replace(BaselinesConfig(), **{name: value})
        assert parse(*arguments) == expected != BaselinesConfig()
        assert type(getattr(parse(*arguments), name)) is type(value)

    def test_without_flags_the_defaults_hold(self):
        assert parse() == BaselinesConfig()
        assert BaselinesConfig().dataset == "cifar10"
        assert BaselinesConfig().target_delta == 1e-5

    @pytest.mark.parametrize("name", ["augment", "nesterov", "sample_batches", "train_metrics"])
    def test_switches_can_be_switched_off(self, name):
        assert getattr(parse(f"--no_{name}"), name) is False

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("optim", ["SGD", "Adam", "LR"]),
            ("input_norm", ["BN", "GroupNorm", "GN", "none"]),
            ("accountant", ["pld", "rdp", "rdp_classic"]),
            ("sampling", ["poisson", "shuffle"]),
            ("feature_dtype", ["float32", "float16"]),
        ],
    )
    def test_choices(self, name, values, capsys):
        assert [getattr(parse(f"--{name}={value}"), name) for value in values] == values
        with pytest.raises(SystemExit) as stop:
            parse(f"--{name}=other")
        assert stop.value.code == 2
        message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
        assert "'other'" in message
        assert f"--{name}" in message
        assert all(value in message for value in values)

    @pytest.mark.parametrize(
        "argument",
        ["--batch_size=many", "--batch_size=1.5", "--lr=fast", "--seed=1.0", "--noise_multiplier=low", "--epochs="],
    )
    def test_types(self, argument, capsys):
        with pytest.raises(SystemExit) as stop:
            parse(argument)
        assert stop.value.code == 2
        assert argument.split("=")[0] in capsys.readouterr().err

    def test_help_explains_every_flag(self, capsys):
        with pytest.raises(SystemExit) as stop:
            parse("--help")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{name}" in text for name in FLAGS)


class TestPublishedCommands:
    @pytest.mark.parametrize(
        ("name", "num_examples", "steps", "expected"),
        [
            ("mnist", 60_000, 14 * 40, {"batch_size": 4096, "lr": 8.0, "input_norm": "BN", "noise_multiplier": 3.04}),
            (
                "fmnist",
                60_000,
                7 * 40,
                {"batch_size": 8192, "lr": 16.0, "input_norm": "GroupNorm", "noise_multiplier": 4.05},
            ),
            ("cifar10", 50_000, 6 * 60, {"batch_size": 8192, "lr": 4.0, "input_norm": "BN", "noise_multiplier": 5.67}),
        ],
    )
    def test_parse_into_the_published_plans(self, name, num_examples, steps, expected):
        config = parse(*PUBLISHED_COMMANDS[name].split())
        plan = plan_from_config(config, dataset_name=config.dataset, num_examples=num_examples)
        assert plan.steps == steps
        assert plan.selection().kind == "poisson"
        assert plan.selection().sample_rate == plan.batch_size / num_examples
        assert {field: getattr(plan, field) for field in expected} == expected
        assert (plan.optimizer, plan.momentum, plan.nesterov, plan.max_grad_norm) == ("SGD", 0.9, False, 0.1)
        assert (plan.num_groups, plan.bn_noise_multiplier, plan.delta) == (27, 8.0, 1e-5)
        classic = epsilon_of(plan.event(), delta=1e-5, accountant="rdp_classic")
        assert 2.5 < classic <= 3.005  # published as ε = 3


BAD_VALUES = [
    ("batch_size", 0, "expected a whole number ≥ 1"),
    ("batch_size", -5, "expected a whole number ≥ 1"),
    ("mini_batch_size", 0, "expected a whole number ≥ 1"),
    ("epochs", 0, "expected a whole number ≥ 1"),
    ("num_groups", 0, "expected a whole number ≥ 1"),
    ("seed", -1, "expected a whole number ≥ 0"),
    *((name, bad, "expected a finite number > 0") for name in ("lr", "max_grad_norm") for bad in (0.0, -1.0)),
    ("lr", float("nan"), "expected a finite number > 0"),
    *((name, 1e300, "expected at most 1e+20") for name in ("lr", "max_grad_norm")),
    ("max_grad_norm", float("inf"), "expected a finite number > 0"),
    ("max_epsilon", 0.0, "expected a finite number > 0"),
    ("target_epsilon", -3.0, "expected a finite number > 0"),
    ("target_epsilon", float("inf"), "expected a finite number > 0"),
    ("noise_multiplier", -0.1, "expected a finite number ≥ 0"),
    ("noise_multiplier", float("nan"), "expected a finite number ≥ 0"),
    ("bn_noise_multiplier", float("inf"), "expected a finite number ≥ 0"),
    ("noise_multiplier", 1e7, "expected at most 1e+06"),
    ("bn_noise_multiplier", 1e300, "expected at most 1e+06"),
    ("momentum", 1.0, "expected a number in [0, 1)"),
    ("momentum", -0.5, "expected a number in [0, 1)"),
    ("momentum", float("nan"), "expected a number in [0, 1)"),
    ("target_delta", 0.0, "expected a number between 0 and 1"),
    ("target_delta", 1.0, "expected a number between 0 and 1"),
    ("target_delta", float("nan"), "expected a number between 0 and 1"),
]


class TestChecks:
    @pytest.mark.parametrize(("name", "value", "expected"), BAD_VALUES)
    def test_values_out_of_range(self, name, value, expected):
        with pytest.raises(ConfigError, match=f"^{re.escape(f'{name}={value}: {expected}')}$"):
            BaselinesConfig(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("batch_size", 1), ("seed", 0), ("noise_multiplier", 0.0), ("momentum", 0.0), ("target_delta", 0.5)],
    )
    def test_limits_that_are_allowed(self, name, value):
        assert getattr(BaselinesConfig(**{name: value}), name) == value

    def test_noise_and_target_exclude_each_other(self):
        with pytest.raises(
            ConfigError,
            match=r"^noise_multiplier=2\.0 and target_epsilon=3\.0: each determines the other, give one of them$",
        ):
            BaselinesConfig(noise_multiplier=2.0, target_epsilon=3.0)

    def test_poisson_and_shuffled_batches_exclude_each_other(self):
        with pytest.raises(ConfigError, match=r"^sample_batches and sampling=shuffle contradict each other"):
            BaselinesConfig(sample_batches=True, sampling="shuffle")
        assert BaselinesConfig(sample_batches=True).sampling == "poisson"

    @pytest.mark.parametrize("others", [{"optim": "Adam"}, {"optim": "LR"}, {"momentum": 0.0}])
    def test_nesterov_needs_sgd_with_momentum(self, others):
        with pytest.raises(ConfigError, match=r"^nesterov: needs optim=SGD and momentum > 0$"):
            BaselinesConfig(nesterov=True, **others)

    @pytest.mark.parametrize("optim", ["Adam", "LR"])
    def test_momentum_is_of_sgd(self, optim):
        with pytest.raises(ConfigError, match=rf"^momentum=0\.5: has no effect with optim={optim}, leave it out$"):
            BaselinesConfig(optim=optim, momentum=0.5)

    def test_logistic_regression_does_not_augment(self):
        with pytest.raises(ConfigError, match=r"^augment: has no effect with optim=LR, leave it out$"):
            BaselinesConfig(optim="LR", augment=True)

    def test_is_frozen_and_keyword_only(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            BaselinesConfig().lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(TypeError):
            BaselinesConfig("mnist")  # pyright: ignore[reportCallIssue]


positive = st.none() | st.floats(1e-6, 1e6)
paths = st.none() | st.sampled_from([Path("a"), Path("/b/c d/é"), Path("..")])


class TestRecord:
    @given(
        values=st.fixed_dictionaries(
            {},
            optional={
                "dataset": st.text(min_size=1),
                "augment": st.booleans(),
                "batch_size": st.none() | st.integers(1, 10**6),
                "lr": positive,
                "optim": st.sampled_from(["SGD", "Adam", "LR"]),
                "momentum": st.none() | st.floats(0, 0.999),
                "noise_multiplier": st.none() | st.floats(0, 100),
                "max_epsilon": positive,
                "target_delta": st.floats(1e-12, 0.5),
                "seed": st.none() | st.integers(0, 2**64),
                "logdir": paths,
                "data_dir": paths,
                "features_dir": st.sampled_from([Path("x"), Path("/y")]),
                "run_dir": paths,
                "resume": paths,
                "input_norm": st.sampled_from([None, "BN", "GroupNorm", "GN", "none"]),
            },
        )
    )
    def test_round_trip(self, values):
        if values.get("optim", "SGD") != "SGD":
            values = values | {"momentum": None, "augment": False}
        config = BaselinesConfig(**values)
        assert BaselinesConfig.from_json(json.dumps(config.to_json(), allow_nan=False)) == config

    def test_every_flag_survives(self):
        contradicting = ("noise_multiplier", "sampling", "optim", "momentum", "mirror")
        values = {name: value for name, (_, value) in FLAGS.items() if name not in contradicting}
        config = BaselinesConfig(**values)
        assert BaselinesConfig.from_json(json.dumps(config.to_json())) == config
        assert config.to_json().keys() == FLAGS.keys() | NEEDS_ANOTHER

    def test_unknown_names_are_refused(self):
        values = BaselinesConfig().to_json() | {"learning_rate": 3}
        with pytest.raises(
            ConfigError, match=r"^config\.json: .*learning_rate.*; was it written by another command or version\?$"
        ):
            BaselinesConfig.from_json(json.dumps(values))

    def test_missing_names_are_refused(self):
        values = BaselinesConfig(noise_multiplier=4.0).to_json()
        del values["noise_multiplier"]
        with pytest.raises(ConfigError, match=r"^config\.json: .*noise_multiplier"):
            BaselinesConfig.from_json(json.dumps(values))

    def test_other_json_is_refused(self):
        with pytest.raises(ConfigError, match=r"config\.json"):
            BaselinesConfig.from_json("[]")

    @pytest.mark.parametrize(("name", "value"), [("batch_size", "many"), ("optim", "other")])
    def test_values_of_another_kind_are_refused(self, name, value):
        with pytest.raises(ConfigError, match=name):
            BaselinesConfig.from_json(json.dumps(BaselinesConfig().to_json() | {name: value}))

    def test_values_out_of_range_are_refused(self):
        with pytest.raises(ConfigError, match=r"^epochs=0: expected a whole number"):
            BaselinesConfig.from_json(json.dumps(BaselinesConfig().to_json() | {"epochs": 0}))
