"""Checkpoints: every wrapping is read, no code is run, and only the right network's are taken."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scatterdp.heads.weights import WeightsError, load_weights, read_weights, weights_digest


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return network().state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_wrapping_is_read(tmp_path, tensors, wrapper, prefix, legacy):
    named = {prefix + name: value for name, value in tensors.items()}
    content = named if wrapper is None else {"epoch": 3, wrapper: named, "best_acc": 0.5, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    found = read_weights(tmp_path / "x.pth")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_safetensors_are_read(tmp_path, tensors):
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_weights(tmp_path / "x.safetensors").keys() == tensors.keys()


def test_one_name_without_the_prefix_keeps_it(tmp_path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").keys() == {"module.a", "b"}


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("write", ["torch", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_that_would_create_a_file_is_refused(tmp_path, write):
    trace, path = tmp_path / "created", tmp_path / "x.pth"
    content = {"state_dict": {"weight": torch.zeros(1)}, "extra": Hostile(trace)}
    if write.startswith("pickle"):
        path.write_bytes(pickle.dumps(content["extra"], protocol=int(write[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    named = r"refused, for reading it would run code: it calls (posix|os|nt)\.system"
    what = "not a checkpoint, or one that cannot be read without running code" if write == "pickle 4" else named
    with pytest.raises(WeightsError, match=rf"x\.pth: {what}; take a file of tensors alone"):
        read_weights(path)
    assert not trace.exists()
    if write.startswith("pickle"):  # the file does what it is refused for
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give the path"),
        (b"not a checkpoint at all", "not a checkpoint"),
        (b"", "not a readable checkpoint"),
        (b"PK\x03\x04 cut short", "not a readable checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as raised:
        read_weights(path)
    assert str(raised.value).startswith(f"weights={path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, torch.zeros(3), {"state_dict": {}}], ids=["empty", "none", "tensor", "within"]
)
def test_no_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"has no tensors by name \(it (holds|is no dictionary)"):
        read_weights(tmp_path / "x.pth")


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"1234567890")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        read_weights(tmp_path / "x.safetensors")


def test_loading_replaces_every_tensor(tensors):
    model = network()
    changed = {name: value + 1 for name, value in tensors.items()}
    load_weights(model, changed, source="x")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in changed.items())


def test_the_first_missing_tensor_is_named(tensors):
    del tensors["1.bias"], tensors["3.weight"]
    with pytest.raises(WeightsError, match=r"weights=x: of another network: 1\.bias is missing; give a file"):
        load_weights(network(), tensors, source="x")


def test_what_the_file_has_instead_is_named(tensors):
    tensors["bn.bias"] = tensors.pop("1.bias")
    with pytest.raises(WeightsError, match=r"1\.bias is missing, it has bn\.bias"):
        load_weights(network(), tensors, source="x")


def test_the_first_tensor_of_another_shape_is_named(tensors):
    tensors["0.weight"] = torch.zeros(4, 1, 3, 3)
    with pytest.raises(WeightsError, match=r"0\.weight has shape \(4, 1, 3, 3\), expected \(4, 3, 3, 3\)"):
        load_weights(network(), tensors, source="x")


def test_a_tensor_that_the_network_lacks_is_named_unless_it_is_ignored(tensors):
    tensors["head.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"this one has no head\.weight"):
        load_weights(network(), tensors, source="x")
    load_weights(network(), tensors, source="x", ignored=("head.",))


def test_a_mismatch_leaves_the_network_as_it_was(tensors):
    model = network()
    changed = {name: value + 1 for name, value in tensors.items()} | {"3.bias": torch.zeros(7)}
    with pytest.raises(WeightsError):
        load_weights(model, changed, source="x")
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_old_files_count_no_batches(tensors):
    del tensors["1.num_batches_tracked"]
    load_weights(network(), tensors, source="x")


def test_the_digest_names_values_names_and_shapes():
    model = network()
    before = weights_digest(model)
    assert weights_digest(network()) == before
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-3
    assert weights_digest(model) != before
    assert weights_digest(nn.Linear(2, 3).requires_grad_(False)) != weights_digest(nn.Linear(3, 2))
