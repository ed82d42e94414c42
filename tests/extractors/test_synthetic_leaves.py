import numpy as np
import pytest

from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic import DeadLeavesConfig, dead_leaves


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


# Released bounds (scatterdp.extractors.reference) rest on these numbers: the default images must never change.
FROZEN = {
    (3, 32, 32): [
        [0.6878832, 0.3072498, 0.6695930, 0.3345145, 0.6720046, 0.0543937, 0.7041567, 0.4752132],
        [0.4272160, 0.2309063, 0.0696649, 0.5164909, 1.0000000, 0.7796066, 0.5661416, 0.5027503],
        [0.3850789, 0.6918119, 0.3905100, 0.2319262, 0.2392233, 0.7055085, 0.2558672, 0.3335094],
    ],
    (1, 28, 28): [
        [0.9194764, 0.5523571, 0.9737188, 0.7688851, 0.9353864, 0.7630758, 1.0000000, 0.5403202],
        [0.1927858, 0.5599735, 0.1708458, 0.4054219, 0.2335396, 0.1897031, 0.2651165, 0.5000104],
        [0.2336123, 0.1698682, 0.6682248, 0.4537676, 0.7925748, 0.2782193, 0.0314934, 0.2759060],
    ],
    (3, 64, 64): [
        [0.6752268, 0.3536144, 0.6623682, 0.3661118, 0.6519216, 0.0537929, 0.7128916, 0.3247817],
        [0.4191502, 0.1880058, 0.0766288, 0.4851632, 0.9914063, 0.7691048, 0.5496442, 0.5084441],
        [0.3873626, 0.6492547, 0.4159371, 0.2172016, 0.2482191, 0.6532526, 0.2449734, 0.5035648],
    ],
}


@pytest.mark.parametrize("shape", FROZEN)
def test_default_dead_leaves_are_frozen(shape):
    images = dead_leaves(3, shape, seed=7)
    pixels = images.reshape(3, -1)[:, :: images[0].size // 8][:, :8]
    np.testing.assert_allclose(pixels, FROZEN[shape], atol=1e-6, rtol=0)


def paint_every_leaf_everywhere(shape, *, seed, index):
    """One image of the default dead leaves, as they were first published: every leaf blended over every pixel."""
    channels, height, width = shape
    generator = np.random.default_rng([seed, index])
    draws = generator.random((200, 8 + channels), np.float32)
    image = np.repeat(generator.random(channels, np.float32), height * width).reshape(shape)
    side = min(height, width)
    margin = 0.5 * side
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5
    x = np.arange(width, dtype=np.float32)[None, :] + 0.5
    radius = side / np.sqrt(256.0 + draws[:, 0] * (4.0 - 256.0))
    stretch = np.exp2(draws[:, 1] - 0.5)
    angle = 2 * np.pi * draws[:, 2]
    centre_y = draws[:, 3] * (height + 2 * margin) - margin
    centre_x = draws[:, 4] * (width + 2 * margin) - margin
    gradient = 0.3 * (draws[:, 6:8] - 0.5)
    cos, sin = np.cos(angle), np.sin(angle)
    for leaf in range(200):
        r, s = radius[leaf], stretch[leaf]
        dy, dx = y - centre_y[leaf], x - centre_x[leaf]
        u = dx * (cos[leaf] / (r * s)) + dy * (sin[leaf] / (r * s))
        v = dy * (cos[leaf] * s / r) - dx * (sin[leaf] * s / r)
        distance = np.maximum(np.abs(u), np.abs(v)) if draws[leaf, 5] < 0.5 else np.sqrt(u * u + v * v)
        cover = np.clip((1 - distance) * r + 0.5, 0, 1)
        shade = gradient[leaf, 0] * u + gradient[leaf, 1] * v
        for channel in range(channels):
            image[channel] += cover * (draws[leaf, 8 + channel] + shade - image[channel])
    image += 0.02 * generator.standard_normal(shape, np.float32)
    return np.clip(image, 0, 1)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 5, 40), (3, 70, 64)])
def test_default_dead_leaves_are_bit_for_bit_the_plain_painting(shape):
    images = dead_leaves(4, shape, seed=11)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image, paint_every_leaf_everywhere(shape, seed=11, index=index))


def painted(**settings):
    return dead_leaves(48, (3, 32, 32), seed=4, config=DeadLeavesConfig(noise=0, **settings))


def test_the_default_config_is_no_config():
    config = DeadLeavesConfig()
    np.testing.assert_array_equal(dead_leaves(2, (3, 9, 9), seed=1), dead_leaves(2, (3, 9, 9), seed=1, config=config))


@pytest.mark.parametrize(
    "settings",
    [
        {"colours": "correlated"},
        {"texture": "noise", "texture_strength": 0.2},
        {"texture": "gratings"},
        {"rectangles": 0.0},
        {"rectangles": 1.0},
        {"exponent": 1.0},
        {"exponent": 2.5},
        {"smallest": 0.2, "largest": 0.2},
        {"leaves": 20},
        {"gradient": 0.0},
        {"edge_softness": 4.0},
        {"supersampling": 2},
    ],
    ids=str,
)
def test_every_setting_changes_the_images_and_keeps_the_contract(settings):
    config = DeadLeavesConfig(**settings)
    many = dead_leaves(70, (3, 32, 24), seed=5, config=config)  # more than one painting block
    assert many.dtype == np.float32
    assert many.min() >= 0
    assert many.max() <= 1
    np.testing.assert_array_equal(many[:3], dead_leaves(3, (3, 32, 24), seed=5, config=config))
    assert np.abs(many - dead_leaves(70, (3, 32, 24), seed=5)).mean() > 0.002


def test_correlated_colours_share_their_brightness():
    flat = painted(colours="correlated").transpose(1, 0, 2, 3).reshape(3, -1)
    assert 0.8 < np.corrcoef(flat)[0, 1] < 0.98
    assert 0.4 < flat.mean() < 0.6
    grey = painted(colours="correlated", chroma_spread=0, base_spread=0)
    np.testing.assert_allclose(grey[:, 0], grey[:, 1], atol=1e-6)


def test_textures_have_the_strength_that_was_asked_for():
    plain = painted(gradient=0.0, colours="correlated", luminance_spread=0.0)
    for texture in ("noise", "gratings"):
        # Texture only: leaves draw their standard deviation uniformly from [0, s], on average over squares s / √3.
        strength = np.std(painted(gradient=0.0, colours="correlated", luminance_spread=0.0, texture=texture) - plain)
        assert strength == pytest.approx(0.08 / 3**0.5, rel=0.2)


def test_sizes_follow_the_exponent():
    def edges(exponent):
        return np.mean(np.abs(np.diff(painted(exponent=exponent, gradient=0.0), axis=3)) > 0.05)

    assert edges(1.0) < 0.8 * edges(3.0) < edges(5.0)


def test_soft_edges_are_soft():
    def steepest(softness):
        return np.quantile(np.abs(np.diff(painted(edge_softness=softness), axis=3)), 0.99)

    assert steepest(6.0) < 0.6 * steepest(1.0)


def test_supersampling_averages_finer_paintings():
    fine = dead_leaves(2, (3, 64, 64), seed=3, config=DeadLeavesConfig(noise=0, gradient=0, edge_softness=2))
    coarse = dead_leaves(2, (3, 32, 32), seed=3, config=DeadLeavesConfig(noise=0, gradient=0, supersampling=2))
    np.testing.assert_allclose(coarse, fine.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rectangles": 1.5}, r"rectangles=1.5: expected a number in \[0, 1\]"),
        ({"smallest": 0.0}, r"smallest=0.0: expected a number in \[0.0001, 0.5\]"),
        ({"smallest": 0.6}, r"smallest=0.6: expected a number in \[0.0001, 0.5\]"),
        ({"largest": 5.0}, r"largest=5.0: expected a number in \[0.0001, 4\]"),
        ({"exponent": float("nan")}, r"exponent=nan: expected a number in \[0, 6\]"),
        ({"leaves": 0}, "leaves=0: expected a whole number in 1 … 100000"),
        ({"leaves": 2.5}, "leaves=2.5: expected a whole number in 1 … 100000"),
        ({"supersampling": 9}, "supersampling=9: expected a whole number in 1 … 8"),
        ({"edge_softness": 0.0}, r"edge_softness=0.0: expected a number in \[0.01, 100\]"),
        ({"noise": -0.1}, r"noise=-0.1: expected a number in \[0, 2\]"),
        ({"colours": "loud"}, "colours='loud': expected one of uniform, correlated"),
        ({"texture": "fur"}, "texture='fur': expected one of off, noise, gratings"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DeadLeavesConfig(**settings)
