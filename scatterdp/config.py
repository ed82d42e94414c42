"""What the user may say: one frozen dataclass a command, the source of its flags and of its record.

A field that is ``None`` is filled from the data set's recipe (:mod:`scatterdp.recipes`) or, for the noise, solved for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args, get_type_hints

import tyro

from scatterdp.errors import ConfigError
from scatterdp.sizes import bytes_of

InputNorm = Literal["BN", "GroupNorm", "GN", "none"]
Optimizer = Literal["SGD", "Adam", "LR"]
Schedule = Literal["constant", "cosine", "one_cycle"]
Architecture = Literal["cnn", "patch_cnn", "resnet20", "resnet20_tanh", "preact_resnet20", "preact_resnet20_tanh"]

DEFAULT_TARGET_EPSILON = 3.0
MAX_NOISE_MULTIPLIER = 1e6
LARGEST = 1e20  # learning rate and bound: their product with the noise must be a number of single precision


class RunConfig:
    """What makes a run folder: a frozen dataclass that becomes JSON and comes back."""

    run_dir: Path | None
    resume: Path | None

    @classmethod
    def module_name(cls) -> str:
        """The module that takes this config: ``python -m MODULE``."""
        raise NotImplementedError

    @classmethod
    def choices(cls) -> dict[str, tuple[str | None, ...]]:
        """The values that some fields are limited to, for reading them back; a class may check its own when it is made."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` reads them back, equal."""
        return {
            field.name: str(value) if isinstance(value := getattr(self, field.name), Path) else value
            for field in dataclasses.fields(cast(Any, self))
        }

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that :meth:`to_json` wrote.

        Raises:
            ConfigError: unknown or missing names.
        """
        values: Any = json.loads(text)
        names = {field.name for field in dataclasses.fields(cast(Any, cls))}
        if not isinstance(values, dict) or values.keys() != names:
            odd = sorted(values.keys() ^ names) if isinstance(values, dict) else [type(values).__name__]
            raise ConfigError(
                f"config.json: unknown or missing {', '.join(odd)}; was it written by another command or version?"
            )
        for name, allowed in cls.choices().items():
            if name in names and values[name] not in allowed:
                raise ConfigError(f"config.json: {name}={values[name]!r}, expected one of {allowed}")
        for name, kind in get_type_hints(cls).items():
            if values.get(name) is not None and Path in (kind, *get_args(kind)):
                values[name] = Path(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            wrong = [name for name, value in values.items() if isinstance(value, str) and name in _NUMBERS]
            raise ConfigError(f"config.json: {', '.join(wrong)} {error}; was it written by another version?") from error


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """What every command that trains a private classifier can be told, wherever its features come from."""

    dataset: str = "cifar10"
    """mnist, fmnist, cifar10, digits, a folder train/<class>/*.png|jpg + test/<class>/…, or an .npz file
    (x_train, y_train, x_test, y_test)."""
    batch_size: int | None = None
    """Expected batch size B. B = N is full batch: the plain Gaussian mechanism. None: the data set's recipe."""
    mini_batch_size: int | None = None
    """Physical batch: how many examples are in work at once. Memory and speed only, no privacy meaning."""
    lr: float | None = None
    """Learning rate. None: the data set's recipe."""
    optim: Optimizer = "SGD"
    """SGD or Adam: private. LR: logistic regression over C in 0.01 … 100, NOT PRIVATE, for comparison."""
    momentum: float | None = None
    """SGD momentum in [0, 1). None: the recipe's."""
    nesterov: bool = False
    """Nesterov's momentum (SGD with momentum > 0)."""
    schedule: Schedule | None = None
    """Of the learning rate: constant, falling along a cosine, or rising and falling. None: the recipe's."""
    noise_multiplier: float | None = None
    """Noise standard deviation ÷ max_grad_norm. Given: ε is computed, and the published settings fill what is left out.
    None: solved for target_epsilon."""
    max_grad_norm: float | None = None
    """L2 bound of each example's gradient. None: the recipe's."""
    epochs: int | None = None
    """Passes over the data; an epoch is ⌊N / batch_size⌋ steps. None: the data set's recipe."""
    input_norm: InputNorm | None = None
    """BN: channel statistics released with DP. GroupNorm (GN): per example, no cost. none. None: the recipe's."""
    num_groups: int | None = None
    """Channel groups of GroupNorm; must divide the number of channels."""
    bn_noise_multiplier: float | None = None
    """Noise multiplier of each of the two statistics releases of BN."""
    max_epsilon: float | None = None
    """Stop before the step that would take ε above this."""
    sample_batches: bool = False
    """Poisson sampling; the same as --sampling=poisson, which is the default."""
    logdir: Path | None = None
    """Also write TensorBoard events to this folder."""
    target_epsilon: float | None = None
    """ε of everything together, when noise_multiplier is not given (3 when neither is)."""
    target_delta: float = 1e-5
    """δ; below 1/N, or the guarantee allows publishing an example outright."""
    accountant: Literal["pld", "rdp", "rdp_classic"] = "pld"
    """Which upper bound on ε counts. rdp_classic is the published computation."""
    sampling: Literal["poisson", "shuffle"] = "poisson"
    """shuffle: fixed-size shuffled batches, for comparison; no amplification is claimed for them."""
    seed: int | None = None
    """Makes the run reproducible and the noise predictable to whoever knows it. None: 256 bits from the system."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_dir: Path | None = None
    """Where data sets are looked for and kept. None: $SCATTERDP_DATA, else ./data."""
    memory_budget: str | None = None
    """Most memory for training and test features, such as 4GB: larger ones stay on the disk, and batches are read from there. Changes no
    number. None: half of what is free."""
    run_dir: Path | None = None
    """Where the run's record goes; must not exist yet. None: runs/<dataset>-<time>."""
    resume: Path | None = None
    """Continue the run in this folder from its checkpoint, with its own config; no other flag beside it."""
    train_metrics: bool = False
    """Also record loss and accuracy on the private training data. They are outside the guarantee: keep them."""

    @classmethod
    def choices(cls) -> dict[str, tuple[str | None, ...]]:
        return _CHOICES

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "mini_batch_size": 1, "epochs": 1, "num_groups": 1, "seed": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name}={value}: expected a whole number ≥ {lowest}")
        for name in ("lr", "max_grad_norm", "max_epsilon", "target_epsilon"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value}: expected a finite number > 0")
        for name in ("lr", "max_grad_norm"):
            if (getattr(self, name) or 0) > LARGEST:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at most {LARGEST:g}")
        if self.data_dir is not None and self.data_dir.exists() and not self.data_dir.is_dir():
            raise ConfigError(f"data_dir={self.data_dir}: is a file; give a folder")
        for name in ("noise_multiplier", "bn_noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value}: expected a finite number ≥ 0")
        for name in ("noise_multiplier", "bn_noise_multiplier"):
            if (getattr(self, name) or 0) > MAX_NOISE_MULTIPLIER:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at most {MAX_NOISE_MULTIPLIER:g}")
        if self.momentum is not None and self.optim != "SGD":
            raise ConfigError(f"momentum={self.momentum}: has no effect with optim={self.optim}, leave it out")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum}: expected a number in [0, 1)")
        if not 0 < self.target_delta < 1:
            raise ConfigError(f"target_delta={self.target_delta}: expected a number between 0 and 1")
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            raise ConfigError(
                f"noise_multiplier={self.noise_multiplier} and target_epsilon={self.target_epsilon}: "
                "each determines the other, give one of them"
            )
        if self.sample_batches and self.sampling == "shuffle":
            raise ConfigError("sample_batches and sampling=shuffle contradict each other, give one of them")
        if self.memory_budget is not None:
            bytes_of(self.memory_budget, argument="memory_budget")
            if self.optim == "LR":
                raise ConfigError(f"memory_budget={self.memory_budget}: has no effect with optim=LR, leave it out")
        if self.nesterov and (self.optim != "SGD" or self.momentum == 0):
            raise ConfigError("nesterov: needs optim=SGD and momentum > 0")


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig(TrainingConfig):
    """A differentially private linear classifier on ScatterNet features (Tramèr & Boneh 2021), start to end.

    Fetches the data set if needed, extracts and caches features, releases normalisation statistics with DP,
    solves for the noise multiplier (unless it is given), trains, and leaves a run folder with a certificate.
    """

    extractor: str | None = None
    """Fixed features: scatternet, patches, deep_patches, pixels, with settings and side by side, as in
    "scatternet(mirror=True)+patches(patches=1024)"; deskew(…) of them brings grey figures upright first, views(…) averages them
    over views of the image, map_patches(…) is a layer of patches on one's maps. None: the data set's recipe."""
    mirror: bool | None = None
    """ScatterNet alone, its features folded with those of the mirror image (True) or not (False): half the dimensions, a free
    invariance for images whose mirror image means the same (not for digits). None: the recipe's."""
    augment: bool = False
    """Random flip and crop of every training image before scattering; features are then computed at every step."""
    precondition: int | None = None
    """Scale features down along so many principal directions in which views of one synthetic image differ: costs no budget. For a network,
    directions of the channels. 0: none. None: the recipe's."""
    precondition_power: float = 1.0
    """By how much: 1 makes views differ equally along those directions, 0 leaves them."""
    features_dir: Path = Path("features")
    """Where extracted features are cached."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Precision of cached features and of the training matrix; float16 halves memory and disk."""
    validation: float = 0.0
    """Share of the training examples kept out of training, each by a public rule of itself alone; the record then has the accuracy on them."""
    validation_noise_multiplier: float | None = None
    """With validation: release the number of right answers with Gaussian noise of this standard deviation, inside the budget. None: exact, outside
    the guarantee."""

    @classmethod
    def module_name(cls) -> str:
        return "scatterdp.baselines"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment and self.optim == "LR":
            raise ConfigError("augment: has no effect with optim=LR, leave it out")
        if self.precondition is not None and self.precondition < 0:
            raise ConfigError(f"precondition={self.precondition}: expected a whole number ≥ 0")
        if not 0 <= self.validation <= 0.9:
            raise ConfigError(f"validation={self.validation}: expected a share from 0 to 0.9")
        if self.validation and self.optim == "LR":
            raise ConfigError(f"validation={self.validation}: has no effect with optim=LR, leave it out")
        noise = self.validation_noise_multiplier
        if noise is not None and not (math.isfinite(noise) and 0 < noise <= MAX_NOISE_MULTIPLIER):
            raise ConfigError(
                f"validation_noise_multiplier={noise}: expected a finite number > 0, at most {MAX_NOISE_MULTIPLIER:g}"
            )
        if noise is not None and not self.validation:
            raise ConfigError(
                f"validation_noise_multiplier={noise}: has no effect without validation; give a share too"
            )
        if not 0 <= self.precondition_power <= 1:
            raise ConfigError(f"precondition_power={self.precondition_power}: expected a number from 0 to 1")
        if self.precondition and self.optim == "LR":
            raise ConfigError(f"precondition={self.precondition}: has no effect with optim=LR, leave it out")
        if self.mirror is not None and self.extractor is not None:
            raise ConfigError(
                f"mirror={self.mirror} and extractor={self.extractor!r}: write mirror into the extractor, scatternet(mirror=True)"
            )


@dataclass(frozen=True, kw_only=True)
class CnnsConfig(BaselinesConfig):
    """A differentially private convolutional network, on ScatterNet features or on the images themselves (Tramèr & Boneh 2021).

    The same data, statistics, noise, loop, record and resume as the linear classifier's.
    """

    use_scattering: bool = False
    """Train on cached features (ScatterNet's unless --extractor says otherwise); without it end to end, on pixels."""
    size: Literal["small", "None"] = "None"
    """small: a smaller network (colour: the published small one; grey: half the channels)."""
    arch: Architecture = "cnn"
    """cnn: the published networks. patch_cnn: on cached features, one convolution that starts from synthetic images' features, beside the
    features themselves. The others: ResNet-20 with group normalisation, on pixels."""
    early_stop: bool = False
    """Stop when test accuracy has not risen for five epochs. ε stays that of the whole plan."""
    augmentation_multiplicity: int = 1
    """With augment: K augmented copies of each example share one clipped gradient (K times the work, no privacy cost)."""
    clipping: Literal["flat", "per_layer", "automatic"] = "flat"
    """How each example's gradient is bounded; the sensitivity is max_grad_norm for all."""
    engine: Literal["mixed_ghost", "ghost", "crb", "vmap", "hooks", "loop"] = "mixed_ghost"
    """How each example's gradient norm is computed. Speed and memory only."""

    @classmethod
    def module_name(cls) -> str:
        return "scatterdp.cnns"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim == "LR":
            raise ConfigError("optim=LR: is logistic regression; python -m scatterdp.baselines has it")
        if self.arch == "patch_cnn" and not self.use_scattering:
            raise ConfigError("arch=patch_cnn: takes feature maps; give --use_scattering too")
        if self.arch == "patch_cnn" and self.size != "None":
            raise ConfigError(f"size={self.size}: arch=patch_cnn has one size; leave size out")
        if self.arch == "patch_cnn" and self.engine == "hooks":
            raise ConfigError(
                "engine=hooks: Opacus does not serve arch=patch_cnn's last layer; leave engine out, or take vmap"
            )
        if self.arch not in ("cnn", "patch_cnn") and (self.use_scattering or self.size != "None"):
            raise ConfigError(f"arch={self.arch}: has one size and takes pixels; leave use_scattering and size out")
        if not 1 <= self.augmentation_multiplicity <= 1024:
            raise ConfigError(
                f"augmentation_multiplicity={self.augmentation_multiplicity}: expected a whole number from 1 to 1024"
            )
        if self.augmentation_multiplicity > 1 and not self.augment:
            raise ConfigError(
                f"augmentation_multiplicity={self.augmentation_multiplicity}: copies would all be the same; give --augment too"
            )
        if not self.use_scattering:
            for name in ("mirror", "extractor"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name}={getattr(self, name)}: is about fixed features; give --use_scattering too"
                    )

    @property
    def head(self) -> str:
        """The head's name."""
        name = self.arch if self.arch != "cnn" else "scatternet_cnn" if self.use_scattering else "cnn"
        return name if self.size == "None" else f"{name}_small"


@dataclass(frozen=True, kw_only=True)
class TinyImagesConfig(CnnsConfig):
    """A differentially private classifier on a data set and many more labelled images (Tramèr & Boneh 2021, section 4).

    All training images, the data set's own and the others, count as private alike. An epoch is as many steps as the data set's own
    images make; batches are drawn from all. Statistics are released on a sample as large as the data set's own images.
    """

    tiny_images: Path | None = None
    """The other images: a pickle, .npz or .h5 with arrays data (n, H, W, 3) uint8 and extrapolated_targets (n,)."""
    data_size: int | None = None
    """Training images in all; the data set's own come first. None: all there are."""
    model: Literal["linear", "cnn"] = "linear"
    """A linear classifier or the published networks."""
    target_delta: Annotated[float, tyro.conf.arg(aliases=("--delta",))] = 9.09e-7
    """δ; the published one is 1/(2 · 550000)."""

    @classmethod
    def module_name(cls) -> str:
        return "scatterdp.tiny_images"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_size is not None and self.data_size < 1:
            raise ConfigError(f"data_size={self.data_size}: expected a whole number ≥ 1")
        if self.model == "linear":
            for name, default in (("arch", "cnn"), ("size", "None"), ("engine", "mixed_ghost")):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name}={getattr(self, name)}: has no effect with model=linear; give --model=cnn"
                    )

    @property
    def head(self) -> str:
        """The head's name."""
        return "linear" if self.model == "linear" else super().head


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "optim": get_args(Optimizer),
    "input_norm": (None, *get_args(InputNorm)),
    "accountant": ("pld", "rdp", "rdp_classic"),
    "sampling": ("poisson", "shuffle"),
    "feature_dtype": ("float32", "float16"),
    "size": ("small", "None"),
    "model": ("linear", "cnn"),
    "arch": get_args(Architecture),
    "schedule": (None, *get_args(Schedule)),
    "clipping": ("flat", "per_layer", "automatic"),
    "engine": ("mixed_ghost", "ghost", "crb", "vmap", "hooks", "loop"),
}
_NUMBERS = ("batch_size", "mini_batch_size", "lr", "momentum", "noise_multiplier", "max_grad_norm", "epochs", "num_groups",
            "bn_noise_multiplier", "max_epsilon", "target_epsilon", "target_delta", "seed", "augmentation_multiplicity", "precondition",
            "precondition_power", "validation", "validation_noise_multiplier", "data_size")  # fmt: skip
