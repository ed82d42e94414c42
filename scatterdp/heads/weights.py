"""Checkpoints: read without running code, and loaded only into the network that they belong to.

A ``.pth`` file is a pickle, and a pickle can run any program when it is read. Files are read with ``weights_only=True``, which knows
tensors, numbers, strings and containers and refuses everything else; ``.safetensors`` files hold nothing else in the first place.

Training programs wrap the tensors in different ways: bare, or under ``"state_dict"``, ``"model"``, ``"net"`` beside the optimizer's; with
``module.`` before every name when several devices trained. All of these are read.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from scatterdp.errors import UserError
from scatterdp.heads.objax import from_objax

#: Names under which files keep their tensors, in the order in which they are looked for.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "classifier.")  # the last: our own runs
_READ_ERRORS = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OSError,
    SafetensorError,
    zipfile.BadZipFile,
)

#: ``our name of a tensor -> the name in a kind of file``.
Naming = Callable[[str], str]


class WeightsError(UserError):
    """A file of weights is missing, unreadable, would run code, or belongs to another network."""


def read_weights(path: Path, *, wrappers: Sequence[str] = WRAPPERS, argument: str = "weights") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without wrapper and prefix; no code in the file is run.

    Args:
        path: ``.safetensors``, ``.npz`` of objax (:mod:`scatterdp.heads.objax`), or anything that ``torch.save`` wrote.
        wrappers: names that tensors may be under.
        argument: what messages call the path.

    Raises:
        WeightsError: no such file; not a checkpoint; it would run code; or holds no tensors.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise WeightsError(f"{argument}={path}: {what}; give the path of the checkpoint, such as model.safetensors")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = from_objax(arrays)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of pickles that torch did not write; what is wrong with them is told below
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = (
            f"refused, for reading it would run code: it calls {named[1]}"
            if named
            else "not a checkpoint, or one that cannot be read without running code"
        )
        raise WeightsError(
            f"{argument}={path}: {what}; take a file of tensors alone, such as torch.save(model.state_dict(), FILE) writes"
        ) from None
    except _READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise WeightsError(f"{argument}={path}: not a readable checkpoint, or a damaged one ({reason})") from None
    tensors = _unwrapped(content, wrappers)
    if not tensors:
        found = (
            f"holds {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else "is no dictionary"
        )
        raise WeightsError(
            f"{argument}={path}: has no tensors by name (it {found}); save the model's state_dict() alone"
        )
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _unwrapped(content: Any, wrappers: Sequence[str]) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for name in wrappers:
        if isinstance(content.get(name), Mapping):
            return _unwrapped(content[name], wrappers)
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    namings: Sequence[Naming] = (),
    ignored: Sequence[str] = (),
    argument: str = "weights",
) -> None:
    """Put weights into a model, all of them or none.

    Args:
        model: changed in place.
        weights: by name.
        source: where they are from, in words, for messages.
        namings: the ways in which files name the model's tensors; the one that fits best is taken. None: as the model does.
        ignored: prefixes of names that the file may have beyond the model's, such as a classifier that was taken off.
        argument: what messages call the source.

    Raises:
        WeightsError: names the first tensor that is missing, of another shape, or unknown to the model.
    """
    own = model.state_dict()
    naming = max(namings or (str,), key=lambda naming: sum(naming(name) in weights for name in own))
    in_file = {naming(name): name for name in own}
    extra = [name for name in weights if name not in in_file and not name.startswith(tuple(ignored))]
    found: dict[str, Tensor] = {}
    for name, ours in in_file.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):  # files from before torch 0.4.1 have none, and nothing reads it
                found[ours] = own[ours]
                continue
            instead = f", it has {extra[0]}" if extra else ""
            raise WeightsError(
                f"{argument}={source}: of another network: {name} is missing{instead}; give a file of this one, or choose that network"
            )
        if weights[name].shape != own[ours].shape:
            raise WeightsError(
                f"{argument}={source}: of another network: {name} has shape {tuple(weights[name].shape)}, expected "
                f"{tuple(own[ours].shape)}; give a file of this one, or choose that network"
            )
        found[ours] = weights[name]
    if extra:
        raise WeightsError(
            f"{argument}={source}: of another network: this one has no {extra[0]}; give a file of this one, or choose that network"
        )
    model.load_state_dict(found)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hexadecimal) of a model's tensors with their names, types and shapes."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The same of tensors by name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data if value.numel() else b""
        )
    return digest.hexdigest()
