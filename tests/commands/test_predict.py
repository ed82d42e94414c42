"""``scatterdp predict``: a line a row, as the classifier says it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scatterdp.commands.predict import run
from scatterdp.estimators import DPClassifier
from scatterdp.exits import exit_code
from scatterdp.tables import table


def lines_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def told(capsys):
    """What the command says of flags that do not do."""

    def tell(*flags: str) -> str:
        assert exit_code(lambda: run(list(flags))) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.removeprefix("error: ").rstrip("\n")

    return tell


def test_as_a_process(features_run, own_files, tmp_path):
    out = tmp_path / "classes.csv"
    done = subprocess.run(
        [sys.executable, "-m", "scatterdp", "predict", f"--model={features_run}", f"--input={own_files / 'x_test.npy'}", f"--out={out}"],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"360 predictions: {out}\n"
    assert done.stderr == ""
    header, *lines = lines_of(out)
    assert header == ["row", "class", "probability"]
    model = DPClassifier.load(features_run / "model.safetensors")
    x = np.load(own_files / "x_test.npy")
    assert [line[0] for line in lines] == [str(number) for number in range(360)]
    assert [line[1] for line in lines] == list(model.predict(x))
    np.testing.assert_allclose([float(line[2]) for line in lines], model.predict_proba(x).max(1), rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["classes.csv"]


def test_all_probabilities_in_blocks(features_run, own_files, tmp_path, monkeypatch):
    monkeypatch.setattr(table.row_blocks, "__kwdefaults__", {"block_bytes": 64 * 2 * 50})
    out = tmp_path / "classes.csv"
    flags = [f"--model={features_run / 'model.safetensors'}", f"--input={own_files / 'x_test.npy'}"]
    assert run([*flags, f"--out={out}", "--all_probabilities"]) == 0
    model = DPClassifier.load(features_run / "model.safetensors")
    header, *lines = lines_of(out)
    assert header == ["row", "class", "probability", *(f"probability of {name}" for name in model.classes_)]
    expected = model.predict_proba(np.load(own_files / "x_test.npy"))
    np.testing.assert_allclose(np.array(lines)[:, 3:].astype(float), expected, rtol=1e-5, atol=1e-6)
    assert [line[1] for line in lines] == [str(name) for name in model.classes_[expected.argmax(1)]]


def test_other_files_give_the_same(features_run, own_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.load(own_files / "x_test.npy")[:20]
    np.savez("x.npz", x=x, other=x)
    with h5py.File("x.h5", "w") as file:
        file["x"] = x
    columns = [*(f"p{number}" for number in range(64)), "kind"]
    rows = [",".join([*map(str, row), "unknown"]) for row in x.tolist()]
    Path("x.csv").write_text("\n".join([",".join(columns), *rows]))
    for number, flags in enumerate((["--input=x.npz:x"], ["--input=x.h5"], ["--input=x.csv", "--label_column=kind"])):
        assert run([f"--model={features_run}", *flags, f"--out={number}.csv"]) == 0
    assert Path("0.csv").read_text() == Path("1.csv").read_text() == Path("2.csv").read_text()


def test_images(images_run, own_images, tmp_path):
    out = tmp_path / "classes.csv"
    assert run([f"--model={images_run}", f"--input={own_images / 'test'}", f"--out={out}"]) == 0
    header, *lines = lines_of(out)
    assert header == ["file", "class", "probability"]
    assert [line[0] for line in lines[:2]] == ["one/00.png", "one/01.png"]
    assert np.mean([line[0].split("/")[0] == line[1] for line in lines]) > 0.7


def test_images_without_class_folders(images_run, own_images, tmp_path):
    out = tmp_path / "classes.csv"
    assert run([f"--model={images_run}", f"--input={own_images / 'test' / 'zero'}", f"--out={out}"]) == 0
    assert [line[0] for line in lines_of(out)[1:3]] == ["00.png", "01.png"]


def test_what_the_model_does_not_take(features_run, images_run, own_files, own_images, tmp_path, told):
    out = f"--out={tmp_path / 'classes.csv'}"
    np.save(tmp_path / "wide.npy", np.zeros((2, 65)))
    assert told(f"--model={features_run}", f"--input={tmp_path / 'wide.npy'}", out) == (
        f"input={tmp_path / 'wide.npy'}: its rows have 65 features, expected 64"
    )
    np.save(tmp_path / "nan.npy", np.full((2, 64), np.nan))
    assert told(f"--model={features_run}", f"--input={tmp_path / 'nan.npy'}", out) == (
        f"input={tmp_path / 'nan.npy'}: row 0 holds NaN in column 0 (both counted from 0): "
        "replace such values or leave the row out"
    )
    assert told(f"--model={features_run}", f"--input={own_images / 'test'}", out) == (
        f"input={own_images / 'test'}: is a folder of images, expected a table of rows of 64 numbers"
    )
    assert told(f"--model={images_run}", f"--input={own_files / 'x_test.npy'}", out) == (
        f"input={own_files / 'x_test.npy'}: is a table, expected a folder of images of 8×8 pixels"
    )
    (tmp_path / "large").mkdir()
    Image.new("L", (9, 8)).save(tmp_path / "large" / "a.png")
    assert told(f"--model={images_run}", f"--input={tmp_path / 'large'}", out) == (
        f"input={tmp_path / 'large'}: its images are 9×8 pixels, expected 8×8: resize them"
    )
    assert told(f"--model={images_run}", "--input=nowhere", out) == "input=nowhere: there is no such file or folder"
    assert told(f"--model={features_run}", f"--input={own_files / 'x.npy'}", "--label_column=kind", out) == (
        "label_column=kind: only a .csv has columns with names; leave it out"
    )
    assert not (tmp_path / "classes.csv").exists()


def test_what_is_no_model(own_files, tmp_path, told):
    flags = [f"--input={own_files / 'x_test.npy'}", f"--out={tmp_path / 'classes.csv'}"]
    remedy = "give the run folder of a finished `python -m scatterdp fit`"
    assert told("--model=nowhere", *flags) == f"model=nowhere: there is no such file or folder; {remedy}"
    assert told(f"--model={own_files}", *flags) == f"model={own_files}: has no model.safetensors; {remedy}"
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    message = told(f"--model={tmp_path}", *flags)
    assert message.startswith(f"model={tmp_path}: is no saved classifier (")
    assert message.endswith(f"; {remedy}")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors", metadata={"facts": "{}"})
    assert told(f"--model={tmp_path}", *flags).startswith(f"model={tmp_path}: is not what DPClassifier.save writes")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_where_it_cannot_write(features_run, own_files, tmp_path, told):
    flags = [f"--model={features_run}", f"--input={own_files / 'x_test.npy'}"]
    (tmp_path / "mine.csv").write_text("mine")
    assert told(*flags, f"--out={tmp_path / 'mine.csv'}") == (
        f"out={tmp_path / 'mine.csv'}: is there already, give another name or remove it"
    )
    assert (tmp_path / "mine.csv").read_text() == "mine"
    assert told(*flags, f"--out={tmp_path / 'a' / 'b.csv'}") == (
        f"out={tmp_path / 'a' / 'b.csv'}: {tmp_path / 'a'} is no folder; make it, or give another"
    )


def test_an_interruption_leaves_nothing(features_run, own_files, tmp_path, monkeypatch, capsys):
    calls = []

    def fails(self, x):
        calls.append(len(x))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return np.full((len(x), 10), 0.1)

    monkeypatch.setattr(table.row_blocks, "__kwdefaults__", {"block_bytes": 64 * 2 * 50})
    monkeypatch.setattr(DPClassifier, "predict_proba", fails)
    flags = [f"--model={features_run}", f"--input={own_files / 'x_test.npy'}", f"--out={tmp_path / 'classes.csv'}"]
    assert exit_code(lambda: run(flags)) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert calls == [50, 50]
    assert list(tmp_path.iterdir()) == []
