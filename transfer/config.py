"""What ``transfer_cifar`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scatterdp.config import TrainingConfig
from scatterdp.errors import ConfigError
from scatterdp.recipes import Recipe

#: The published settings (Tramèr & Boneh 2021, section 5.2). One group of GroupNorm: a network's features have no order that groups could follow.
RECIPE = Recipe(batch_size=2048, lr=8, epochs=40, input_norm="BN", num_groups=1)


@dataclass(frozen=True, kw_only=True)
class TransferConfig(TrainingConfig):
    """A differentially private linear classifier on features of a network that others have trained (Tramèr & Boneh 2021, section 5.2)."""

    feature_path: Path | None = None
    """A feature cache (.h5), what transfer.extract_* has written for (transfer/features/cifar100_resnext), or the prefix of _train.npy and
    _test.npy. With _mean.npy and _var.npy beside those, these are taken as public statistics unless --input_norm is given."""
    dataset: str = "cifar10"
    """Whose labels go with .npy files; a cache has its own."""
    feature_clip_norm: float | None = None
    """For --input_norm=BN: a public bound of a feature row's L2 norm, in place of synthetic images. Choose it without looking at these features."""
    backbone: str | None = None
    """For --input_norm=BN on features of your own code: module:FILE.py:FUNCTION once more, for it is run again."""
    weights: Path | None = None
    """For --input_norm=BN: the checkpoint that the features were extracted with, if it lies elsewhere now."""

    @classmethod
    def module_name(cls) -> str:
        return "transfer.transfer_cifar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim == "LR":
            raise ConfigError("optim=LR: is logistic regression; python -m scatterdp.baselines has it")
        if self.feature_path is None and self.resume is None:
            raise ConfigError(
                "feature_path=None: give the features, --feature_path=transfer/features/cifar100_resnext or another"
            )
        if self.input_norm in ("GroupNorm", "GN", "none"):
            for name in ("feature_clip_norm", "backbone", "weights"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name}={getattr(self, name)}: has no effect with input_norm={self.input_norm}, leave it out"
                    )
