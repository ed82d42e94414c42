"""A command line that is typed again gives the config that it came from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tyro

from scatterdp.commands.fit import FitConfig
from scatterdp.config import BaselinesConfig, CnnsConfig, TinyImagesConfig
from scatterdp.report.command_lines import command_line
from transfer.config import TransferConfig

ODD = Path("a folder/it's $HOME; rm x")
CONFIGS = [
    BaselinesConfig(dataset="digits"),
    BaselinesConfig(
        dataset="mnist", extractor="views(0.5*scatternet(mirror=True)+patches, crops=((1,0),(0.85,0)))", seed=3, lr=0.25
    ),
    BaselinesConfig(dataset=str(ODD), mirror=False, nesterov=True, train_metrics=True, data_dir=ODD, target_delta=1e-6),
    BaselinesConfig(mirror=True, augment=True, noise_multiplier=4.5, features_dir=Path("elsewhere")),
    CnnsConfig(use_scattering=True, size="small", arch="cnn", clipping="automatic", early_stop=True),
    TinyImagesConfig(tiny_images=ODD, data_size=70_000, use_scattering=True, lr=16),
    TransferConfig(feature_path=ODD, feature_clip_norm=2.5, input_norm="BN", optim="Adam", batch_size=64),
    FitConfig(features="x.npy", labels="my labels.csv:species", target_epsilon=1.5, head="newton", seed=0),
]


def as_a_shell_reads(line: str) -> list[str]:
    """What ``python`` would be given."""
    script = f"python() {{ printf '%s\\0' \"$@\"; }}\n{line}"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_gives_the_config_again(config: Any):
    line = command_line(json.loads(json.dumps(config.to_json())), show_seed=True)
    words = as_a_shell_reads(line)
    module = "scatterdp fit" if isinstance(config, FitConfig) else config.module_name()
    assert words[: 1 + len(module.split())] == ["-m", *module.split()]
    assert tyro.cli(type(config), args=words[1 + len(module.split()) :], use_underscores=True) == config


def test_defaults_and_places_are_left_out():
    config = BaselinesConfig(dataset="digits", run_dir=Path("runs/a"), epochs=2)
    assert command_line(config.to_json(), show_seed=True) == (
        "python -m scatterdp.baselines --dataset=digits --epochs=2"
    )


def test_the_seed_is_kept_back():
    config = BaselinesConfig(dataset="digits", seed=4242).to_json()
    assert "4242" in command_line(config, show_seed=True)
    assert "seed" not in command_line(config, show_seed=False)


def test_a_long_command_has_a_line_a_flag():
    line = command_line(BaselinesConfig(dataset="x" * 50, logdir=Path("y" * 50)).to_json(), show_seed=True)
    assert line.split("\n") == [
        "python -m scatterdp.baselines \\",
        f"    --dataset={'x' * 50} \\",
        f"    --logdir={'y' * 50}",
    ]


def test_flags_that_nobody_knows_are_written_as_they_are():
    assert command_line({"dataset": "digits", "validation": 0.1, "new": True}, show_seed=True) == (
        "python -m scatterdp.baselines --dataset=digits --validation=0.1 --new=True"
    )
