"""How networks start: from synthetic images alone, as patch features of the maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scatterdp import cnns
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.map_layer import fitted_components, views_to_fit
from scatterdp.extractors.patch_filters import make_map_filters
from scatterdp.heads import PatchCNN, Standardize, patch_cnn
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training import fit as fit_module
from scatterdp.training import preconditioning, synthetic_start, synthetic_views
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.synthetic_start import WHITENING, start_from_synthetic
from scatterdp.training.synthetic_views import SyntheticFeatures, images_for

PLAN = TrainingPlan(
    num_examples=60, batch_size=20, epochs=4, lr=1.0, noise_multiplier=0.5, input_norm="BN", head="patch_cnn", engine="mixed_ghost"
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_views, "NUM_IMAGES", 200)
    monkeypatch.setattr(synthetic_start, "NUM_IMAGES", 200)
    for name, value in (("FILTERS", 16), ("COMPONENTS", 4), ("DIRECTIONS", 6)):
        monkeypatch.setattr(patch_cnn, name, value)


NORMALIZER = Standardize(torch.linspace(0, 0.2, 6), torch.linspace(4, 9, 6))


def started(extractor: Extractor) -> PatchCNN:
    network = PatchCNN(extractor.output_shape, 3)
    start_from_synthetic(network, SyntheticFeatures(extractor), NORMALIZER)
    return network


def test_filters_are_whitened_patches_of_synthetic_maps(small_extractor):
    network = started(small_extractor)
    images = images_for(small_extractor.input_shape, 200)
    views = [NORMALIZER(small_extractor(view)).flatten(2) for view in views_to_fit(images, seed=0)]
    components = fitted_components([tuple(views)], 4)
    torch.testing.assert_close(network.vectors, components.vectors)
    torch.testing.assert_close(network.bias, components.bias)

    reduced = [(network.vectors @ maps + network.bias).unflatten(2, network.shape[1:]).numpy() for maps in views]
    filters = make_map_filters(*reduced, count=16, size=1, whitening=WHITENING, seed=0)
    # Convolution after whitening = the filters' own weights on the normalised patch.
    weights = network.filters.weight[:, :, 0, 0] @ network.whitening
    np.testing.assert_allclose(weights.detach().numpy(), filters.weight[:, :, 0, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose((-weights @ network.mean)[:, 0].detach().numpy(), filters.bias, rtol=1e-3, atol=1e-4)
    assert not network.get_parameter("filters.bias").any()
    assert not network.linear.weight.any()


@torch.no_grad()
def test_averages_are_standardised_and_views_made_to_differ_alike(small_extractor):
    network = started(small_extractor)
    view, _ = views_to_fit(images_for(small_extractor.input_shape, 200), seed=0)
    maps = NORMALIZER(small_extractor(view))
    pooled = (network.pooled(maps.flatten(1)) - network.pooled_mean) * network.pooled_scale
    torch.testing.assert_close(pooled.mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(pooled.var((0, 2, 3)), torch.ones(32), rtol=1e-3, atol=0)

    differences = torch.cat(
        list(
            preconditioning._differences(
                SyntheticFeatures(small_extractor), lambda maps: network.features(NORMALIZER(maps))
            )
        )
    )
    lengths = (network.linear.precondition(differences) @ network.linear.precondition.directions).norm(dim=0)
    torch.testing.assert_close(lengths, lengths[-1:].expand(6), rtol=1e-2, atol=0)
    assert (differences @ network.linear.precondition.directions).norm(dim=0)[0] > 1.2 * lengths[0]  # the control


def test_it_depends_on_no_data_and_not_on_the_process_random_state(small_extractor):
    first = started(small_extractor).state_dict()
    torch.manual_seed(123)
    again = started(small_extractor).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_no_data_set_is_needed(small_extractor, no_data_in_reach):
    assert started(small_extractor).vectors.std() > 0


def test_a_run_starts_there_and_a_resumed_one_keeps_it(small_features, small_extractor, monkeypatch, tmp_path):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
    saved: list[Path] = []

    def keep(checkpoint: Checkpoint) -> None:
        saved.append(tmp_path / str(len(saved)))
        checkpoint.save(saved[-1])

    key = RandomKey.from_seed(0)
    whole = fit(small_features, PLAN, extractor=small_extractor, key=key, on_checkpoint=keep)
    weights = whole.head.state_dict()
    start = PatchCNN(small_extractor.output_shape, 3)
    normalizer = Standardize(weights["normalizer.mean"], weights["normalizer.scale"])
    start_from_synthetic(start, SyntheticFeatures(small_extractor), normalizer)
    moved = {
        name for name, value in start.state_dict().items() if not torch.equal(value, weights[f"classifier.{name}"])
    }
    assert moved == {"filters.weight", "filters.bias", "linear.weight", "linear.bias"}

    monkeypatch.setattr(fit_module, "start_from_synthetic", lambda *_: pytest.fail("computed again"))
    for path in (saved[0], saved[2]):
        resumed = fit(small_features, PLAN, extractor=small_extractor, resume=Checkpoint.load(path))
        for name, value in weights.items():
            assert torch.equal(resumed.head.state_dict()[name], value), name


def test_on_the_command_line(tmp_path, monkeypatch, accounting_once, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--dataset=digits",
        "--use_scattering",
        "--arch=patch_cnn",
        "--noise_multiplier=2",
        "--epochs=8",
        "--seed=1",
        "--run_dir=run",
    ]
    assert cnns.main(flags) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["plan"]["head"] == "patch_cnn"
    assert summary["test_accuracy"] > 0.5
    for bad, message in (
        (["--arch=patch_cnn"], "arch=patch_cnn: takes feature maps; give --use_scattering too"),
        (["--arch=patch_cnn", "--use_scattering", "--size=small"], "size=small: arch=patch_cnn has one size"),
        (
            ["--arch=patch_cnn", "--use_scattering", "--engine=hooks"],
            "engine=hooks: Opacus does not serve arch=patch_cnn",
        ),
        (
            ["--arch=patch_cnn", "--use_scattering", "--extractor=scatternet+patches(patches=32, size=3)*1"],
            "extractor=",
        ),
    ):
        assert cnns.main(["--dataset=digits", "--run_dir=none", *bad]) == 2
        assert message in capsys.readouterr().err
    assert not Path("none").exists()
