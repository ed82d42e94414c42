"""Backbones in words: ``cifar100_resnext``, ``simclr_r50_2x_sk1``, ``torchvision:resnet18``, ``timm:NAME``, ``module:FILE.py:FUNCTION``.

| source | network | ``--weights`` | preprocessing |
|---|---|---|---|
| ``cifar100_resnext`` | :class:`~transfer.architectures.resnext.ResNeXt29` | a file | 32×32, CIFAR's mean and deviation |
| ``simclr_r50_2x_sk1`` | :class:`~transfer.architectures.simclr.SimCLR` | a file | central 7/8, 224×224, colours in [0, 1] |
| ``torchvision:NAME`` | a classifier, its last linear layer taken off | a file, or ``default``: torchvision's download | as torchvision says for it |
| ``timm:NAME`` | timm's, without classifier | a file, or ``default``: timm's download | as timm says for it |
| ``module:FILE.py:FUNCTION`` | what ``FUNCTION()`` in your file returns; this **runs your code** | a file, or ``default``: as returned | none |
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from scatterdp.errors import ConfigError, UserError
from scatterdp.heads.weights import WRAPPERS, Naming, WeightsError, load_weights, read_weights
from transfer.architectures.resnext import ResNeXt29, numbered_bottlenecks, plain_sequences
from transfer.architectures.simclr import SimCLR, converted
from transfer.backbone import Backbone
from transfer.preprocessing import NORMALIZATIONS, Preprocessing

DEFAULT = "default"
# Published weights of these two take colours on another scale, to which the network itself brings them.
_AS_TRAINED: dict[str, dict[str, bool]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
_EXPECTED = "expected cifar100_resnext, simclr_r50_2x_sk1, torchvision:NAME, timm:NAME or module:FILE.py:FUNCTION"


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network before its weights, unless they are in it already."""

    module: nn.Module
    preprocessing: Preprocessing
    library: str = ""
    namings: Sequence[Naming] = ()
    ignored: Sequence[str] = ()
    wrappers: Sequence[str] = WRAPPERS
    definition: Mapping[str, str] = field(default_factory=dict)


def make_backbone(
    source: str,
    weights: str,
    input_shape: tuple[int, int, int],
    *,
    preprocessing: Preprocessing | None = None,
    image_size: int | None = None,
    crop: float | None = None,
    normalize: str | None = None,
) -> Backbone:
    """A pre-trained network as an extractor.

    Args:
        source: see the table above.
        weights: a file's path, or ``default``.
        input_shape: ``(C, H, W)`` of the images.
        preprocessing: all of it; None: the network's own, of which
        image_size, crop, normalize: replace a part.

    Raises:
        ConfigError: an unknown source or a value out of range.
        WeightsError: the file is missing, would run code, or belongs to another network.
        UserError: a library is not installed; or see :class:`transfer.backbone.Backbone`.
    """
    kind, _, name = source.partition(":")
    if (kind, bool(name)) not in _KINDS:
        raise ConfigError(f"backbone={source!r}: {_EXPECTED}")
    network = _KINDS[kind, bool(name)](name, weights)
    if weights != DEFAULT:
        tensors = read_weights(Path(weights), wrappers=network.wrappers)
        load_weights(network.module, tensors, source=weights, namings=network.namings, ignored=network.ignored)
    if preprocessing is None:
        replaced: dict[str, Any] = {"size": image_size, "crop": crop}
        if normalize is not None:
            replaced["mean"], replaced["std"] = NORMALIZATIONS[normalize]
        replaced = {key: value for key, value in replaced.items() if value is not None}
        preprocessing = dataclasses.replace(network.preprocessing, **replaced)
    return Backbone(
        network.module,
        name=_file_name(source),
        source=source,
        weights=weights,
        library=network.library,
        preprocessing=preprocessing,
        input_shape=input_shape,
        definition=network.definition,
    )


def _file_name(source: str) -> str:
    kind, *rest = source.split(":")
    if kind == "module":
        return f"module_{Path(rest[0]).stem}_{rest[-1]}"
    return "_".join([kind, *rest])


def _resnext(name: str, weights: str) -> _Network:
    _needs_file("cifar100_resnext", weights)
    mean, std = NORMALIZATIONS["cifar"]
    return _Network(
        module=ResNeXt29(),
        preprocessing=Preprocessing(size=32, crop=1.0, mean=mean, std=std),
        namings=(numbered_bottlenecks, plain_sequences),
        ignored=("classifier.",),
    )


def _simclr(name: str, weights: str) -> _Network:
    _needs_file("simclr_r50_2x_sk1", weights)
    mean, std = NORMALIZATIONS["none"]
    return _Network(
        module=SimCLR(),
        preprocessing=Preprocessing(size=224, crop=0.875, resize="corner_bicubic", mean=mean, std=std),
        namings=(converted,),
        ignored=("fc.",),
        wrappers=("resnet", *WRAPPERS),
    )


def _needs_file(source: str, weights: str) -> None:
    if weights == DEFAULT:
        raise WeightsError(f"weights={weights}: {source} has no download; give the file of its checkpoint")


def _torchvision(name: str, weights: str) -> _Network:
    torchvision = _library("torchvision", name)
    models: Any = torchvision.models
    if name not in models.list_models(module=models):
        raise ConfigError(
            f"backbone=torchvision:{name}: torchvision {torchvision.__version__} has no such classifier; python -c "
            "'import torchvision; print(torchvision.models.list_models(module=torchvision.models))' lists them"
        )
    network = models.get_model(name, weights=None, **_AS_TRAINED.get(name, {}))
    published = models.get_model_weights(name).DEFAULT
    if weights == DEFAULT:
        tensors = _downloaded("torchvision", name, published.url, lambda: _hub_state(published.url))
        load_weights(network, tensors, source=published.url)
    classifier = next((path for path, part in reversed(list(network.named_modules())) if type(part) is nn.Linear), None)
    if classifier is None:
        raise ConfigError(
            f"backbone=torchvision:{name}: has no linear classifier to take off; wrap it in module:FILE.py:FUNCTION"
        )
    parent, _, last = classifier.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    shown = published.transforms()
    return _Network(
        module=network,
        preprocessing=Preprocessing(
            size=shown.crop_size[0],
            crop=shown.crop_size[0] / shown.resize_size[0],
            resize=_resize(shown.interpolation.value),
            mean=_triple(shown.mean),
            std=_triple(shown.std),
        ),
        library=f"torchvision {torchvision.__version__.partition('+')[0]}",
        ignored=(f"{classifier}.",),
    )


def _hub_state(url: str) -> dict[str, Any]:
    from torch.hub import load_state_dict_from_url

    return load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)


def _timm(name: str, weights: str) -> _Network:
    timm: Any = _library("timm", name)
    if name.partition(".")[0] not in timm.list_models():
        raise ConfigError(
            f"backbone=timm:{name}: timm {timm.__version__} has no such network; python -c 'import timm; print(timm.list_models())' lists them"
        )
    if weights == DEFAULT:
        network = _downloaded(
            "timm", name, f"timm's {name}", lambda: timm.create_model(name, pretrained=True, num_classes=0)
        )
    else:
        network = timm.create_model(name, num_classes=0)
    shown = timm.data.resolve_model_data_config(network)
    classifier = network.pretrained_cfg.get("classifier") or ()
    return _Network(
        module=network,
        preprocessing=Preprocessing(
            size=shown["input_size"][-1],
            crop=min(1.0, shown["crop_pct"]),
            resize=_resize(shown["interpolation"]),
            mean=_triple(shown["mean"]),
            std=_triple(shown["std"]),
        ),
        library=f"timm {timm.__version__}",
        ignored=tuple(f"{part}." for part in ((classifier,) if isinstance(classifier, str) else classifier)),
    )


def _downloaded(library: str, name: str, what: str, get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # urllib's and the hub's errors are OSErrors, a wrong digest is a RuntimeError
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise WeightsError(
            f"weights=default: {what} could not be fetched ({reason}); fetch the file elsewhere and give it as --weights=FILE"
        ) from error


def _module(name: str, weights: str) -> _Network:
    path, _, function = name.rpartition(":")
    if not path:
        raise ConfigError(f"backbone=module:{name}: expected module:FILE.py:FUNCTION")
    try:
        code = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"backbone=module:{name}: {path} cannot be read ({error.strerror}); give your own file"
        ) from error
    spec = importlib.util.spec_from_file_location(f"_backbone_{hashlib.sha256(code).hexdigest()[:16]}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"backbone=module:{name}: {path} is no Python file, expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        network = make() if callable(make) else None
    except Exception as error:  # the user's own code: whatever it raises is theirs to read
        raise UserError(f"backbone=module:{name}: your code raised {type(error).__name__}: {error}") from error
    if make is None or not callable(make):
        raise ConfigError(f"backbone=module:{name}: {path} has no function {function}")
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"backbone=module:{name}: {function}() returned {type(network).__name__}, expected a torch.nn.Module"
        )
    mean, std = NORMALIZATIONS["none"]
    return _Network(
        module=network,
        preprocessing=Preprocessing(size=None, crop=1.0, mean=mean, std=std, rgb=False),
        definition={"code": hashlib.sha256(code).hexdigest(), "function": function},
    )


def _library(library: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name == library:
            raise UserError(f"backbone={library}:{name}: {library} is not installed; pip install .[transfer]") from None
        raise UserError(
            f"backbone={library}:{name}: {library} cannot be imported ({error}); pip install .[transfer]"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:  # built for another torch
        raise UserError(
            f"backbone={library}:{name}: {library} cannot be imported ({error}); install the version for this torch: "
            "pip install .[transfer]"
        ) from error


def _resize(interpolation: str) -> Any:
    return "bilinear" if interpolation == "bilinear" else "bicubic"


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


_KINDS: dict[tuple[str, bool], Callable[[str, str], _Network]] = {
    ("cifar100_resnext", False): _resnext,
    ("simclr_r50_2x_sk1", False): _simclr,
    ("torchvision", True): _torchvision,
    ("timm", True): _timm,
    ("module", True): _module,
}
