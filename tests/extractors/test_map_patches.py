"""Patch features of another extractor's maps: against a definition written out in numpy, and what every extractor has to promise."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor, map_layer, patch_filters
from scatterdp.extractors.base import Extractor, blocks_of
from scatterdp.extractors.map_patches import MapPatches, MapPatchesConfig
from scatterdp.extractors.patch_filters import MAP_CONTRAST, photographic_leaves
from scatterdp.extractors.synthetic import ALIGNED, random_views

SMALL: dict[str, Any] = {"patches": 32, "components": 5, "grid": 2}


def make(shape: tuple[int, int, int] = (3, 16, 12), inner: str = "scatternet(J=1, L=4)", **settings: Any) -> MapPatches:
    return MapPatches(make_extractor(inner, shape), MapPatchesConfig(**{**SMALL, **settings}))


def images_of(shape: tuple[int, int, int], count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((count, *shape), dtype=np.float32))


@pytest.fixture(autouse=True)
def few_synthetic_images(monkeypatch):
    """Fitted in a fraction of a second."""
    monkeypatch.setattr(patch_filters, "MAP_PATCHES", 4000)
    monkeypatch.setattr(map_layer, "IMAGES", 60)


def by_definition(extractor: MapPatches, image: torch.Tensor) -> np.ndarray:
    """One image, place by place, in double precision: everything fitted again from the synthetic images' maps, but for the choice of patches."""
    inner, settings = extractor.extractor, extractor.config.layer
    images = torch.from_numpy(photographic_leaves(60, inner.input_shape, seed=0))
    views = (
        [images] if settings.fitted_to == "images" else [random_views(images, seed=s, changes=ALIGNED) for s in (0, 1)]
    )
    synthetic = [inner(view).double().numpy() for view in views]
    mean, deviation = synthetic[0].mean((0, 2, 3)), synthetic[0].std((0, 2, 3), ddof=1)

    def standardised(maps: np.ndarray) -> np.ndarray:
        return (maps - mean[:, None, None]) / deviation[:, None, None]

    vectors = extractor._layer.components.vectors.double().numpy() * deviation
    places = [np.moveaxis(standardised(maps), 1, 3).reshape(-1, len(mean)) for maps in synthetic]
    centre, total = places[0].mean(0), np.cov(places[0].T, bias=True)
    variances = vectors @ total @ vectors.T
    assert variances.trace() == pytest.approx(len(vectors), rel=1e-3)
    if settings.fitted_to == "images":
        within, largest = np.eye(len(mean)), np.linalg.eigvalsh(total)
    else:
        difference = places[0] - places[1]
        within = difference.T @ difference / len(difference) / 2
        within += 0.1 * within.trace() / len(within) * np.eye(len(within))
        largest = linalg.eigh(total, within, eigvals_only=True)
    # Directions of largest ratio: uncorrelated in both senses, and their ratios are the largest generalised eigenvalues.
    share = vectors @ within @ vectors.T
    np.testing.assert_allclose(share / share[0, 0], np.eye(len(vectors)), atol=1e-3)
    np.testing.assert_allclose(variances / share[0, 0], np.diag(largest[::-1][: len(vectors)]), rtol=2e-3, atol=1e-2)

    def reduced(maps: np.ndarray) -> np.ndarray:
        return np.einsum("kc,cyx->kyx", vectors, standardised(maps) - centre[:, None, None])

    filters = extractor._layer.layer._filters
    # Patches are drawn, so their mean square is near that of all places.
    expected_contrast = MAP_CONTRAST * np.square((places[0] - centre) @ vectors.T).mean()
    assert filters.contrast == pytest.approx(expected_contrast, rel=0.1)
    maps = reduced(inner(image[None])[0].double().numpy())
    size, (_, down, across) = settings.size, extractor.output_shape
    rows, columns = maps.shape[1] - size + 1, maps.shape[2] - size + 1
    sums, counts = np.zeros((down * across, 2 * settings.patches)), np.zeros(down * across)
    for y in range(rows):
        for x in range(columns):
            patch = maps[:, y : y + size, x : x + size].ravel()
            patch = patch / np.sqrt(np.square(patch).sum() / (len(patch) - 1) + filters.contrast)
            response = filters.weight.reshape(settings.patches, -1).astype(np.float64) @ patch + filters.bias
            cell = y * down // rows * across + x * across // columns
            t = settings.threshold
            sums[cell] += np.concatenate([np.maximum(response - t, 0), np.maximum(-response - t, 0)])
            counts[cell] += 1
    return (sums / counts[:, None]).T.reshape(extractor.output_shape)


@pytest.mark.parametrize("fitted_to", ["views", "images"])
@pytest.mark.parametrize(("shape", "size"), [((1, 16, 12), 1), ((3, 16, 12), 1), ((3, 18, 18), 2)])
def test_equals_the_definition(shape, size, fitted_to):
    extractor, images = make(shape, size=size, fitted_to=fitted_to), images_of(shape)
    expected = np.stack([by_definition(extractor, image) for image in images])
    assert expected.max() > 0.1
    np.testing.assert_allclose(extractor(images).numpy(), expected, atol=0.02)  # bfloat16 keeps eight bits


def test_filters_have_length_one_where_patches_are_white():
    filters = make()._layer.layer._filters
    chosen = np.linalg.solve(filters.whitening, filters.weight.reshape(32, -1).T)
    np.testing.assert_allclose(np.linalg.norm(chosen, axis=0), 1, rtol=1e-4)


def test_cells_are_in_proportion_to_the_maps():
    assert make_extractor("map_patches(scatternet(mirror=True))", (3, 32, 32)).output_shape == (1024, 3, 2)
    assert make_extractor("map_patches(scatternet)", (3, 32, 32)).output_shape == (1024, 3, 3)
    assert make((1, 28, 28), inner="scatternet", grid=1).output_shape == (64, 1, 1)


def test_the_mirror_image_has_the_same_features_where_the_maps_have():
    """A ScatterNet's folded maps are those of the mirror image but for the first column and a pixel's shift."""
    images = torch.from_numpy(photographic_leaves(20, (3, 32, 32), seed=5))
    extractor = make((3, 32, 32), inner="scatternet(mirror=True)")
    differences = [(extractor(images) - extractor(images.flip(axis))).norm() for axis in (3, 2)]
    assert differences[0] < 0.5 * differences[1]


def test_rows_depend_on_their_image_alone_whatever_the_batch_and_the_threads():
    extractor, images = make(), images_of((3, 16, 12), 9)
    together, before = extractor(images), torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(torch.cat([extractor(images[:4]), extractor(images[4:])]), together)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(make()(images), together)
    assert extractor(images[:0]).shape == (0, *extractor.output_shape)


def test_without_a_compiler_torch_takes_its_place_and_says_so(monkeypatch, caplog):
    images = images_of((3, 16, 12))
    fast = make()(images)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        slow = make()(images)
    assert "no-such-compiler" in caplog.text
    torch.testing.assert_close(fast, slow, atol=0.02, rtol=0)


def test_every_setting_and_the_inner_extractor_are_in_the_fingerprint():
    changes: list[dict[str, Any]] = [
        {}, {"patches": 64}, {"size": 2}, {"threshold": 0.5}, {"whitening": 0.2}, {"components": 4}, {"grid": 3},
        {"source": "dead_leaves"}, {"fitted_to": "images"}, {"seed": 1}, {"inner": "scatternet(J=1, L=5)"},
    ]  # fmt: skip
    prints = [make(**change).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert make().fingerprint == prints[0]


def test_beside_other_extractors():
    extractor: Extractor = make_extractor(
        "0.5*scatternet(J=1) + map_patches(scatternet(J=1), patches=32, components=4, grid=2)", (1, 16, 16)
    )
    assert [(block.name, block.scale) for block in blocks_of(extractor)] == [("scatternet", 0.5), ("map_patches", 1)]
    images = images_of((1, 16, 16))
    parts = (
        extractor(images)
        .flatten(1)
        .split([block.shape[0] * block.shape[1] * block.shape[2] for block in blocks_of(extractor)], 1)
    )
    alone = make_extractor("map_patches(scatternet(J=1), patches=32, components=4, grid=2)", (1, 16, 16))
    assert torch.equal(parts[1], alone(images).flatten(1))


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("map_patches", "map_patches: of which extractor"),
        ("map_patches(scatternet, patches=33)", "patches=33: of map_patches, expected a multiple of 32"),
        ("map_patches(scatternet, patches=0)", "patches=0: of map_patches, expected an integer ≥ 32"),
        ("map_patches(scatternet, size=9)", "size=9: of map_patches, the maps are 64×8×8, take smaller patches"),
        ("map_patches(scatternet, size=5)", "size=5: of map_patches, a patch has 1600 values, expected at most 1280"),
        ("map_patches(scatternet, grid=9)", "grid=9: of map_patches, expected 1 to 8"),
        ("map_patches(scatternet, components=0)", "components=0: of map_patches, expected an integer ≥ 1"),
        ("map_patches(scatternet, threshold=-1)", "threshold=-1: of map_patches, expected a number from 0 to 100"),
        ("map_patches(scatternet, whitening=0)", "whitening=0: of map_patches, expected a number from 1e-06"),
        ("map_patches(scatternet, source='cats')", "source='cats': of map_patches, expected one of"),
        (
            "map_patches(scatternet, fitted_to='cats')",
            "fitted_to='cats': of map_patches, expected one of views, images",
        ),
        ("map_patches(scatternet, filters=3)", "filters=3: map_patches has no such setting"),
        (
            "map_patches(scatternet, components=1)",
            "size=1: of map_patches, a patch of maps of one channel has one value",
        ),
        ("map_patches(scatternet+patches)", "map_patches: takes maps of one kind, concat has several"),
    ],
)
def test_bad_settings(specification, message):
    with pytest.raises(ConfigError) as caught:
        make_extractor(specification, (3, 32, 32))
    assert message in str(caught.value)


def test_bad_images():
    with pytest.raises(UserError, match="expected"):
        make()(torch.zeros(2, 3, 8, 8))
