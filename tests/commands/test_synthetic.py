"""``scatterdp synthetic``: the sheet it draws and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import scatterdp.__main__ as entry
from scatterdp.commands.synthetic import SyntheticConfig, run, synthetic
from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic import GENERATORS, synthetic_images
from scatterdp.report.contact_sheet import contact_sheet


def pixels_of(path):
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB"))


@pytest.mark.parametrize("name", GENERATORS)
def test_draws_the_images_of_one_generator(tmp_path, capsys, name):
    out = tmp_path / "sheet.png"
    assert run([f"--generator={name}", "--n=9", "--size=12", "--seed=3", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"sheet: {out}\n"
    expected = synthetic_images(name, 9, (3, 12, 12), seed=3)
    contact_sheet(expected, tmp_path / "expected.png", title=f"{name}, 12×12, seed 3")
    np.testing.assert_array_equal(pixels_of(out), pixels_of(tmp_path / "expected.png"))


def test_all_generators_have_a_labelled_row_each(tmp_path):
    out = tmp_path / "sheet.png"
    synthetic(SyntheticConfig(n=5, size=16, channels=1, out=out))
    images = np.concatenate([synthetic_images(name, 5, (1, 16, 16), seed=0) for name in GENERATORS])
    options = {"title": "synthetic images, 16×16, seed 0", "columns": 5, "labels": list(GENERATORS)}
    contact_sheet(images, tmp_path / "expected.png", **options)
    np.testing.assert_array_equal(pixels_of(out), pixels_of(tmp_path / "expected.png"))


def test_is_a_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["scatterdp", "synthetic", "--generator=photos"])
    assert entry.main() == 2
    assert capsys.readouterr().err.startswith("error: generator='photos': expected all or one of dead_leaves, ")


def test_does_not_replace_a_file(tmp_path):
    out = tmp_path / "sheet.png"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"sheet.png: is there already, give another name or remove it"):
        synthetic(SyntheticConfig(n=1, out=out))
    assert out.read_text() == "mine"


@pytest.mark.parametrize("settings", [{"size": 100_000, "n": 2}, {"size": 8, "n": 10**8}])
def test_a_sheet_has_an_end(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"^n=\d+, size=\d+: that is \d+ pixels, expected at most \d+ a sheet; take"):
        synthetic(SyntheticConfig(out=tmp_path / "sheet.png", **settings))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sheet.jpg", "missing/sheet.png"])
def test_out_must_be_a_png_in_a_folder(tmp_path, name):
    with pytest.raises(ConfigError, match=r"expected a \.png file in a folder that is there"):
        synthetic(SyntheticConfig(n=1, out=tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n=0: expected a whole number ≥ 1"),
        ({"size": 0}, "size=0: expected a whole number ≥ 1"),
        ({"seed": -1}, "seed=-1: expected a whole number ≥ 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(**settings)
