"""The preconditioner from synthetic images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from scatterdp import baselines
from scatterdp.cache import FeatureCache
from scatterdp.datasets import load_dataset
from scatterdp.errors import ConfigError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.reference import reference_features
from scatterdp.heads import Precondition
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training import fit as fit_module
from scatterdp.training import preconditioning, synthetic_views
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.preconditioning import folded, synthetic_precondition
from scatterdp.training.synthetic_views import PAIRS, SyntheticFeatures, images_for

PLAN = TrainingPlan(num_examples=60, batch_size=20, epochs=4, lr=1.0, noise_multiplier=0.5, input_norm="BN",
                    precondition=5, precondition_power=0.5)  # fmt: skip


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(synthetic_views, "NUM_IMAGES", 200)


def test_directions_are_scaled_and_the_rest_stays():
    directions, _ = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)))
    scale = Precondition(directions, torch.tensor([0.1, 0.5, 1.0]))
    x = torch.randn(4, 3, 2, 2)
    flat, out = x.flatten(1), scale(x)
    assert out.shape == x.shape
    inside = flat @ directions
    torch.testing.assert_close(
        out.flatten(1) @ directions, inside * torch.tensor([0.1, 0.5, 1.0]), atol=1e-5, rtol=1e-5
    )
    rest = flat - inside @ directions.t()
    out_rest = out.flatten(1) - out.flatten(1) @ directions @ directions.t()
    torch.testing.assert_close(out_rest, rest, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_views_come_to_differ_by_what_the_power_says(small_extractor: Extractor, power):
    scale = synthetic_precondition(SyntheticFeatures(small_extractor), nn.Identity(), directions=4, power=power)
    differences = torch.cat(list(preconditioning._differences(SyntheticFeatures(small_extractor), nn.Identity())))
    before, after = (torch.linalg.svdvals(x) for x in (differences, scale(differences)))
    expected = torch.cat([before[:4] * (before[3] / before[:4]) ** power, before[4:]])
    torch.testing.assert_close(after, expected.sort(descending=True).values, rtol=2e-3, atol=1e-3 * before[0].item())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_channels_of_views_come_to_differ_by_what_the_power_says(small_extractor: Extractor, power):
    scale = synthetic_precondition(
        SyntheticFeatures(small_extractor), nn.Identity(), directions=4, power=power, of_channels=True
    )
    channels = small_extractor.output_shape[0]
    assert scale.directions.shape == (channels, 4)
    differences = torch.cat(list(preconditioning._differences(SyntheticFeatures(small_extractor), nn.Identity())))
    places = [x.unflatten(1, (channels, -1)).movedim(1, 2).flatten(0, 1) for x in (differences, scale(differences))]
    before, after = (torch.linalg.svdvals(x) for x in places)
    expected = torch.cat([before[:4] * (before[3] / before[:4]) ** power, before[4:]]) * scale.gain
    torch.testing.assert_close(after, expected.sort(descending=True).values, rtol=2e-3, atol=1e-3 * before[0].item())


def test_every_place_is_scaled_alike(small_extractor: Extractor):
    scale = synthetic_precondition(
        SyntheticFeatures(small_extractor), nn.Identity(), directions=4, power=1.0, of_channels=True
    )
    channels = small_extractor.output_shape[0]
    x = torch.randn(3, channels, 2, 2)
    places = torch.stack([scale(x[:, :, i : i + 1, j : j + 1]) for i in range(2) for j in range(2)], 2)
    torch.testing.assert_close(scale(x), places.view_as(x))
    torch.testing.assert_close(scale(x.flatten(1)), places.flatten(1))


def test_lengths_are_kept_for_networks(small_extractor: Extractor):
    scale = synthetic_precondition(
        SyntheticFeatures(small_extractor), nn.Identity(), directions=4, power=1.0, of_channels=True
    )
    features = small_extractor(images_for(small_extractor.input_shape, 200)).flatten(1)
    assert (scale(features) / scale.gain).norm() < 0.98 * features.norm()
    assert scale(features).norm().item() == pytest.approx(features.norm().item(), rel=0.05)


def test_more_directions_than_channels_are_refused(small_extractor: Extractor):
    channels = small_extractor.output_shape[0]
    with pytest.raises(
        ConfigError, match=f"precondition={channels + 1}: expected at most {channels} directions for a network on"
    ):
        synthetic_precondition(
            SyntheticFeatures(small_extractor), nn.Identity(), directions=channels + 1, power=1.0, of_channels=True
        )


def test_differences_are_between_views_of_the_same_image(small_extractor: Extractor):
    images = images_for(small_extractor.input_shape, 200)
    features = small_extractor(images).flatten(1)
    strangers = (features[: len(images) // 2] - features[len(images) // 2 :]).square().sum(1).mean()
    differences = torch.cat(list(preconditioning._differences(SyntheticFeatures(small_extractor), nn.Identity())))
    assert differences.shape == (PAIRS * len(images), features.shape[1])
    assert 0 < differences.square().sum(1).mean() < 0.85 * strangers


def test_it_depends_on_no_data_and_not_on_the_process_random_state(small_extractor: Extractor):
    first = synthetic_precondition(SyntheticFeatures(small_extractor), nn.Identity(), directions=4, power=0.5)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = synthetic_precondition(SyntheticFeatures(small_extractor), nn.Identity(), directions=4, power=0.5)
    assert torch.equal(first.directions, again.directions)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_data_set_is_needed(no_data_in_reach):
    """By the recipe's features, small: filters, components, the normaliser's bounds and the preconditioner."""
    blocks = (
        "0.5*scatternet(mirror=True)",
        "patches(patches=32, size=3, seed=43)",
        "deep_patches(patches=32, seed=43)",
    )
    extractor = make_extractor("+".join(blocks), (3, 8, 8))
    assert reference_features(extractor).isfinite().all()
    scale = synthetic_precondition(SyntheticFeatures(extractor), nn.Identity(), directions=4, power=0.5)
    assert (scale.factors < 1).any()


def test_folded_weights_give_the_same_logits():
    directions, _ = torch.linalg.qr(torch.randn(12, 3))
    scale = Precondition(directions, torch.tensor([0.1, 0.5, 1.0]))
    linear, plain, x = nn.Linear(12, 4), nn.Linear(12, 4), torch.randn(5, 12)
    plain.load_state_dict(folded(linear.state_dict(), scale))
    torch.testing.assert_close(plain(x), linear(scale(x)), atol=1e-5, rtol=1e-5)
    louder = Precondition(directions, scale.factors, gain=3.0)
    plain.load_state_dict(folded(linear.state_dict(), louder))
    torch.testing.assert_close(plain(x), linear(3 * scale(x)), atol=1e-5, rtol=1e-5)


def test_the_head_that_comes_out_needs_no_preconditioner(small_features: FeatureCache, small_extractor: Extractor):
    result = fit(small_features, PLAN, extractor=small_extractor, key=RandomKey.from_seed(0))
    assert set(result.head.state_dict()) == {
        "normalizer.mean",
        "normalizer.scale",
        "classifier.weight",
        "classifier.bias",
    }
    images = torch.cat([torch.from_numpy(block) for _, block in small_features.iter_rows("test", 100)])
    with torch.no_grad():
        correct = result.head(images).argmax(1) == torch.from_numpy(small_features.labels("test"))
    assert correct.float().mean().item() == pytest.approx(result.test_accuracy)
    plain = fit(
        small_features, dataclasses.replace(PLAN, precondition=0), extractor=small_extractor, key=RandomKey.from_seed(0)
    )
    assert [entry["event"] for entry in result.certificate["ledger"]] == [
        entry["event"] for entry in plain.certificate["ledger"]
    ]
    assert not torch.equal(
        plain.head.classifier.get_parameter("weight"), result.head.classifier.get_parameter("weight")
    )


def test_a_resumed_run_keeps_its_preconditioner(small_features, small_extractor, monkeypatch, tmp_path):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
    saved: list[Path] = []

    def keep(checkpoint: Checkpoint) -> None:
        saved.append(tmp_path / str(len(saved)))
        checkpoint.save(saved[-1])

    whole = fit(small_features, PLAN, extractor=small_extractor, key=RandomKey.from_seed(0), on_checkpoint=keep)
    monkeypatch.setattr(fit_module, "synthetic_precondition", lambda *_, **__: pytest.fail("computed again"))
    for path in (saved[0], saved[2]):
        resumed = fit(small_features, PLAN, extractor=small_extractor, resume=Checkpoint.load(path))
        for name, value in whole.head.state_dict().items():
            assert torch.equal(resumed.head.state_dict()[name], value), name


def test_more_directions_than_features(small_features, small_extractor):
    plan = dataclasses.replace(PLAN, precondition=25)
    with pytest.raises(ConfigError, match=r"precondition=25: expected at most 24 directions for 24 features"):
        fit(small_features, plan, extractor=small_extractor)


def test_on_the_command_line(tmp_path, monkeypatch, accounting_once, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset=digits", "--extractor=0.5*scatternet + patches(patches=32, size=3)", "--input_norm=BN", "--seed=1",
             "--bn_noise_multiplier=20", "--precondition=20", "--noise_multiplier=3", "--epochs=3", "--run_dir=run"]  # fmt: skip
    assert baselines.main(flags) == 0
    weights = load_file("run/model.safetensors")
    digits = load_dataset("digits")
    size = make_extractor("scatternet+patches(patches=32, size=3)", digits.image_shape).output_shape[0]
    assert weights["classifier.weight"].shape == (10, size)
    certificate = json.loads(Path("run/certificate.json").read_text())
    assert certificate["features"]["config"]["scales"] == {"scatternet": 0.5, "patches": 1.0}
    assert baselines.main(["--dataset=digits", "--noise_multiplier=3", "--precondition=9999", "--run_dir=none"]) == 2
    assert "precondition=9999: expected at most" in capsys.readouterr().err
    assert not Path("none").exists()
    assert baselines.main(["--dataset=digits", "--precondition=3", "--optim=LR"]) == 2
    assert "precondition=3: has no effect with optim=LR" in capsys.readouterr().err
