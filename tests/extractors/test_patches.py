"""Patch features: against a definition written out in numpy, with and without the kernel."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor, patch_kernel
from scatterdp.extractors.patch_filters import CONTRAST, SOURCES, make_patch_filters
from scatterdp.extractors.patches import Patches, PatchesConfig, default_config

SHAPES = [(1, 9, 12), (3, 10, 7), (2, 8, 8)]


def make(shape: tuple[int, int, int], **settings: Any) -> Patches:
    return Patches(PatchesConfig(**{"patches": 32, "size": 3, "grid": 2, **settings}), shape)


def images_of(shape: tuple[int, int, int], count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)


def by_definition(extractor: Patches, image: np.ndarray) -> np.ndarray:
    """One image, position by position, in double precision."""
    config, (_, height, width) = extractor.config, extractor.input_shape
    filters = make_patch_filters(
        extractor.input_shape,
        count=config.patches,
        size=config.size,
        whitening=config.whitening,
        source=config.source,
        seed=config.seed,
    )
    rows, columns = height - config.size + 1, width - config.size + 1
    assert config.grid == 2
    edges = [[0, n // 2, n] for n in (rows, columns)]
    weight = filters.weight.reshape(config.patches, -1).astype(np.float64)
    grid = np.zeros((*extractor.output_shape,))
    for i in range(config.grid):
        for j in range(config.grid):
            cell = []
            for y in range(edges[0][i], edges[0][i + 1]):
                for x in range(edges[1][j], edges[1][j + 1]):
                    patch = image[:, y : y + config.size, x : x + config.size].astype(np.float64).ravel()
                    patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + CONTRAST)
                    response = weight @ patch + filters.bias
                    whitened = filters.whitening @ (patch - filters.mean)
                    units = (weight.astype(np.float64) @ np.linalg.inv(filters.whitening)) / 1.0
                    distance = np.linalg.norm(whitened - units, axis=1)
                    t = config.threshold
                    cell.append(
                        {
                            "soft": np.concatenate([np.maximum(response - t, 0), np.maximum(-response - t, 0)]),
                            "abs": np.maximum(np.abs(response) - t, 0),
                            "hard": np.eye(config.patches)[response.argmax()],
                            "triangle": np.maximum(0, distance.mean() - distance),
                        }[config.assignment]
                    )
            grid[:, i, j] = np.mean(cell, axis=0)
    return grid


@pytest.mark.parametrize("assignment", ["soft", "abs", "triangle"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(shape, assignment):
    extractor = make(shape, assignment=assignment, mirror=False, threshold=0.3)
    images = images_of(shape)
    expected = np.stack([by_definition(extractor, image) for image in images])
    found = extractor(torch.from_numpy(images)).numpy()
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=0.02)  # bfloat16 keeps eight bits


def test_hard_assignment_counts_every_position_once():
    found = make((3, 10, 7), assignment="hard", mirror=True)(torch.from_numpy(images_of((3, 10, 7))))
    torch.testing.assert_close(found.sum(1), torch.ones(3, 2, 2))
    assert found.max() <= 1


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("assignment", ["soft", "abs"])
@pytest.mark.parametrize(("shape", "grid"), [(shape, grid) for shape in SHAPES for grid in (1, 2, 3)])
def test_the_kernel_is_torchs_result(shape, grid, assignment, mirror):
    extractor = make(shape, assignment=assignment, mirror=mirror, grid=grid, patches=64)
    images = torch.from_numpy(images_of(shape, 7))
    images[2] = 0.5  # flat
    images[3] = 0.0
    images[3, 0, 4, 4] = 1.0
    assert extractor.layer.kernel is not None
    torch.testing.assert_close(extractor(images).flatten(2), extractor.layer.without_kernel(images), atol=1e-3, rtol=0)


@pytest.mark.parametrize("assignment", ["soft", "abs", "triangle", "hard"])
def test_an_image_and_its_mirror_image_have_the_same_features(assignment):
    images = torch.from_numpy(images_of((3, 10, 12)))
    extractor = make((3, 10, 12), assignment=assignment, mirror=True)
    torch.testing.assert_close(extractor(images), extractor(images.flip(3)), atol=1e-3, rtol=0)
    without = make((3, 10, 12), assignment=assignment, mirror=False)
    assert (without(images) - without(images.flip(3))).abs().max() > 0.05
    average = (without(images) + without(images.flip(3))) / 2
    torch.testing.assert_close(extractor(images), average, atol=5e-3, rtol=0)


def test_rows_depend_on_their_image_alone_whatever_the_batch_and_threads():
    extractor, images = make((3, 10, 7)), torch.from_numpy(images_of((3, 10, 7), 9))
    together, before = extractor(images), torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(torch.cat([extractor(images[:4]), extractor(images[4:])]), together)
        finally:
            torch.set_num_threads(before)
    assert extractor(images[:0]).shape == (0, *extractor.output_shape)


def test_without_a_compiler_torch_takes_its_place_and_says_so(monkeypatch, caplog):
    with_kernel = make((3, 10, 7))
    monkeypatch.setenv("CXX", "no-such-compiler")
    without, images = make((3, 10, 7)), torch.from_numpy(images_of((3, 10, 7)))
    with caplog.at_level(logging.WARNING):
        slow = without(images)
        without(images)
    assert len(caplog.records) == 1
    assert "no-such-compiler" in caplog.text
    assert "many times slower" in caplog.text
    torch.testing.assert_close(with_kernel(images), slow, atol=1e-3, rtol=0)
    assert without.fingerprint == with_kernel.fingerprint


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch, tmp_path, caplog):
    source = patch_kernel.SOURCE.read_text()
    assert "below[part] - product" in source
    broken = tmp_path / "patches.cpp"
    broken.write_text(source.replace("below[part] - product", "below[part] + product"))
    monkeypatch.setattr(patch_kernel, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extractor = make((1, 9, 9))
    with caplog.at_level(logging.WARNING):
        assert extractor.layer.kernel is None
    assert "differs from torch" in caplog.text


def test_the_kernel_without_matrix_tiles(monkeypatch, tmp_path):
    source = patch_kernel.SOURCE.read_text()
    assert source.count("defined(__AMX_BF16__)") == 1
    plain = tmp_path / "patches.cpp"
    plain.write_text(source.replace("defined(__AMX_BF16__)", "0"))
    monkeypatch.setattr(patch_kernel, "SOURCE", plain)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extractor, images = make((3, 10, 7), grid=3), torch.from_numpy(images_of((3, 10, 7), 5))
    assert extractor.layer.kernel is not None
    torch.testing.assert_close(extractor(images).flatten(2), extractor.layer.without_kernel(images), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "specification",
    [
        "patches(patches=32, size=3, seed=41)",
        "deep_patches(patches=32, seed=41)",
        "map_patches(patches(patches=32, size=3, seed=41), patches=32)",
    ],
)
def test_filters_need_no_data_set(specification, no_data_in_reach):
    extractor = make_extractor(specification, (3, 8, 8))
    assert extractor(torch.from_numpy(images_of((3, 8, 8)))).std() > 0.01


def test_filters_depend_on_shape_and_configuration_only():
    options: dict[str, Any] = {"count": 32, "size": 3, "whitening": 0.1, "source": "dead_leaves", "seed": 0}
    first, again = (make_patch_filters((1, 9, 9), **options) for _ in range(2))
    assert np.array_equal(first.weight, again.weight)
    assert np.abs(first.weight.reshape(32, -1).mean(1)).max() < 1e-6
    others: list[dict[str, Any]] = [{"seed": 1}, {"whitening": 1.0}, {"size": 4}, {"source": "spectrum_noise"}]
    for changes in others:
        other = make_patch_filters((1, 9, 9), **{**options, **changes})
        assert other.weight.shape != first.weight.shape or np.abs(other.weight - first.weight).max() > 1e-3


@pytest.mark.parametrize("source", SOURCES)
def test_whitened_patches_are_white(source):
    filters = make_patch_filters((3, 12, 12), count=512, size=3, whitening=1e-3, source=source, seed=0)
    units = filters.weight.reshape(512, -1) @ np.linalg.pinv(filters.whitening)
    spread = np.linalg.eigvalsh(units.T @ units / 512)[1:]  # the first is the mean's, which patches lack
    assert spread.max() < 8 * np.median(spread)


def test_every_setting_is_in_the_fingerprint():
    changes = [{"patches": 64}, {"size": 4}, {"threshold": 0.5}, {"whitening": 0.2}, {"grid": 1}, {"mirror": False},
               {"assignment": "abs"}, {"source": "spectrum_noise"}, {"seed": 1}]  # fmt: skip
    found = {make((1, 9, 9), **change).fingerprint for change in [{}, *changes]}
    assert len(found) == len(changes) + 1
    assert make((1, 9, 9)).fingerprint == make((1, 9, 9)).fingerprint != make((1, 9, 10)).fingerprint


def test_colour_is_mirrored_and_grey_is_not():
    assert default_config((3, 32, 32)).mirror
    assert not default_config((1, 28, 28)).mirror
    assert make_extractor("patches", (3, 32, 32)).output_shape == (1024, 3, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches": 33}, "patches=33: expected a multiple of 32"),
        ({"patches": 0}, "patches=0: expected an integer ≥ 32"),
        ({"size": 1}, "size=1: expected an integer ≥ 2"),
        ({"size": 20}, "size=20: the images are 3×10×7, take smaller patches"),
        ({"grid": 6}, "grid=6: expected 1 to 5, the positions a side"),
        ({"threshold": "x"}, "threshold='x': expected a number"),
        ({"whitening": None}, "whitening=None: expected a number"),
        ({"threshold": -1}, "threshold=-1: expected"),
        ({"threshold": float("nan")}, "threshold=nan: expected"),
        ({"whitening": 0}, "whitening=0: expected"),
        ({"mirror": 1}, "mirror=1: expected True or False"),
        ({"assignment": "max"}, "assignment='max': expected one of soft"),
        ({"source": "cifar10"}, "source='cifar10': expected one of dead_leaves"),
        ({"colour": 1}, "colour=1: patches has no such setting"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError) as raised:
        make_extractor("patches", (3, 10, 7), **({"patches": 32, "size": 3} | settings))
    assert str(raised.value).startswith(message)


def test_a_patch_too_large_to_whiten():
    with pytest.raises(ConfigError, match="size=32: a patch has 3072 values, expected at most 1280"):
        make_extractor("patches", (3, 32, 32), size=32, grid=1)


def test_an_image_larger_than_the_stack():
    extractor = make((3, 900, 900), size=2, grid=1, mirror=False)
    image = torch.rand(1, 3, 900, 900, generator=torch.Generator().manual_seed(0))
    assert extractor(image).isfinite().all()


def test_bad_images():
    extractor = make((1, 9, 9))
    with pytest.raises(UserError, match="NaN"):
        extractor(torch.full((1, 1, 9, 9), float("nan")))
    with pytest.raises(UserError, match="expected"):
        extractor(torch.zeros(1, 1, 9, 8))


@pytest.mark.parametrize("grid", [4, 13, 40])
def test_photographs_of_ordinary_size(grid):
    """Cells of 300, of 30 and of 3 positions: the kernel takes one at a time, or some, or many whose ends lie anywhere in its blocks."""
    extractor = make((3, 96, 64), size=8, patches=32, grid=grid)
    images = torch.from_numpy(images_of((3, 96, 64), 2))
    assert extractor.layer.kernel is not None
    tolerance = max(1e-3, 5e-2 / extractor.layer._pooling.counts.min())
    torch.testing.assert_close(
        extractor(images).flatten(2), extractor.layer.without_kernel(images), atol=tolerance, rtol=0
    )
