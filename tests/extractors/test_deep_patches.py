"""Patch features of two layers: against a definition written out in numpy, and what every extractor has to promise."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import deep_patches, make_extractor, map_layer, patch_filters
from scatterdp.extractors.base import blocks_of
from scatterdp.extractors.deep_patches import DeepPatches, DeepPatchesConfig, default_config
from scatterdp.extractors.map_layer import fitted_components, reduced
from scatterdp.extractors.patch_filters import make_map_filters
from scatterdp.extractors.reference import reference_features

SMALL: dict[str, Any] = {
    "first_patches": 32, "first_size": 3, "first_grid": 5, "components": 8, "patches": 32, "size": 2, "grid": 2,
}  # fmt: skip


def make(shape: tuple[int, int, int], **settings: Any) -> DeepPatches:
    return DeepPatches(DeepPatchesConfig(**{**SMALL, **settings}), shape)


def images_of(shape: tuple[int, int, int], count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((count, *shape), dtype=np.float32))


@pytest.fixture(autouse=True)
def few_synthetic_images(monkeypatch):
    """Fitted in a fraction of a second."""
    monkeypatch.setattr(patch_filters, "IMAGES", 100)
    monkeypatch.setattr(patch_filters, "PATCHES", 4000)
    monkeypatch.setattr(patch_filters, "MAP_PATCHES", 4000)
    monkeypatch.setattr(map_layer, "IMAGES", 100)


def by_definition(extractor: DeepPatches, image: torch.Tensor) -> np.ndarray:
    """One image, place by place, in double precision, from the first layer's maps."""
    config = extractor.config
    first = make_extractor(
        "patches", extractor.input_shape, patches=config.first_patches, size=config.first_size,
        threshold=config.first_threshold, whitening=config.first_whitening, grid=config.first_grid, mirror=False,
    )  # fmt: skip
    maps = first(image[None])[0].double().numpy()
    (vectors, bias), filters = extractor._second.components, extractor._second.layer._filters
    reduced = np.einsum("kc,cyx->kyx", vectors.double().numpy(), maps) + bias.double().numpy()[:, :, None]
    places = config.first_grid - config.size + 1
    weight = filters.weight.reshape(config.patches, -1).astype(np.float64)
    sums, counts = np.zeros((config.grid**2, 2 * config.patches)), np.zeros(config.grid**2)
    for y in range(places):
        for x in range(places):
            patch = reduced[:, y : y + config.size, x : x + config.size].ravel()
            patch = patch / np.sqrt(np.square(patch).sum() / (len(patch) - 1) + filters.contrast)
            response = weight @ patch + filters.bias
            cell = y * config.grid // places * config.grid + x * config.grid // places
            t = config.threshold
            sums[cell] += np.concatenate([np.maximum(response - t, 0), np.maximum(-response - t, 0)])
            counts[cell] += 1
    return (sums / counts[:, None]).T.reshape(extractor.output_shape)


@pytest.mark.parametrize("shape", [(1, 9, 12), (3, 10, 8)])
def test_equals_the_definition(shape):
    extractor, images = make(shape, mirror=False, threshold=0.3), images_of(shape)
    expected = np.stack([by_definition(extractor, image) for image in images])
    assert expected.max() > 0.1
    np.testing.assert_allclose(extractor(images).numpy(), expected, atol=0.02)  # bfloat16 keeps eight bits


def test_components_are_principal_and_in_order():
    generator = np.random.default_rng(0)
    maps = torch.from_numpy(generator.normal(size=(40, 3, 25)) * [[3.0], [0.5], [1.0]] + 7).float()
    components = fitted_components([(piece,) for piece in maps.split(7)], 2)
    directions = components.vectors * 5**0.5  # their mean variance, (9 + 1) / 2, is brought to 1
    assert torch.allclose(directions.abs(), torch.tensor([[1.0, 0, 0], [0, 0, 1]]), atol=0.1)
    smaller = reduced(maps, components)
    assert torch.allclose(smaller.mean((0, 2)), torch.zeros(2), atol=1e-4)
    covariance = torch.cov(smaller.movedim(1, 0).flatten(1))
    assert covariance[0, 0] > 5 * covariance[1, 1] > 0
    assert covariance[0, 1].abs() < 1e-2


def two_views(channels: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps whose first channel varies most, and changes most from view to view."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(60, channels, side, side))
    changes = [generator.normal(size=shared.shape) * 0.1 for _ in range(2)]
    for change in changes:
        change[:, 0] *= 40
    one, other = (shared + change + 1 for change in changes)
    return one.astype(np.float32), other.astype(np.float32)


def test_components_of_views_are_those_that_last():
    """The first channel has the largest variance and says least about the image."""
    views = tuple(torch.from_numpy(maps).flatten(2) for maps in two_views(3, 5))
    alone, together = (fitted_components([which], 2).vectors for which in (views[:1], views))
    assert alone.abs().argmax(1)[0] == 0
    assert together[:, 0].abs().max() < 0.1 * together[:, 1:].abs().min(1).values.max()


def test_filters_of_views_respond_less_to_what_changes():
    views = two_views(3, 6)
    options: dict[str, Any] = {"count": 64, "size": 1, "whitening": 0.1, "seed": 0}
    alone, together = (make_map_filters(views[0], other, **options) for other in (None, views[1]))
    shares = [np.square(filters.weight).sum((0, 2, 3)) for filters in (alone, together)]
    shares = [share[0] / share.sum() for share in shares]
    assert shares[1] < 0.5 * shares[0]


def test_responses_have_deviation_one():
    maps = two_views(3, 6)[0]
    filters = make_map_filters(maps, None, count=200, size=2, whitening=0.1, seed=0)
    places = (
        np.lib.stride_tricks.sliding_window_view(maps, (2, 2), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    )
    normal = places / np.sqrt(np.square(places).sum(1, keepdims=True) / 11 + filters.contrast)
    responses = normal @ filters.weight.reshape(200, -1).T + filters.bias
    assert responses.std() == pytest.approx(1, rel=0.05)


def test_the_basis_of_the_maps_does_not_matter():
    """Components are known up to their signs, and to a rotation where variances are equal."""
    generator = np.random.default_rng(0)
    views = two_views(4, 6)
    turn, _ = np.linalg.qr(generator.normal(size=(4, 4)))
    turned = [np.einsum("kc,ncyx->nkyx", turn, maps) for maps in views]
    options: dict[str, Any] = {"count": 16, "size": 2, "whitening": 0.1, "seed": 0}
    filters, others = make_map_filters(*views, **options), make_map_filters(*turned, **options)
    np.testing.assert_allclose(np.einsum("kc,fcyx->fkyx", turn, filters.weight), others.weight, atol=1e-4)
    np.testing.assert_allclose(filters.bias, others.bias, atol=1e-4)
    assert filters.contrast == pytest.approx(others.contrast)


@pytest.mark.parametrize("assignment", ["soft", "abs", "triangle"])
def test_an_image_and_its_mirror_image_have_the_same_features(assignment):
    images, without = images_of((3, 10, 12)), make((3, 10, 12), assignment=assignment, mirror=False)
    extractor = make((3, 10, 12), assignment=assignment, mirror=True)
    torch.testing.assert_close(extractor(images), extractor(images.flip(3)), atol=1e-6, rtol=0)
    assert (without(images) - without(images.flip(3))).abs().max() > 0.05
    torch.testing.assert_close(extractor(images), (without(images) + without(images.flip(3))) / 2)


def test_rows_depend_on_their_image_alone_whatever_the_batch_the_threads_and_the_memory(monkeypatch):
    extractor, images = make((3, 10, 7), first_grid=4), images_of((3, 10, 7), 9)
    together, before = extractor(images), torch.get_num_threads()
    monkeypatch.setattr(deep_patches, "_MAP_VALUES", 3 * 64 * 16)  # three images at a time
    assert [len(maps) for maps in extractor._first_maps(images[:7])] == [3, 3, 1]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(
                torch.cat([extractor(images[:4]), extractor(images[4:8]), extractor(images[8:])]), together
            )
        finally:
            torch.set_num_threads(before)
    assert torch.equal(make((3, 10, 7), first_grid=4)(images), together)  # fitted with less memory, too
    assert extractor(images[:0]).shape == (0, *extractor.output_shape)


def test_without_a_compiler_torch_takes_its_place_and_says_so(monkeypatch, caplog):
    with_kernel, images = make((3, 10, 8)), images_of((3, 10, 8))
    fast = with_kernel(images)
    monkeypatch.setenv("CXX", "no-such-compiler")
    without = make((3, 10, 8))
    with caplog.at_level(logging.WARNING):
        slow = without(images)
    assert "no-such-compiler" in caplog.text
    # Fitted without the kernel, too: one rounding apart, a patch's variance is another in the last digits.
    torch.testing.assert_close(fast, slow, atol=0.02, rtol=0)
    assert without.fingerprint == with_kernel.fingerprint


def test_every_setting_is_in_the_fingerprint():
    changes: list[dict[str, Any]] = [
        {"first_patches": 64}, {"first_size": 4}, {"first_threshold": 0.5}, {"first_whitening": 0.2}, {"first_grid": 4},
        {"first_assignment": "abs"}, {"components": 4}, {"patches": 64}, {"size": 3}, {"threshold": 0.5},
        {"whitening": 0.2}, {"grid": 1}, {"mirror": False}, {"assignment": "abs"}, {"source": "spectrum_noise"}, {"seed": 1},
        {"fitted_to": "images"},
    ]  # fmt: skip
    assert {key for change in changes for key in change} == {*DeepPatchesConfig.__dataclass_fields__}
    found = {make((1, 9, 9), **change).fingerprint for change in [{}, *changes]}
    assert len(found) == len(changes) + 1
    assert make((1, 9, 9)).fingerprint == make((1, 9, 9)).fingerprint != make((1, 9, 10)).fingerprint


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 96, 64), (3, 16, 16)])
def test_defaults_fit_the_images(shape):
    config = default_config(shape)
    assert config.mirror == (shape[0] == 3)
    assert DeepPatches(config, shape).output_shape == (2 * config.patches, config.grid, config.grid)


def test_images_too_small_for_two_layers_are_one_clear_error():
    with pytest.raises(
        ConfigError, match=r"^grid=3: expected 1 to 2, the positions a side; take fewer cells or smaller patches$"
    ):
        make_extractor("deep_patches", (1, 5, 9))
    with pytest.raises(ConfigError, match=r"^first_size=3: the images are 1×2×9, take smaller patches$"):
        make_extractor("deep_patches", (1, 2, 9))


def test_settings_of_the_first_layer_bring_a_grid_that_fits():
    assert make_extractor("deep_patches(first_size=4)", (1, 8, 8)).config == default_config(
        (1, 8, 8), first_grid=5, first_size=4
    )
    with pytest.raises(ConfigError, match=r"^first_size='a': expected an integer"):
        make_extractor("deep_patches", (1, 8, 8), first_size="a")


def test_beside_and_inside_other_extractors():
    deep = "deep_patches(first_patches=32, first_size=3, first_grid=5, components=8, patches=32, size=2, grid=2)"
    extractor = make_extractor(f"views(deskew(0.5*{deep} + pixels), crops=((1, 0), (0.8, 0)))", (1, 8, 8))
    assert [(block.name, block.scale) for block in blocks_of(extractor)] == [("deep_patches", 0.5), ("pixels", 1.0)]
    features = reference_features(extractor)
    assert features.shape == (256, 2 * 32 * 4 + 64, 1, 1)
    assert features.isfinite().all()
    assert (features.std(0) > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches": 33}, "patches=33: expected a multiple of 32"),
        ({"patches": 32000}, "patches=32000: expected a multiple of 32, at most 30000"),
        ({"first_patches": 33}, "first_patches=33: expected a multiple of 32"),
        ({"first_threshold": "x"}, "first_threshold='x': expected a number"),
        ({"first_assignment": "max"}, "first_assignment='max': expected one of soft"),
        ({"assignment": "max"}, "assignment='max': expected one of soft"),
        ({"first_size": 20}, "first_size=20: the images are 3×10×7, take smaller patches"),
        ({"first_grid": 6}, "first_grid=6: expected 1 to 5, the positions a side"),
        ({"size": 6}, "size=6: the first layer's maps are 8×5×5, take smaller patches"),
        ({"grid": 5}, "grid=5: expected 1 to 4, the positions a side"),
        ({"components": 0}, "components=0: expected 1 to 64, the first layer's channels"),
        ({"components": 65}, "components=65: expected 1 to 64, the first layer's channels"),
        ({"components": 2.0}, "components=2.0: expected 1 to 64"),
        ({"first_patches": 64, "components": 128, "size": 4}, "size=4: a patch has 2048 values, expected at most 1280"),
        ({"whitening": 0}, "whitening=0: expected"),
        ({"mirror": 1}, "mirror=1: expected True or False"),
        ({"source": "cifar10"}, "source='cifar10': expected one of dead_leaves"),
        ({"seed": -1}, "seed=-1: expected an integer ≥ 0"),
        ({"colour": 1}, "colour=1: deep_patches has no such setting"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError) as raised:
        make_extractor("deep_patches", (3, 10, 7), **{**SMALL, **settings})
    assert str(raised.value).startswith(message)


def test_bad_images():
    extractor = make((1, 9, 9))
    with pytest.raises(UserError, match="NaN"):
        extractor(torch.full((1, 1, 9, 9), float("nan")))
    with pytest.raises(UserError, match="expected"):
        extractor(torch.zeros(1, 1, 9, 8))
