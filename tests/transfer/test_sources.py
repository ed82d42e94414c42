"""Backbones by name: whose they are, and what is said when they cannot be had. torchvision and timm are stood in for."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from scatterdp.errors import ConfigError, UserError
from scatterdp.heads.weights import WeightsError
from transfer.preprocessing import Preprocessing
from transfer.sources import make_backbone

SHAPE = (3, 20, 20)


class TestModule:
    def test_the_function_makes_the_network(self, mine):
        backbone = make_backbone(f"module:{mine}:features", "default", SHAPE)
        assert backbone.name == "module_mine_features"
        assert backbone.output_shape == (64, 1, 1)
        assert backbone.config.preprocessing == Preprocessing(
            size=None, crop=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rgb=False
        )

    def test_a_file_replaces_its_weights(self, mine, tmp_path):
        before = make_backbone(f"module:{mine}:features", "default", SHAPE)
        torch.save({"0.weight": torch.zeros(16, 3, 5, 5), "0.bias": torch.full((16,), 2.0)}, tmp_path / "w.pth")
        after = make_backbone(f"module:{mine}:features", str(tmp_path / "w.pth"), SHAPE)
        assert torch.equal(after(torch.rand(2, *SHAPE)), torch.full((2, 64, 1, 1), 2.0))
        assert after.fingerprint != before.fingerprint

    def test_other_code_is_another_extractor_and_another_place_is_not(self, mine):
        before = make_backbone(f"module:{mine}:features", "default", SHAPE)
        mine.rename(mine.with_name("theirs.py"))
        moved = make_backbone(f"module:{mine.with_name('theirs.py')}:features", "default", SHAPE)
        assert moved.fingerprint == before.fingerprint
        mine.write_text(mine.with_name("theirs.py").read_text() + "\n# changed\n")
        assert make_backbone(f"module:{mine}:features", "default", SHAPE).fingerprint != before.fingerprint

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            ("nothing", "has no function nothing"),
            ("constant", "has no function constant"),
            ("number", r"number\(\) returned int, expected a torch.nn.Module"),
            ("raises", "your code raised KeyError: 'no such thing'"),
        ],
    )
    def test_functions_that_make_none(self, mine, function, message):
        with pytest.raises(UserError, match=message):
            make_backbone(f"module:{mine}:{function}", "default", SHAPE)

    def test_files_that_are_none(self, tmp_path):
        with pytest.raises(ConfigError, match=r"nowhere\.py cannot be read \(No such file or directory\)"):
            make_backbone(f"module:{tmp_path}/nowhere.py:f", "default", SHAPE)
        with pytest.raises(ConfigError, match=r"expected module:FILE\.py:FUNCTION"):
            make_backbone("module:mine.py", "default", SHAPE)


@pytest.mark.parametrize("source", ["resnet18", "torchvision", "torchvision:", "module:", "cifar100_resnext:x", ""])
def test_unknown_sources(source):
    with pytest.raises(ConfigError, match="expected cifar100_resnext, simclr_r50_2x_sk1, torchvision:NAME"):
        make_backbone(source, "default", SHAPE)


@pytest.mark.parametrize("source", ["cifar100_resnext", "simclr_r50_2x_sk1"])
def test_published_checkpoints_are_given_as_files(source):
    with pytest.raises(WeightsError, match=f"weights=default: {source} has no download; give the file"):
        make_backbone(source, "default", SHAPE)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_libraries_that_are_not_there_are_an_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"backbone={library}:x: {library} .*pip install \.\[transfer\]"):
        make_backbone(f"{library}:x", "default", SHAPE)
    monkeypatch.delitem(sys.modules, library)
    if importlib.util.find_spec(library) is None:
        with pytest.raises(UserError, match=rf"{library} is not installed; pip install \.\[transfer\]"):
            make_backbone(f"{library}:x", "default", SHAPE)


def test_a_library_built_for_another_torch(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(UserError, match=r"timm cannot be imported \(operator .*\); install the version for this torch"):
        make_backbone("timm:x", "default", SHAPE)


class Classifier(nn.Module):
    """As torchvision's: features, then a sequence that ends in a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 5, 3)
        self.classifier: nn.Module = nn.Sequential(nn.Linear(5, 7), nn.Dropout(), nn.Linear(7, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


@pytest.fixture
def torchvision(monkeypatch) -> SimpleNamespace:
    """What is asked of torchvision, with one classifier and one network without a linear layer."""
    shown = SimpleNamespace(
        crop_size=[24],
        resize_size=[32],
        mean=[0.5, 0.4, 0.3],
        std=[0.1, 0.2, 0.3],
        interpolation=SimpleNamespace(value="bilinear"),
    )
    best = SimpleNamespace(url="https://nowhere.invalid/net-00000000.pth", transforms=lambda: shown)
    networks = {"net": Classifier, "no_linear": lambda: nn.Conv2d(3, 4, 3)}
    models = SimpleNamespace(
        list_models=lambda module: list(networks),
        get_model=lambda name, weights: networks[name](),
        get_model_weights=lambda name: SimpleNamespace(DEFAULT=best),
    )
    library: Any = ModuleType("torchvision")
    library.models, library.__version__ = models, "9.9+cu1"
    monkeypatch.setitem(sys.modules, "torchvision", library)
    return models


class TestTorchvision:
    def test_the_last_linear_layer_is_taken_off(self, torchvision, tmp_path):
        full = Classifier()
        torch.save(full.state_dict(), tmp_path / "w.pth")
        backbone = make_backbone("torchvision:net", str(tmp_path / "w.pth"), SHAPE)
        assert backbone.output_shape == (7, 1, 1)
        assert backbone.config.library == "torchvision 9.9"
        assert backbone.config.preprocessing == Preprocessing(
            size=24, crop=0.75, resize="bilinear", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
        )
        images = torch.rand(2, *SHAPE)
        features = backbone(images)[:, :, 0, 0]
        logits = full.eval()(backbone.config.preprocessing(images))
        torch.testing.assert_close(full.get_submodule("classifier.2")(features), logits)

    def test_a_fine_tuned_classifier_of_other_classes_may_be_in_the_file(self, torchvision, tmp_path):
        state = Classifier().state_dict() | {
            "classifier.2.weight": torch.zeros(10, 7),
            "classifier.2.bias": torch.zeros(10),
        }
        torch.save(state, tmp_path / "w.pth")
        assert make_backbone("torchvision:net", str(tmp_path / "w.pth"), SHAPE).output_shape == (7, 1, 1)

    def test_flags_replace_parts_of_the_preprocessing(self, torchvision, tmp_path):
        torch.save(Classifier().state_dict(), tmp_path / "w.pth")
        backbone = make_backbone(
            "torchvision:net", str(tmp_path / "w.pth"), SHAPE, image_size=16, crop=1.0, normalize="none"
        )
        assert backbone.config.preprocessing == Preprocessing(
            size=16, crop=1.0, resize="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )

    def test_default_is_fetched_without_running_code(self, torchvision, monkeypatch):
        asked = {}

        def fetch(url, **arguments):
            asked.update(arguments, url=url)
            return Classifier().state_dict()

        monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
        make_backbone("torchvision:net", "default", SHAPE)
        assert asked["weights_only"] is True
        assert asked["check_hash"] is True
        assert asked["url"] == "https://nowhere.invalid/net-00000000.pth"

    def test_a_download_that_fails(self, torchvision, monkeypatch):
        def fetch(url, **arguments):
            raise OSError("no network")

        monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
        with pytest.raises(
            WeightsError, match=r"net-00000000\.pth could not be fetched \(no network\); fetch the file elsewhere"
        ):
            make_backbone("torchvision:net", "default", SHAPE)

    def test_names_that_it_lacks(self, torchvision):
        with pytest.raises(ConfigError, match=r"torchvision 9\.9\+cu1 has no such classifier"):
            make_backbone("torchvision:other", "default", SHAPE)

    def test_networks_without_a_linear_layer(self, torchvision):
        with pytest.raises(ConfigError, match="has no linear classifier to take off"):
            make_backbone("torchvision:no_linear", "x.pth", SHAPE)

    def test_the_file_of_another_network(self, torchvision, tmp_path):
        torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"features\.weight is missing, it has conv1\.weight"):
            make_backbone("torchvision:net", str(tmp_path / "w.pth"), SHAPE)


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self, monkeypatch):
        def create_model(name, *, pretrained=False, num_classes):
            assert num_classes == 0
            network = Classifier()
            network.classifier = nn.Identity()
            vars(network)["pretrained_cfg"] = {"classifier": ("classifier.2", "classifier.0")}
            return network

        shown = {
            "input_size": (3, 24, 24),
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        }
        library: Any = ModuleType("timm")
        library.create_model, library.list_models, library.__version__ = create_model, lambda: ["net"], "8.8"
        library.data = SimpleNamespace(resolve_model_data_config=lambda network: shown)
        monkeypatch.setitem(sys.modules, "timm", library)

    def test_its_features_and_its_preprocessing(self, tmp_path):
        torch.save(Classifier().state_dict(), tmp_path / "w.pth")
        backbone = make_backbone("timm:net", str(tmp_path / "w.pth"), SHAPE)
        assert backbone.name == "timm_net"
        assert backbone.output_shape == (5, 1, 1)
        assert backbone.config.library == "timm 8.8"
        assert (backbone.config.preprocessing.size, backbone.config.preprocessing.crop) == (24, 0.95)

    def test_names_that_it_lacks(self):
        with pytest.raises(ConfigError, match=r"timm 8\.8 has no such network"):
            make_backbone("timm:other", "default", SHAPE)
