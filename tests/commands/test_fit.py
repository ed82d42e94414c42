"""``scatterdp fit``: from files to a run folder, and what it says of files that do not do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_folders import files_of_at_most
from scipy import sparse

from scatterdp.commands.fit import FitConfig, fit, run
from scatterdp.estimators import DPClassifier
from scatterdp.exits import exit_code
from scatterdp.privacy.checking import check_certificate
from scatterdp.records import RunFolder

RUN_FILES = ["certificate.json", "config.json", "model.safetensors", "summary.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "scatterdp", *arguments], capture_output=True, text=True, timeout=300)


class TestARun:
    def test_as_a_process(self, own_files, tmp_path):
        """Every line that is printed is known: nothing of the training data but what is public."""
        done = process(
            "fit",
            f"--features={own_files / 'x.npy'}",
            f"--labels={own_files / 'y.npy'}",
            f"--test_features={own_files / 'x_test.npy'}",
            f"--test_labels={own_files / 'y_test.npy'}",
            "--target_epsilon=2",
            f"--run_dir={tmp_path / 'run'}",
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        patterns = (
            r"x: 1437 rows of 64 features; 360 to test; 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
            r"test accuracy 0\.\d{4}",
            r"ε = [12]\.\d{4} at δ = 1e-05 by pld, after \d+\.\d s",
            rf"run folder: {re.escape(str(tmp_path / 'run'))}",
        )
        assert len(lines) == len(patterns)
        for line, pattern in zip(lines, patterns, strict=True):
            assert re.fullmatch(pattern, line), line
        assert names(tmp_path) == ["run"]
        assert names(tmp_path / "run") == RUN_FILES
        assert process("certificate", str(tmp_path / "run")).returncode == 0

    def test_the_record(self, features_run, own_files):
        assert names(features_run) == RUN_FILES
        certificate, summary = read(features_run, "certificate.json"), read(features_run, "summary.json")
        assert not check_certificate(certificate).disagreements
        assert certificate["private"]
        assert 2.5 < certificate["epsilon"] <= 3
        assert certificate["delta"] == 1e-4
        assert summary["epsilon"] == certificate["epsilon"]
        assert {"test_accuracy", "seconds_fit", "peak_memory_bytes"} <= set(certificate["not_private"])
        assert "test_accuracy" in certificate["statement"]
        model = DPClassifier.load(features_run / "model.safetensors")
        assert model.privacy_certificate_ == certificate
        truth = np.array((own_files / "y_test.txt").read_text().split())
        predicted = model.predict(np.load(own_files / "x_test.npy"))
        assert summary["test_accuracy"] == np.mean(predicted == truth) > 0.7
        assert read(features_run, "config.json")["features"] == str(own_files / "x.npy")

    def test_the_data_are_named_and_nothing_else(self, features_run):
        """No digest of unpublished data: whoever knows all but one example could test guesses of the last."""
        data = read(features_run, "certificate.json")["data"]
        assert data["name"] == "x"
        assert data["num_train"] == 1437
        assert sorted(data["classes"]) == sorted(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        )
        assert not {"fingerprint", "commitment", "digest"} & data.keys()
        for told in (data, read(features_run, "summary.json")):
            assert not re.search(r"[0-9a-f]{32}", json.dumps(told))

    def test_a_seed_gives_the_same_model(self, features_run, own_files, tmp_path):
        def probabilities(folder: Path) -> np.ndarray:
            return DPClassifier.load(folder / "model.safetensors").predict_proba(np.load(own_files / "x_test.npy"))

        given = read(features_run, "config.json")
        again = fit(FitConfig(**given | {"run_dir": tmp_path / "again"}))
        other = fit(FitConfig(**given | {"run_dir": tmp_path / "other", "seed": 1}))
        np.testing.assert_array_equal(probabilities(again), probabilities(features_run))
        assert not np.array_equal(probabilities(other), probabilities(features_run))

    def test_images(self, images_run, own_images):
        summary, certificate = read(images_run, "summary.json"), read(images_run, "certificate.json")
        assert summary["test_accuracy"] > 0.7
        assert summary["num_test"] == 60
        assert certificate["data"]["name"] == "figures"
        assert sorted(certificate["data"]["classes"]) == ["one", "seven", "zero"]
        assert "scatternet" in json.dumps(certificate["features"])

    def test_an_extractor_of_images(self, own_images, tmp_path, capsys):
        assert run([f"--features={own_images / 'train'}", "--extractor=pixels", f"--run_dir={tmp_path / 'run'}"]) == 0
        assert "pixels" in json.dumps(read(tmp_path / "run", "certificate.json")["features"])
        assert read(tmp_path / "run", "summary.json")["test_accuracy"] is None
        captured = capsys.readouterr()
        assert "train: 180 images of 8×8; no test; 3 classes: one, seven, zero" in captured.out
        assert "test accuracy" not in captured.out

    @pytest.mark.parametrize("kind", ["npz", "h5", "csv", "cache"])
    def test_other_files(self, own_files, digits_features, tmp_path, monkeypatch, kind):
        monkeypatch.chdir(tmp_path)
        x, y = np.load(own_files / "x.npy")[:300], np.load(own_files / "y.npy")[:300]
        if kind == "npz":
            np.savez("own.npz", x=x, y=y)
            flags = ["--features=own.npz:x", "--labels=own.npz:y"]
        elif kind == "h5":
            with h5py.File("own.h5", "w") as file:
                file["x"], file["y"] = x, y
            flags = ["--features=own.h5:x", "--labels=own.h5:y"]
        elif kind == "csv":
            columns = [*(f"p{number}" for number in range(64)), "digit"]
            rows = [",".join(map(str, [*row, label])) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
            Path("own.csv").write_text("\n".join([",".join(columns), *rows]))
            flags = ["--features=own.csv", "--labels=digit"]
        else:
            flags = [f"--features={digits_features.path}"]
        assert run([*flags, "--target_delta=1e-4", "--seed=0"]) == 0
        (folder,) = Path("runs").iterdir()
        assert names(folder) == RUN_FILES
        certificate = read(folder, "certificate.json")
        assert certificate["data"]["name"] == ("digits" if kind == "cache" else "own")
        assert certificate["data"]["num_train"] == (1437 if kind == "cache" else 300)
        assert (read(folder, "summary.json")["test_accuracy"] is None) == (kind != "cache")

    def test_a_delta_that_is_too_large_is_said(self, own_files, tmp_path, capsys):
        flags = [f"--features={own_files / 'x.npy'}", f"--labels={own_files / 'y.npy'}", "--target_delta=0.01"]
        assert run([*flags, f"--run_dir={tmp_path / 'run'}"]) == 0
        assert "warning: δ = 0.01 is not below 1/N = 0.0007" in capsys.readouterr().err


# ---------------------------------------------------------------- what does not do


def sparse_file(path: Path) -> None:
    sparse.save_npz(path, sparse.eye(4, format="csr"))


FILES = {
    "x.npy": lambda path: np.save(path, np.eye(4)),
    "y.npy": lambda path: np.save(path, [0, 1, 0, 1]),
    "y3.npy": lambda path: np.save(path, [0, 1, 0]),
    "one.npy": lambda path: np.save(path, [7, 7, 7, 7]),
    "three.npy": lambda path: np.save(path, [0, 1, 2, 1]),
    "half.npy": lambda path: np.save(path, [0, 1, 0.5, 1]),
    "holes.npy": lambda path: np.save(path, [0, 1, np.nan, 1]),
    "flat.npy": lambda path: np.save(path, np.zeros(4)),
    "empty.npy": lambda path: np.save(path, np.zeros((0, 4))),
    "nan.npy": lambda path: np.save(path, np.where(np.eye(4) == 1, np.nan, 0)[[1, 0, 2, 3]][:, [3, 0, 1, 2]]),
    "inf.npy": lambda path: np.save(path, np.full((4, 2), np.inf)),
    "objects.npy": lambda path: np.save(path, np.array([[None]]), allow_pickle=True),
    "sparse.npz": sparse_file,
    "several.npz": lambda path: np.savez(path, a=np.eye(4), b=np.eye(4)),
    "x.csv": lambda path: path.write_text("a,b,kind\n1,2,cat\n3,wide,dog\n"),
    "x.txt": lambda path: path.write_text("1"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in that holds all of these files."""
    monkeypatch.chdir(tmp_path)
    for name, write in FILES.items():
        write(tmp_path / name)
    return tmp_path


BAD = [
    ("--features=nowhere.npy", "features=nowhere.npy: there is no such file or folder"),
    ("--features=x.txt", "features=x.txt: has the suffix .txt, expected .npy, .npz, .h5, .hdf5, .csv or a folder of images"),
    ("--features=x.npy", "features=x.npy: labels are missing, give --labels=FILE"),
    ("--features=x.npy --labels=y3.npy", "features=x.npy has 4 rows but labels=y3.npy has 3 labels: expected one label a row"),
    ("--features=x.npy --labels=half.npy", "labels=half.npy: the label of row 2 (counted from 0), 0.5, is not whole: expected whole numbers or strings"),
    ("--features=x.npy --labels=holes.npy", "labels=holes.npy: the label of row 2 (counted from 0), nan, is not finite: expected whole numbers or strings"),
    ("--features=x.npy --labels=one.npy", "features=x.npy: all labels are 7, a classifier needs at least two classes"),
    ("--features=flat.npy --labels=y.npy", "features=flat.npy: it has shape (4,), expected (N, D): one row of D features an example, so reshape it to that (images: give a folder)"),
    ("--features=empty.npy --labels=y.npy", "features=empty.npy: the table is empty (shape (0, 4)), expected at least one row"),
    ("--features=nan.npy --labels=y.npy", "features=nan.npy: row 0 holds NaN in column 2 (both counted from 0): replace such values or leave the row out"),
    ("--features=inf.npy --labels=y.npy", "features=inf.npy: row 0 holds an infinite value in column 0 (both counted from 0): replace such values or leave the row out"),
    ("--features=objects.npy --labels=y.npy", "features=objects.npy: it holds Python objects (pickled), which are not read: save an array of numbers, or of strings for labels"),
    ("--features=sparse.npz --labels=y.npy", "features=sparse.npz: is a sparse matrix (scipy.sparse): make it dense with .toarray(), or, when that is too large, reduce its dimension first"),
    ("--features=several.npz --labels=y.npy", "features=several.npz: holds 2 arrays (a, b), name one: --features=several.npz:a"),
    ("--features=x.csv --labels=kind", "features=x.csv: line 3, column 2 (b): 'wide' is no number; a column of labels is named by --labels=COLUMN"),
    ("--features=x.npy --labels=y.npy --test_features=x.npy", "test_features=x.npy: labels are missing, give --test_labels=FILE"),
    ("--features=x.npy --labels=y.npy --test_features=x.npy --test_labels=three.npy", "features=x.npy: the test labels name the class 2, which no training row has: add examples of it, or leave it out of the test"),
    ("--features=x.npy --labels=y.npy --extractor=scatternet", "extractor=scatternet: is for images, x.npy holds features already; leave it out"),
    ("--features=x.npy --labels=y.npy --target_epsilon=0", "target_epsilon=0.0: expected a finite number > 0"),
    ("--features=x.npy --labels=y.npy --target_delta=1", "target_delta=1.0: expected a number between 0 and 1"),
    ("--features=x.npy --labels=y.npy --seed=-1", "seed=-1: expected a whole number ≥ 0"),
    ("--features=x.npy --labels=y.npy --run_dir=x.npy", "run_dir=x.npy: is there already and is left alone; give another --run_dir"),
]  # fmt: skip


class TestBadInput:
    @pytest.mark.parametrize(("flags", "message"), BAD)
    def test_is_one_sentence_and_nothing_is_written(self, here, capsys, flags, message):
        assert exit_code(lambda: run(flags.split())) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
        assert names(here) == sorted(FILES)

    def test_as_a_process(self, own_files, tmp_path):
        done = process("fit", f"--features={own_files / 'x.npy'}", f"--run_dir={tmp_path / 'run'}")
        assert done.returncode == 2
        assert done.stderr == f"error: features={own_files / 'x.npy'}: labels are missing, give --labels=FILE\n"
        assert done.stdout == ""
        assert names(tmp_path) == []

    def test_an_unknown_head_or_extractor(self, here, own_images, capsys):
        with pytest.raises(SystemExit) as left:
            run(["--features=x.npy", "--labels=y.npy", "--head=forest"])
        assert left.value.code == 2
        assert "forest" in capsys.readouterr().err
        assert exit_code(lambda: run([f"--features={own_images}", "--extractor=wavelets"])) == 2
        assert "extractor='wavelets': expected one of" in capsys.readouterr().err
        assert names(here) == sorted(FILES)

    def test_a_run_folder_with_something_in_it(self, here, capsys):
        (here / "run").mkdir()
        (here / "run" / "notes.txt").write_text("mine")
        assert exit_code(lambda: run(["--features=x.npy", "--labels=y.npy", "--run_dir=run"])) == 2
        assert capsys.readouterr().err == (
            "error: run_dir=run: is there already and is left alone; give another --run_dir\n"
        )
        assert names(here / "run") == ["notes.txt"]

    @pytest.mark.parametrize(
        ("size", "code", "message"),
        [
            (1000, 2, "error: run_dir={}: cannot be written (File too large); make room, or give another --run_dir"),
            (2**40, 130, "interrupted: nothing was written"),
        ],
        ids=["disk", "ctrl-c"],
    )
    def test_a_record_that_cannot_be_written(self, own_files, tmp_path, monkeypatch, capsys, size, code, message):
        write = RunFolder.write

        def fails(folder, name, content):
            with files_of_at_most(size):
                write(folder, name, content)
            if name == "model.safetensors":
                raise KeyboardInterrupt

        monkeypatch.setattr(RunFolder, "write", fails)
        folder = tmp_path / "a" / "run"
        flags = [f"--features={own_files / 'x.npy'}", f"--labels={own_files / 'y.npy'}", f"--run_dir={folder}"]
        assert exit_code(lambda: run(flags)) == code
        assert capsys.readouterr().err == message.format(folder) + "\n"
        assert names(tmp_path) == []
