import time

import numpy as np
import pytest

from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic import dead_leaves


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 5, 40)])
def test_shape_type_and_range(shape):
    images = dead_leaves(3, shape, seed=0)
    assert images.shape == (3, *shape)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.1
    assert dead_leaves(0, shape, seed=0).shape == (0, *shape)


def test_image_i_depends_on_the_seed_and_i_only():
    many = dead_leaves(130, (1, 32, 32), seed=5)  # more than one painting block
    np.testing.assert_array_equal(many, dead_leaves(130, (1, 32, 32), seed=5))
    np.testing.assert_array_equal(many[:70], dead_leaves(70, (1, 32, 32), seed=5))
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(many[0], dead_leaves(1, (1, 32, 32), seed=6)[0])


def test_looks_like_leaves_piecewise_smooth_with_edges():
    images = dead_leaves(64, (1, 64, 64), seed=1)[:, 0]
    steps = np.abs(np.diff(images, axis=2))
    # Heavy-tailed differences: mostly within a leaf (shade and noise), some across an edge. A Gaussian has kurtosis 3.
    assert np.median(steps) < 0.05
    assert np.mean(steps > 0.2) > 0.03
    differences = np.diff(images, axis=2)
    assert np.mean(differences**4) / np.mean(differences**2) ** 2 > 6
    # Neighbours agree, far pixels do not: the correlation falls with distance.
    centred = images - images.mean()
    correlation = [np.mean(centred[:, :, :-gap] * centred[:, :, gap:]) / centred.var() for gap in (1, 4, 16)]
    assert correlation[0] > 0.8
    assert correlation[0] > correlation[1] > correlation[2]
    assert correlation[2] < 0.4


def test_amplitude_falls_with_frequency_as_in_natural_images():
    images = dead_leaves(64, (1, 64, 64), seed=2)[:, 0]
    power = np.mean(np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2, axis=0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    band = (frequency > 1 / 32) & (frequency < 1 / 4)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -4 < slope < -1.5  # about f⁻² to f⁻³; white noise has 0


def test_colours_are_used_in_full():
    images = dead_leaves(32, (3, 32, 32), seed=3)
    assert 0.4 < images.mean() < 0.6
    assert np.corrcoef(images.transpose(1, 0, 2, 3).reshape(3, -1))[0, 1] < 0.5


def test_256_small_images_take_seconds_at_most():
    start = time.process_time()
    dead_leaves(256, (3, 32, 32), seed=0)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, (1, 8, 8), 0), "num_images=-1: expected an integer ≥ 0"),
        ((1, (1, 8, 8), -2), "seed=-2: expected an integer ≥ 0"),
        ((1, (1, 0, 8), 0), r"image_shape=\(1, 0, 8\): expected \(C, H, W\)"),
        ((1, (8, 8), 0), r"image_shape=\(8, 8\): expected \(C, H, W\)"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    count, shape, seed = arguments
    with pytest.raises(ConfigError, match=message):
        dead_leaves(count, shape, seed=seed)
