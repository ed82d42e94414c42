import logging
import os
import stat

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

from scatterdp.extractors import make_extractor, scattering_kernel
from scatterdp.extractors.compilation import KernelUnavailableError
from scatterdp.extractors.scattering_kernel import ScatteringKernel

CONFIGURATIONS = [
    # J, L, max_order, (H, W): square and not, odd, 5-smooth and other padded sizes, J = 1 (no second order)
    (2, 8, 2, (28, 28)),
    (2, 8, 2, (32, 32)),
    (2, 8, 1, (32, 32)),
    (1, 6, 2, (9, 14)),
    (3, 4, 2, (33, 64)),
    (2, 6, 2, (39, 17)),
    (4, 4, 2, (40, 16)),
    (2, 5, 2, (8, 60)),
]


@pytest.mark.parametrize(("J", "L", "max_order", "shape"), CONFIGURATIONS)
def test_equals_kymatio(J, L, max_order, shape):
    scattering = ScatteringTorch2D(J, shape, L=L, max_order=max_order)
    kernel = ScatteringKernel(scattering)
    generator = torch.Generator().manual_seed(J * 100 + shape[0])
    planes = torch.rand(19, *shape, generator=generator) * 4 - 2  # 19: a full group of lanes and a part of one
    planes[3] = 0.7  # constant
    planes[4] = 0.0
    planes[4, shape[0] // 2, 1] = 1.0  # an impulse
    torch.testing.assert_close(kernel(planes), scattering(planes), atol=1e-5, rtol=0)


@given(count=st.integers(0, 40), threads=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_planes_are_independent_whatever_the_batch_and_threads(kernel_8, count, threads, seed):
    planes = torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(seed))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = kernel_8(planes)
    finally:
        torch.set_num_threads(before)
    assert together.shape == (count, 81, 2, 2)
    for i in range(count):
        assert torch.equal(together[i], kernel_8(planes[i : i + 1])[0])


@pytest.fixture(scope="module")
def kernel_8():
    return ScatteringKernel(ScatteringTorch2D(2, (8, 8)))


def test_the_process_keeps_its_small_numbers(kernel_8):
    kernel_8(torch.rand(2, 8, 8))
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_without_a_compiler_kymatio_takes_its_place_and_says_so_once(monkeypatch, caplog):
    with_kernel = make_extractor("scatternet", (3, 12, 12))
    monkeypatch.setenv("CXX", "no-such-compiler")
    without = make_extractor("scatternet", (3, 12, 12))
    images = torch.rand(5, 3, 12, 12)
    with caplog.at_level(logging.WARNING):
        slow = without(images)
        without(images)
    assert [record.message for record in caplog.records if "no-such-compiler" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    assert "many times slower" in caplog.records[0].message
    torch.testing.assert_close(with_kernel(images), slow, atol=1e-5, rtol=0)
    assert with_kernel.fingerprint == without.fingerprint


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch, tmp_path):
    broken = tmp_path / "scattering.cpp"
    source = scattering_kernel.SOURCE.read_text()
    assert "a[0] = s0 + s1" in source
    broken.write_text(source.replace("a[0] = s0 + s1", "a[0] = s0 - s1"))
    monkeypatch.setattr(scattering_kernel, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(KernelUnavailableError, match="differs from Kymatio by"):
        ScatteringKernel(ScatteringTorch2D(2, (8, 8)))


def test_a_failing_compiler_is_reported_with_its_first_error(monkeypatch, tmp_path):
    broken = tmp_path / "scattering.cpp"
    broken.write_text("this is not C++")
    monkeypatch.setattr(scattering_kernel, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(KernelUnavailableError, match=r"failed \(.*error"):
        ScatteringKernel(ScatteringTorch2D(2, (8, 8)))
    assert not list(tmp_path.rglob("*.so"))


def test_the_library_is_compiled_once_for_a_shape_into_a_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scattering = ScatteringTorch2D(1, (6, 6), L=4)
    ScatteringKernel(scattering)
    folder = tmp_path / "scatterdp"
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    written = library.stat().st_mtime_ns
    ScatteringKernel(scattering)
    assert list(folder.iterdir()) == [library]
    assert library.stat().st_mtime_ns == written
    ScatteringKernel(ScatteringTorch2D(1, (6, 8), L=4))
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_still_gets_a_kernel(monkeypatch, tmp_path):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ScatteringKernel(ScatteringTorch2D(1, (6, 6), L=4))
