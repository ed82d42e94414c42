"""``python -m scatterdp.cnns``: the same way as the linear classifier's, with networks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from run_folders import interrupted_in_epoch
from safetensors.torch import load_file

from scatterdp import cnns, experiment
from scatterdp.config import CnnsConfig
from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.training import fit as fit_module
from scatterdp.training.plan import plan_from_config

PUBLISHED = {
    "--dataset=mnist --batch_size=512 --lr=0.5 --noise_multiplier=1.23": 60000,
    "--dataset=fmnist --batch_size=2048 --lr=4 --noise_multiplier=2.15": 60000,
    "--dataset=cifar10 --batch_size=1024 --lr=1 --noise_multiplier=1.54": 50000,
    "--dataset=mnist --use_scattering --batch_size=1024 --lr=1 --input_norm=BN --bn_noise_multiplier=8 "
    "--noise_multiplier=1.35": 60000,
    "--dataset=fmnist --use_scattering --batch_size=2048 --lr=4 --input_norm=GroupNorm --num_groups=27 "
    "--noise_multiplier=2.15": 60000,
    "--dataset=cifar10 --use_scattering --batch_size=8192 --lr=4 --input_norm=BN --bn_noise_multiplier=8 "
    "--noise_multiplier=5.67": 50000,
}


@pytest.mark.parametrize("command", PUBLISHED)
def test_the_published_commands_spend_the_published_budget(command):
    config = tyro.cli(CnnsConfig, args=shlex.split(command), use_underscores=True)
    plan = plan_from_config(config, dataset_name=config.dataset, num_examples=PUBLISHED[command])
    assert 2.9 < epsilon_of(plan.event(), delta=1e-5, accountant="rdp_classic") < 3.02
    assert epsilon_of(plan.event(), delta=1e-5) < 2.5
    assert plan.head == ("scatternet_cnn" if config.use_scattering else "cnn")
    assert plan.engine == "mixed_ghost"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"optim": "LR"}, "optim=LR: is logistic regression"),
        ({"arch": "resnet20", "use_scattering": True}, "arch=resnet20: has one size and takes pixels"),
        ({"arch": "resnet20", "size": "small"}, "arch=resnet20: has one size and takes pixels"),
        ({"mirror": True}, "mirror=True: is about fixed features"),
        ({"batch_size": 0}, "batch_size=0: expected"),
        (
            {"augmentation_multiplicity": 0, "augment": True},
            "augmentation_multiplicity=0: expected a whole number from 1 to 1024",
        ),
        (
            {"augmentation_multiplicity": 10**9, "augment": True},
            "augmentation_multiplicity=1000000000: expected a whole number from 1 to 1024",
        ),
        ({"augmentation_multiplicity": 4}, "augmentation_multiplicity=4: copies would all be the same; give --augment"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ConfigError) as raised:
        CnnsConfig(**flags)
    assert str(raised.value).startswith(message)


def test_the_config_goes_through_json_and_is_not_the_other_commands():
    config = CnnsConfig(use_scattering=True, size="small", schedule="one_cycle", logdir=Path("logs"))
    text = json.dumps(config.to_json())
    assert CnnsConfig.from_json(text) == config
    with pytest.raises(ConfigError, match="unknown or missing"):
        super(CnnsConfig, CnnsConfig).from_json.__func__(CnnsConfig.__mro__[1], text)
    with pytest.raises(ConfigError, match="clipping='soft', expected one of"):
        CnnsConfig.from_json(text.replace('"clipping": "flat"', '"clipping": "soft"'))


@pytest.fixture
def arguments(tmp_path, monkeypatch, digits_features_dir, accounting_once) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--dataset=digits", "--use_scattering", "--seed=3", "--epochs=4", "--noise_multiplier=3", "--batch_size=256",
            "--device=cpu", f"--features_dir={digits_features_dir}"]  # fmt: skip


def summary(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text())


def test_a_run_leaves_what_the_linear_one_does(arguments, capsys):
    assert cnns.main([*arguments, "--run_dir=run"]) == 0
    weights = load_file("run/model.safetensors")
    assert weights["classifier.1.weight"].shape == (16, 81, 3, 3)
    assert summary("run")["plan"]["head"] == "scatternet_cnn"
    certificate = json.loads(Path("run/certificate.json").read_text())
    assert [entry["name"] for entry in certificate["ledger"]] == ["training"]
    assert certificate["epsilon"] == summary("run")["epsilon"] > 0
    assert "test accuracy" in capsys.readouterr().out
    assert cnns.main([*arguments, "--run_dir=again"]) == 0
    assert Path("again/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()


def test_copies_of_an_example_share_one_clipped_gradient(arguments, monkeypatch):
    seen: list[tuple[int, int]] = []
    engine = fit_module.ENGINES["mixed_ghost"]

    def notes(model, loss, x, y, **options):
        seen.append((len(x), options["copies"]))
        return engine(model, loss, x, y, **options)

    monkeypatch.setitem(fit_module.ENGINES, "mixed_ghost", notes)
    flags = [*arguments, "--augment", "--augmentation_multiplicity=3", "--epochs=1"]
    assert cnns.main([*flags, "--run_dir=three", "--mini_batch_size=90"]) == 0
    assert all(rows % 3 == 0 and rows <= 90 and copies == 3 for rows, copies in seen)
    assert summary("three")["plan"]["augmentation_multiplicity"] == 3
    assert cnns.main([*arguments, "--augment", "--epochs=1", "--run_dir=one"]) == 0
    assert summary("one")["epsilon"] == summary("three")["epsilon"]


def test_an_interrupted_run_ends_as_if_nothing_had_happened(arguments, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
    flags = [*arguments, "--schedule=one_cycle", "--augment"]
    with interrupted_in_epoch(3):
        assert cnns.main([*flags, "--run_dir=run"]) == 130
    assert capsys.readouterr().err.endswith("go on with python -m scatterdp.cnns --resume=run\n")
    assert cnns.main(["--resume=run"]) == 0
    assert cnns.main([*flags, "--run_dir=whole"]) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("engine", ["ghost", "crb", "vmap"])
def test_engines_differ_by_rounding_only(arguments, engine, monkeypatch, noise_of_the_key_alone):
    monkeypatch.setattr(fit_module, "context", lambda *_, **__: "one context for all")  # the same noise
    assert cnns.main([*arguments, "--epochs=1", "--run_dir=first"]) == 0
    assert cnns.main([*arguments, "--epochs=1", f"--engine={engine}", "--run_dir=second"]) == 0
    first, second = (load_file(f"{name}/model.safetensors") for name in ("first", "second"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("clipping", ["per_layer", "automatic"])
def test_other_clipping_functions(arguments, clipping):
    assert cnns.main([*arguments, f"--clipping={clipping}", "--epochs=1", "--run_dir=run"]) == 0
    certificate = json.loads(Path("run/certificate.json").read_text())
    assert certificate["ledger"][0]["details"]["clipping"] == clipping


def test_an_early_stop_keeps_the_whole_budget(arguments, monkeypatch):
    monkeypatch.setattr(fit_module, "_has_stalled", lambda accuracies: len(accuracies) == 2)
    assert cnns.main([*arguments, "--early_stop", "--run_dir=run"]) == 0
    rows = Path("run/metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    certificate = json.loads(Path("run/certificate.json").read_text())
    assert certificate["ledger"][0]["event"]["count"] == 4 * 5  # as planned
    assert cnns.main([*arguments, "--run_dir=whole"]) == 0  # without the flag nothing stops
    assert len(Path("whole/metrics.jsonl").read_text().splitlines()) == 4
    assert summary("run")["epsilon"] == summary("whole")["epsilon"]


def test_an_early_stop_looks_at_test_accuracy_alone(arguments, monkeypatch):
    seen: list[list[float]] = []
    monkeypatch.setattr(fit_module, "_has_stalled", lambda accuracies: bool(seen.append(list(accuracies))))
    assert cnns.main([*arguments, "--early_stop=True", "--run_dir=run"]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["test_accuracy"] for row in rows] != [row["test_accuracy_ema"] for row in rows]
    assert seen[-1] == [row["test_accuracy"] for row in rows][: len(seen[-1])]
    assert len(seen) >= 3


@pytest.mark.parametrize(
    ("given", "meant"),
    [("--early_stop=True", True), ("--early_stop=false", False), ("--early_stop", True), ("--no_early_stop", False)],
)
def test_switches_with_a_value(given, meant, monkeypatch):
    configs: list[CnnsConfig] = []
    monkeypatch.setattr(experiment, "run", configs.append)
    assert cnns.main(["--dataset=mnist", given, "--mirror=True", "--use_scattering=True"]) == 0
    assert (configs[0].early_stop, configs[0].mirror, configs[0].use_scattering) == (meant, True, True)


def test_stalled_is_five_epochs_without_a_better_one():
    assert not fit_module._has_stalled([0.1, 0.5, 0.4, 0.4, 0.4, 0.4])
    assert fit_module._has_stalled([0.1, 0.5, 0.4, 0.4, 0.4, 0.4, 0.5])
