"""The flags of ``python -m scatterdp finetune``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from scatterdp.config import MAX_NOISE_MULTIPLIER, RunConfig
from scatterdp.errors import ConfigError

DEFAULT_DELTA = 1e-6
DEFAULT_CLIP_NORM = 1.0
_OF_DP = ("dp_sigma", "dp_clip_norm", "noise_multiplier", "target_epsilon", "target_delta")

Model = Literal["resnet18", "resnet50"]
Optim = Literal["SGD", "Adam"]
LrSchedule = Literal["cos", "fixed"]
Precision = Literal["float32", "bfloat16"]
AccountantName = Literal["pld", "rdp", "rdp_classic"]
_CHOICES = {
    "model": Model,
    "optim": Optim,
    "lr_schedule": LrSchedule,
    "precision": Precision,
    "accountant": AccountantName,
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Train a ResNet on images: without DP on public ones (--disable_dp), or with DP on private ones, from public weights (--finetune_path)."""

    dataset: Path | None = None
    """A folder: train/<class>/*.jpg|png and test/<class>/… or val/<class>/…, or WebDataset shards train*.tar and test*.tar or val*.tar
    (KEY.jpg beside KEY.cls)."""
    image_size: int = 224
    """Height and width in pixels; images of another size are cut to the middle 7/8 of their shorter side and resized."""
    model: Model = "resnet18"
    """ResNet version 2 with group normalisation."""
    finetune_path: Path | None = None
    """Public weights to start from: model.safetensors of a run, a torch state dict, or the published objax .npz. None: random weights."""
    finetune_cut_last_layer: bool = True
    """Start the last layer anew in place of taking it from finetune_path."""
    num_layers_to_freeze: int = 0
    """0 to 10: of the network's eleven layers so many stay as they are: stem, pad, pool, group1 … group4, norm, relu, mean, linear."""
    train_device_batch_size: int = 128
    """Images in work at once."""
    grad_acc_steps: int = 1
    """The expected batch is train_device_batch_size times this; sampled as a whole (Poisson), clipped in pieces, noise once."""
    num_train_epochs: int = 10
    """Passes over the data; an epoch is ⌊N / batch⌋ steps."""
    base_learning_rate: float = 0.03
    """For 256 images: the learning rate is this times batch / 256."""
    lr_warmup_epochs: float = 1.0
    """The learning rate rises in a straight line for so long."""
    lr_schedule: LrSchedule = "cos"
    """After the rise: down along a cosine, or fixed."""
    optim: Optim = "SGD"
    """SGD with Nesterov momentum 0.9, or Adam."""
    weight_decay: float = 1e-4
    """Pulls weights towards zero; applied after the noise, so it costs nothing."""
    augment: bool = False
    """Flip every training image at random and shift it by up to four pixels."""
    disable_dp: bool = False
    """Train without clipping and noise: for public images only."""
    dp_sigma: float | None = None
    """The published convention: noise of standard deviation dp_sigma·dp_clip_norm for each of the grad_acc_steps pieces. Noise multiplier =
    dp_sigma·√grad_acc_steps."""
    noise_multiplier: float | None = None
    """Noise standard deviation ÷ dp_clip_norm, once a step: dp_sigma in the standard convention."""
    target_epsilon: float | None = None
    """ε; the noise multiplier is solved for it. 3 when neither this nor a noise is given."""
    dp_clip_norm: float | None = None
    """L2 bound of each image's gradient. None: 1."""
    target_delta: float | None = None
    """δ; below 1/N. None: 1e-6."""
    accountant: AccountantName = "pld"
    """Which upper bound on ε counts."""
    precision: Precision = "float32"
    """bfloat16: convolutions in bfloat16 (autocast); weights, clipping, sums and noise stay float32."""
    max_eval_batches: int | None = None
    """Evaluate on so many batches of 250 test images, a fixed random choice. None: all."""
    seed: int | None = None
    """Makes the run reproducible and the noise predictable to whoever knows it. None: 256 bits from the system."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    features_dir: Path = Path("features")
    """Where commitment.key lies, with which certificates name the data."""
    run_dir: Path | None = None
    """Where the run's record goes; must not exist yet. None: runs/<dataset>-<time>."""
    resume: Path | None = None
    """Continue the run in this folder from its checkpoint, with its own config; no other flag beside it."""
    logdir: Path | None = None
    """Also write TensorBoard events to this folder."""

    @classmethod
    def module_name(cls) -> str:
        return "scatterdp finetune"

    def __post_init__(self) -> None:
        if self.resume is None and self.dataset is None:
            raise ConfigError("dataset: none given; expected a folder of images, or --resume=RUN_FOLDER")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        least = {"image_size": 8, "train_device_batch_size": 1, "grad_acc_steps": 1, "num_train_epochs": 1, "num_layers_to_freeze": 0,
                 "max_eval_batches": 1, "seed": 0}  # fmt: skip
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name}={value}: expected a whole number ≥ {lowest}")
        for name, zero in (("base_learning_rate", False), ("dp_clip_norm", False), ("target_epsilon", False),
                           ("dp_sigma", True), ("noise_multiplier", True), ("weight_decay", True), ("lr_warmup_epochs", True)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
                raise ConfigError(f"{name}={value}: expected a finite number {'≥' if zero else '>'} 0")
        for name in ("dp_sigma", "noise_multiplier"):
            if (getattr(self, name) or 0) > MAX_NOISE_MULTIPLIER:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at most {MAX_NOISE_MULTIPLIER:g}")
        if self.target_delta is not None and not 0 < self.target_delta < 1:
            raise ConfigError(f"target_delta={self.target_delta}: expected a number between 0 and 1")
        given = [name for name in _OF_DP if getattr(self, name) is not None]
        if self.disable_dp and given:
            raise ConfigError(
                f"{given[0]}={getattr(self, given[0])} beside disable_dp: has no effect without DP, leave one of them out"
            )
        noises = [name for name in ("dp_sigma", "noise_multiplier", "target_epsilon") if name in given]
        if len(noises) > 1:
            raise ConfigError(f"{' and '.join(noises)}: each determines the others, give one of them")
        if self.finetune_path is None and not self.finetune_cut_last_layer:
            raise ConfigError("no_finetune_cut_last_layer: has no effect without finetune_path, leave it out")
        if self.num_layers_to_freeze and self.finetune_path is None:
            raise ConfigError(
                f"num_layers_to_freeze={self.num_layers_to_freeze}: would freeze random weights; give --finetune_path too"
            )

    @property
    def batch_size(self) -> int:
        """The expected logical batch."""
        return self.train_device_batch_size * self.grad_acc_steps

    @property
    def train_metrics(self) -> bool:
        """Nothing is computed on the private images beside the updates."""
        return False

    @property
    def memory_budget(self) -> str | None:
        """Images are held or streamed by their own rule (:data:`scatterdp.datasets.streamed.HELD_BYTES`)."""
        return None

    @property
    def mini_batch_size(self) -> int:
        """The physical batch."""
        return self.train_device_batch_size

    @property
    def sigma(self) -> float | None:
        """The noise multiplier that the flags say, if they do.

        The published program computes, on each of R devices and in each of G accumulation steps, the mean of b clipped gradients plus
        Gaussian noise of standard deviation dp_sigma·C/b, and steps along the mean of those R·G answers. On the sum of all B = R·G·b gradients
        that is noise of dp_sigma·C·√(R·G), and one image moves that sum by at most C. Here R = 1.
        """
        if self.disable_dp:
            return 0.0
        return self.noise_multiplier if self.dp_sigma is None else self.dp_sigma * math.sqrt(self.grad_acc_steps)

    @property
    def delta(self) -> float:
        """δ of the guarantee."""
        return DEFAULT_DELTA if self.target_delta is None else self.target_delta
