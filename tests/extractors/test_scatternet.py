"""ScatterNet against Kymatio: frozen float64 results of its NumPy frontend, the same live, and closed forms."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kymatio.scattering2d.frontend.numpy_frontend import ScatteringNumPy2D
from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import EXTRACTORS, make_extractor, scatternet
from scatterdp.extractors.scatternet import IMAGENET_MEAN, IMAGENET_STD, ScatterNet, ScatterNetConfig, default_config
from scatterdp.extractors.synthetic import dead_leaves

DATA = Path(__file__).parents[1] / "data"
ROOT = Path(__file__).parents[2]


def reference(images: np.ndarray, config: ScatterNetConfig) -> np.ndarray:
    """Kymatio's NumPy frontend in float64 on (B, C, H, W); the frozen files hold its result, rounded to float32."""
    x = images.astype(np.float64)
    if config.normalize == "imagenet":
        x = (x - np.reshape(IMAGENET_MEAN, (-1, 1, 1))) / np.reshape(IMAGENET_STD, (-1, 1, 1))
    transform = ScatteringNumPy2D(config.J, x.shape[2:], L=config.L, max_order=config.max_order)
    coefficients = transform(x)
    return coefficients.reshape(len(x), -1, *coefficients.shape[-2:])


def made_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(dead_leaves(count, shape, seed=seed))


@pytest.mark.parametrize(
    ("name", "input_shape", "output_shape"),
    [("mnist", (1, 28, 28), (81, 7, 7)), ("cifar10", (3, 32, 32), (243, 8, 8))],
)
def test_published_shapes_equal_the_frozen_float64_reference(name, input_shape, output_shape):
    with np.load(DATA / f"scatternet_{name}.npz") as data:
        images, expected = data["images"], data["features"]
    assert images.dtype == np.uint8
    extractor = make_extractor("scatternet", input_shape)
    assert extractor.output_shape == output_shape
    features = extractor(torch.from_numpy(to_channels_first_float(images)))
    assert features.dtype == torch.float32
    assert features.shape == (len(images), *output_shape)
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=1e-5)
    # The frozen numbers are not the shape's accident: another picture's features are far away.
    assert np.abs(features.numpy()[::-1] - expected).max() > 0.1
    np.testing.assert_allclose(
        reference(to_channels_first_float(images), default_config(input_shape)), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((1, 8, 8), ScatterNetConfig(J=1, L=4)),
        ((1, 8, 8), ScatterNetConfig(J=3, L=3)),
        ((1, 4, 9), ScatterNetConfig()),
        ((2, 17, 23), ScatterNetConfig(J=2, L=6)),
        ((3, 12, 20), ScatterNetConfig(normalize="imagenet")),
        ((3, 12, 20), ScatterNetConfig()),
        ((3, 24, 16), ScatterNetConfig(J=3, L=2, max_order=1, normalize="imagenet")),
    ],
    ids=str,
)
def test_other_shapes_and_configurations_equal_kymatio(shape, config):
    images = made_images(3, shape)
    extractor = ScatterNet(config, shape)
    features = extractor(images)
    assert features.shape[1:] == extractor.output_shape
    np.testing.assert_allclose(features.numpy(), reference(images.numpy(), config), rtol=0, atol=1e-5)


def test_equals_kymatios_torch_frontend():
    images = made_images(2, (1, 28, 28))
    expected = ScatteringTorch2D(2, (28, 28))(images)[:, 0]
    assert (make_extractor("scatternet", (1, 28, 28))(images) - expected).abs().max() < 1e-5


def test_a_constant_image_has_its_value_at_order_zero_and_nothing_above():
    extractor = ScatterNet(ScatterNetConfig(), (2, 16, 16))
    images = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    features = extractor(images)[0]
    orders = torch.tensor([channel.order for channel in extractor.channels])
    assert orders.tolist() == ([0] + [1] * 16 + [2] * 64) * 2
    torch.testing.assert_close(features[orders == 0][0], torch.full((4, 4), 0.25), rtol=1e-4, atol=0)
    torch.testing.assert_close(features[orders == 0][1], torch.full((4, 4), 0.75), rtol=1e-4, atol=0)
    assert features[orders > 0].abs().max() < 1e-5


@pytest.mark.parametrize("config", [ScatterNetConfig(J=3, L=4), ScatterNetConfig(J=2, L=5, max_order=1)], ids=str)
def test_channels_are_kymatios(config):
    kymatio = ScatteringTorch2D(config.J, (16, 16), L=config.L, max_order=config.max_order, out_type="list")
    paths = kymatio(torch.zeros(1, 16, 16))
    channels = ScatterNet(config, (2, 16, 16)).channels
    assert len(channels) == 2 * len(paths)
    assert [channel.colour for channel in channels] == [0] * len(paths) + [1] * len(paths)
    for channel, path in zip(channels, [*paths, *paths], strict=True):
        assert (channel.order, channel.scales, channel.orientations) == (len(path["j"]), path["j"], path["theta"])
    assert channels[1].name == "colour 0, j=0 θ=0"
    # The angles are those of the filters: a wave along one excites its channel most.
    for channel in channels[1 : 1 + config.L]:
        row, column = np.mgrid[:16, :16]
        phase = 3 * np.pi / 4 * (row * np.cos(channel.angles[0]) + column * np.sin(channel.angles[0]))
        wave = torch.from_numpy(np.cos(phase)).float()[None]
        answers = torch.stack([path["coef"].mean() for path in kymatio(wave)[1 : 1 + config.L]])
        assert int(answers.argmax()) == channel.orientations[0]


@pytest.mark.parametrize("J", [1, 2, 3, 4])
@pytest.mark.parametrize(("L", "max_order"), [(4, 2), (6, 2), (8, 2), (8, 1)])
def test_scales_and_orientations_equal_the_frozen_float64_references(J, L, max_order):
    with np.load(DATA / "scattering_references.npz") as data:
        images, expected = (data[f"J{J}_L{L}_order{max_order}_{name}"] for name in ("images", "features"))
    extractor = ScatterNet(ScatterNetConfig(J=J, L=L, max_order=max_order), (1, *images.shape[1:]))
    for batch in (images, images[1:]):
        features = extractor(torch.from_numpy(to_channels_first_float(batch)))
        np.testing.assert_allclose(features.numpy(), expected[-len(batch) :], rtol=0, atol=1e-5)


@given(data=st.data(), J=st.integers(1, 3), L=st.sampled_from([3, 4, 8]), max_order=st.integers(1, 2))
@settings(max_examples=12, deadline=None)
def test_any_shape_equals_kymatio(data, J, L, max_order):
    height, width = data.draw(st.tuples(*[st.integers(2**J, 2**J + 13)] * 2))
    images = data.draw(
        hnp.arrays(np.float32, (2, 1, height, width), elements=st.floats(0, 1, width=32), fill=st.just(np.float32(0.5)))
    )
    kymatio = ScatteringNumPy2D(J, (height, width), L=L, max_order=max_order)
    ours = ScatterNet(ScatterNetConfig(J=J, L=L, max_order=max_order), (1, height, width))(torch.from_numpy(images))
    np.testing.assert_allclose(ours.numpy(), kymatio(images.astype(np.float64))[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("compiler", ["c++", "no-such-compiler"])
def test_padded_images_give_the_features_of_the_padding_that_is_usual(monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    images = made_images(3, (3, 24, 20))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    usual = make_extractor("scatternet", (3, 24, 20))(images)
    extractor = make_extractor("scatternet", (3, 32, 28), pre_pad=True)
    assert extractor.output_shape == (243, 6, 5)
    torch.testing.assert_close(extractor(padded), usual, atol=1e-5, rtol=0)
    assert (extractor(padded.flip(3)) - usual).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(1, 30, 32), (1, 32, 30), (1, 8, 32)])
def test_padded_images_have_sides_of_whole_steps(shape):
    with pytest.raises(ConfigError, match=r"^pre_pad=True: expected images whose sides are multiples of 2\^J = 4"):
        make_extractor("scatternet", shape, pre_pad=True)


def test_is_homogeneous_of_degree_one_without_normalisation():
    extractor = make_extractor("scatternet", (1, 16, 16))
    images = made_images(2, (1, 16, 16))
    torch.testing.assert_close(extractor(images / 4), extractor(images) / 4, rtol=1e-4, atol=1e-6)


def test_rgb_is_normalised_by_imagenets_constants_and_grey_is_not():
    assert default_config((3, 32, 32)) == ScatterNetConfig(normalize="imagenet")
    assert default_config((1, 28, 28)) == ScatterNetConfig(normalize="none")
    mean_colour = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert make_extractor("scatternet", (3, 8, 8))(mean_colour).abs().max() < 1e-5
    assert make_extractor("scatternet", (3, 8, 8), normalize="none")(mean_colour).abs().max() > 0.4


def test_is_deterministic_and_each_row_depends_on_its_image_alone():
    extractor = make_extractor("scatternet", (3, 12, 12))
    images = made_images(5, (3, 12, 12))
    together = extractor(images)
    assert torch.equal(together, extractor(images))
    alone = torch.cat([extractor(images[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert torch.equal(extractor(images.flip(0)).flip(0), together)


def test_features_carry_no_gradient_but_a_head_can_train_on_them():
    features = make_extractor("scatternet", (1, 8, 8))(made_images(2, (1, 8, 8)).requires_grad_())
    assert not features.requires_grad
    head = torch.nn.Linear(features[0].numel(), 2)
    head(features.flatten(1)).sum().backward()
    assert head.weight.grad is not None


def test_any_floating_type_and_memory_layout_gives_the_same_float32():
    extractor = make_extractor("scatternet", (3, 8, 8))
    images = made_images(2, (3, 8, 8))
    expected = extractor(images)
    for other in (images.double(), images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(extractor(other), expected)
    assert extractor(images[:0]).shape == (0, 243, 2, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    images = made_images(4, (3, 32, 32))
    expected = make_extractor("scatternet", (3, 32, 32))(images)
    on_gpu = make_extractor("scatternet", (3, 32, 32)).to("cuda")(images)
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu() - expected).abs().max() < 1e-5


def test_to_moves_in_place_and_returns_the_extractor():
    extractor = make_extractor("scatternet", (1, 8, 8))
    assert extractor.to("cpu") is extractor


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 9), r"images of shape \(2, 1, 8, 9\): expected \(B, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"images of shape \(1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "images of type torch.uint8: expected floating point"),
        (torch.full((2, 1, 8, 8), 255.0), r"values from 255 to 255, expected \[0, 1\]"),
        (torch.full((2, 1, 8, 8), -0.5), r"values from -0.5 to -0.5, expected \[0, 1\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        make_extractor("scatternet", (1, 8, 8))(images)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_image(value):
    images = made_images(4, (1, 8, 8))
    images[2, 0, 3, 3] = value
    with pytest.raises(UserError, match="NaN or infinity in image 2 of the batch"):
        make_extractor("scatternet", (1, 8, 8))(images)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"J": 0}, "J=0: expected an integer from 1 to 12"),
        ({"J": 2.0}, "J=2.0: expected an integer from 1 to 12"),
        ({"L": True}, "L=True: expected an integer from 1 to 64"),
        ({"L": -8}, "L=-8: expected an integer from 1 to 64"),
        ({"max_order": 3}, "max_order=3: expected 1 or 2"),
        ({"max_order": 0}, "max_order=0: expected 1 or 2"),
        ({"normalize": "cifar"}, "normalize='cifar': expected 'imagenet'"),
        ({"normalize": "imagenet"}, "normalize='imagenet': expected RGB images .* these have 1"),
        ({"J": 4}, r"J=4: expected images of at least 2\^J = 16 pixels a side, these have 8×8; take a smaller J"),
        ({"scale": 2}, "scale=2: scatternet has no such setting, expected one of J, L, max_order, normalize"),
    ],
)
def test_configurations_out_of_range_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_extractor("scatternet", (1, 8, 8), **config)


def test_an_unknown_extractor_is_refused():
    with pytest.raises(ConfigError, match=r"extractor='wavelets': expected one of .*scatternet"):
        make_extractor("wavelets", (1, 8, 8))


def test_the_fingerprint_changes_with_all_that_changes_the_numbers_and_with_nothing_else(monkeypatch):
    shape = (3, 16, 16)
    base = make_extractor("scatternet", shape)
    assert len(base.fingerprint) == 64
    assert base.fingerprint == make_extractor("scatternet", shape).to("cpu").fingerprint
    others = [
        make_extractor("scatternet", shape, J=1),
        make_extractor("scatternet", shape, L=4),
        make_extractor("scatternet", shape, max_order=1),
        make_extractor("scatternet", shape, normalize="none"),
        make_extractor("scatternet", (3, 16, 20)),
    ]
    monkeypatch.setattr(scatternet, "IMAGENET_MEAN", (0.5, 0.5, 0.5))
    others.append(make_extractor("scatternet", shape))
    monkeypatch.undo()
    fingerprints = {other.fingerprint for other in others}
    monkeypatch.setattr(scatternet, "version", lambda name: "99.0")
    fingerprints.add(make_extractor("scatternet", shape).fingerprint)
    assert len(fingerprints | {base.fingerprint}) == 8


def test_importing_the_package_imports_no_extractors_library():
    assert "scatternet" in EXTRACTORS
    assert importlib.util.find_spec("kymatio") is not None
    code = "import scatterdp.extractors, sys; sys.exit(any(name in sys.modules for name in ('kymatio', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("J", "L", "shape"), [(2, 8, (3, 32, 32)), (2, 8, (1, 28, 28)), (3, 6, (1, 32, 40)), (2, 5, (1, 24, 24))]
)
def test_mirror_folding_is_the_projection_written_out(J, L, shape):
    """Against loops over colours, paths and columns; Kymatio's angle of orientation θ is (int(L - L/2 - 1) - θ)·π/L."""
    plain, folded = (make_extractor("scatternet", shape, J=J, L=L, mirror=mirror) for mirror in (False, True))
    images = torch.from_numpy(dead_leaves(3, shape, seed=5))
    x, found = plain(images).numpy(), folded(images).numpy()
    paths: list[tuple[tuple[int, int], ...]] = [()]
    paths += [((j, t),) for j in range(J) for t in range(L)]
    paths += [((j1, t1), (j2, t2)) for j1 in range(J) for t1 in range(L) for j2 in range(j1 + 1, J) for t2 in range(L)]
    width = x.shape[3]
    assert found.shape == (*x.shape[:3], width // 2 + 1) == (3, *folded.output_shape)
    for colour in range(shape[0]):
        for k, path in enumerate(paths):
            mirrored = paths.index(tuple((j, (2 * int(L - L / 2 - 1) - t) % L) for j, t in path))
            for i in range(width // 2 + 1):
                one = x[:, colour * len(paths) + k, :, i]
                other = x[:, colour * len(paths) + mirrored, :, (width - i) % width]
                expected = one if i == 0 else (one + other) * (0.5 if 2 * i == width else 0.5**0.5)
                np.testing.assert_allclose(found[:, colour * len(paths) + k, :, i], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32)])
def test_mirror_folding_is_nearly_blind_to_mirroring(shape):
    plain, folded = (make_extractor("scatternet", shape, mirror=mirror) for mirror in (False, True))
    images = torch.from_numpy(dead_leaves(16, shape, seed=6))

    def change(extractor, first_column):
        x, y = (extractor(batch)[..., first_column:] for batch in (images, images.flip(-1)))
        return float((x - y).norm() / x.norm())

    assert change(folded, 1) < 0.1
    assert change(plain, 0) > 0.4


def test_mirror_folding_has_its_own_fingerprint():
    plain, folded = (make_extractor("scatternet", (1, 28, 28), mirror=mirror) for mirror in (False, True))
    assert plain.fingerprint != folded.fingerprint
