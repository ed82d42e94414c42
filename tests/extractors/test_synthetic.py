"""What all generators of synthetic images promise, and the statistics that each is for."""

import numpy as np
import pytest
import torch

from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic import (
    GENERATORS,
    dead_leaves,
    random_network,
    spectrum_noise,
    synthetic_images,
    wavelet_marginals,
)
from scatterdp.extractors.synthetic.spectrum import power_law


@pytest.mark.parametrize("name", GENERATORS)
class TestEveryGenerator:
    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 64), (2, 5, 40), (1, 1, 1), (4, 3, 2)])
    def test_shape_type_and_range(self, name, shape):
        images = GENERATORS[name](9, shape, seed=0)
        assert images.shape == (9, *shape)
        assert images.dtype == np.float32
        assert np.isfinite(images).all()
        assert images.min() >= 0
        assert images.max() <= 1
        assert GENERATORS[name](0, shape, seed=0).shape == (0, *shape)

    def test_large_images(self, name):
        images = GENERATORS[name](1, (3, 224, 224), seed=0)
        assert images.shape == (1, 3, 224, 224)
        assert images.std() > 0.05

    def test_image_i_depends_on_the_seed_and_i_only(self, name):
        make = GENERATORS[name]
        many = make(130, (1, 32, 32), seed=5)  # more than one block
        np.testing.assert_array_equal(many, make(130, (1, 32, 32), seed=5))
        for count in (1, 70):
            np.testing.assert_array_equal(many[:count], make(count, (1, 32, 32), seed=5))
        assert len(np.unique(many.reshape(130, -1), axis=0)) == 130
        assert np.abs(many - make(130, (1, 32, 32), seed=6)).mean((1, 2, 3)).min() > 0.01

    def test_contrast_is_that_of_photographs(self, name):
        images = GENERATORS[name](64, (3, 32, 32), seed=1)
        assert 0.4 < images.mean() < 0.6
        assert 0.1 < images.std((1, 2, 3)).mean() < 0.35
        assert np.mean((images == 0) | (images == 1)) < 0.06

    def test_neighbouring_pixels_agree(self, name):
        images = GENERATORS[name](64, (1, 32, 32), seed=2)
        centred = images - images.mean((2, 3), keepdims=True)
        near, far = ((centred[..., :-gap] * centred[..., gap:]).mean() / centred.var() for gap in (1, 12))
        assert near > 0.5
        assert abs(far) < near / 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((-1, (1, 8, 8), 0), "num_images=-1: expected an integer ≥ 0"),
            ((1, (1, 8, 8), -2), "seed=-2: expected an integer ≥ 0"),
            ((1, (1, 0, 8), 0), r"image_shape=\(1, 0, 8\): expected \(C, H, W\), each ≥ 1"),
            ((1, (8, 8), 0), r"image_shape=\(8, 8\): expected \(C, H, W\), each ≥ 1"),
        ],
    )
    def test_arguments_out_of_range_are_refused(self, name, arguments, message):
        count, shape, seed = arguments
        with pytest.raises(ConfigError, match=message):
            GENERATORS[name](count, shape, seed=seed)


def test_generators_by_name():
    np.testing.assert_array_equal(
        synthetic_images("dead_leaves", 2, (1, 8, 8), seed=3), dead_leaves(2, (1, 8, 8), seed=3)
    )
    with pytest.raises(ConfigError, match="generator='photos': expected one of dead_leaves, spectrum_noise, "):
        synthetic_images("photos", 1, (1, 8, 8), seed=0)


def spectral_slope(images):
    """Slope of log amplitude against log frequency, of ``(n, 1, H, H)``."""
    side = images.shape[-1]
    images = images[:, 0] - images[:, 0].mean((1, 2), keepdims=True)
    power = np.mean(np.abs(np.fft.fft2(images)) ** 2, axis=0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    band = (frequency > 1 / side) & (frequency < 1 / 2)
    return np.polyfit(np.log(frequency[band]), np.log(power[band]) / 2, 1)[0]


def kurtosis(values):
    return np.mean(values**4) / np.mean(values**2) ** 2


def channel_correlation(images):
    """Mean over images of the correlation of the first two channels."""
    return np.mean([np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1] for image in images])


class TestSpectrumNoise:
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
    def test_amplitude_falls_as_asked(self, alpha):
        images = spectrum_noise(64, (1, 64, 64), seed=0, alpha=(alpha, alpha))
        assert spectral_slope(images) == pytest.approx(-alpha, abs=0.08)

    def test_alpha_varies_over_images(self):
        slopes = [spectral_slope(image[None]) for image in spectrum_noise(40, (1, 64, 64), seed=0, alpha=(0.5, 2.0))]
        assert min(slopes) < -1.7
        assert max(slopes) > -0.8

    def test_values_are_gaussian(self):
        images = spectrum_noise(64, (1, 64, 64), seed=1, alpha=(0.8, 0.8))
        centred = np.diff(images[(images.min((1, 2, 3)) > 0) & (images.max((1, 2, 3)) < 1)], axis=3)
        standardised = centred / centred.std((1, 2, 3), keepdims=True)
        assert kurtosis(standardised) == pytest.approx(3, abs=0.2)

    def test_channels_are_correlated_as_asked(self):
        assert channel_correlation(spectrum_noise(64, (3, 32, 32), seed=2)) > 0.8
        assert channel_correlation(spectrum_noise(64, (3, 32, 32), seed=2, chroma=1.0)) < 0.7
        grey = spectrum_noise(8, (3, 32, 32), seed=2, chroma=0.0)
        assert channel_correlation(grey) > 0.98  # but for what is cut off at 0 and 1

    @pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 15, 9), (2, 2, 7, 12), (2, 1, 1, 5)])
    def test_power_law_fields_have_variance_one(self, shape):
        white = np.random.default_rng(0).standard_normal((4000, *shape[1:]), np.float32)
        fields = power_law(white, np.full(4000, 1.0, np.float32))
        assert fields.dtype == np.float32
        assert np.mean(fields**2) == pytest.approx(1, rel=0.06)
        np.testing.assert_allclose(fields.mean((2, 3)), 0, atol=1e-5)


class TestWaveletMarginals:
    @staticmethod
    def band_kurtosis(images):
        """Mean kurtosis of second differences along x, image by image, of images that nothing was cut off."""
        whole = images[(images.min((1, 2, 3)) > 0) & (images.max((1, 2, 3)) < 1)]
        assert len(whole) > 5
        return np.mean([kurtosis(np.diff(image, n=2, axis=2)) for image in whole])

    def test_coefficients_have_heavy_tails_unless_gaussian(self):
        heavy, gaussian = (
            self.band_kurtosis(wavelet_marginals(96, (1, 64, 64), seed=0, tail=(tail, tail))) for tail in (3.5, 1.0)
        )
        assert gaussian == pytest.approx(3, abs=0.4)
        assert heavy > 5

    def test_amplitude_falls_faster_with_alpha(self):
        shallow, steep = (
            spectral_slope(wavelet_marginals(64, (1, 64, 64), seed=1, alpha=(alpha, alpha))) for alpha in (0.8, 1.8)
        )
        assert shallow - steep == pytest.approx(1, abs=0.35)

    def test_images_have_orientations(self):
        images = wavelet_marginals(64, (1, 32, 32), seed=2)
        across, down = (np.mean(np.diff(images, axis=axis) ** 2, axis=(1, 2, 3)) for axis in (3, 2))
        noise = spectrum_noise(64, (1, 32, 32), seed=2)
        across_noise, down_noise = (np.mean(np.diff(noise, axis=axis) ** 2, axis=(1, 2, 3)) for axis in (3, 2))
        assert np.std(np.log(across / down)) > 2 * np.std(np.log(across_noise / down_noise))

    def test_channels_are_correlated(self):
        assert channel_correlation(wavelet_marginals(64, (3, 32, 32), seed=3)) > 0.7
        assert channel_correlation(wavelet_marginals(16, (3, 32, 32), seed=3, chroma=0.0)) > 0.95


class TestRandomNetwork:
    def test_every_image_has_a_network_of_its_own(self):
        """Spectra of images of one network would be alike; these differ by more than chance."""
        slopes = [spectral_slope(image[None]) for image in random_network(32, (1, 32, 32), seed=0, noise=0.3)]
        assert np.std(slopes) > 0.1

    def test_without_noise_images_are_smooth(self):
        def roughness(noise):
            images = random_network(16, (1, 32, 32), seed=1, noise=noise)
            return np.mean(np.diff(images, axis=3) ** 2) / images.var((2, 3)).mean()

        assert roughness(0.0) < 0.5 * roughness(1.0)

    def test_no_frame(self):
        """The border is no brighter or darker than the inside, as it would be with zeros around it."""
        images = random_network(64, (1, 32, 32), seed=2)
        images = images - images.mean((2, 3), keepdims=True)
        border = np.concatenate([images[:, 0, 0], images[:, 0, -1], images[:, 0, :, 0], images[:, 0, :, -1]], axis=1)
        assert border.std() == pytest.approx(images.std(), rel=0.25)

    def test_the_number_of_threads_is_left_alone_and_changes_nothing(self, monkeypatch):
        one = random_network(3, (3, 32, 32), seed=4)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        asked = []
        monkeypatch.setattr(torch, "set_num_threads", asked.append)
        np.testing.assert_array_equal(one, random_network(3, (3, 32, 32), seed=4))
        assert asked == [1, 2]

    def test_channels_are_correlated(self):
        assert channel_correlation(random_network(64, (3, 32, 32), seed=3)) > 0.8


@pytest.mark.parametrize(
    ("generator", "options", "message"),
    [
        (spectrum_noise, {"alpha": (2.0, 1.0)}, r"alpha=\(2.0, 1.0\): expected \(low, high\) with 0 ≤ low ≤ high ≤ 4"),
        (spectrum_noise, {"alpha": (0.0, 5.0)}, r"alpha=\(0.0, 5.0\): expected \(low, high\)"),
        (spectrum_noise, {"chroma": 1.5}, r"chroma=1.5: expected a number in \[0, 1\]"),
        (wavelet_marginals, {"tail": (0.5, 2.0)}, r"tail=\(0.5, 2.0\): expected \(low, high\) with 1 ≤ low ≤ high ≤ 8"),
        (wavelet_marginals, {"alpha": (-1.0, 2.0)}, r"alpha=\(-1.0, 2.0\): expected \(low, high\)"),
        (wavelet_marginals, {"chroma": float("nan")}, r"chroma=nan: expected a number in \[0, 1\]"),
        (random_network, {"width": 1}, "width=1: expected a whole number in 2 … 256"),
        (random_network, {"noise": -1.0}, r"noise=-1.0: expected a number in \[0, 10\]"),
        (random_network, {"chroma": -1.0}, r"chroma=-1.0: expected a number in \[0, 1\]"),
    ],
)
def test_options_out_of_range_are_refused(generator, options, message):
    with pytest.raises(ConfigError, match=message):
        generator(1, (3, 8, 8), seed=0, **options)
