"""``python -m scatterdp report`` as people type it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scatterdp.commands.report import run
from scatterdp.exits import exit_code


def test_a_page_and_its_figures(finished_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([str(finished_runs), "--out=two.html"]) == 0
    told = capsys.readouterr().out
    assert "digits: 2 runs" in told
    assert "report: two.html (" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.html", "two_files"]
    assert (tmp_path / "two_files" / "digits_confusion.svg").is_file()


def test_runs_of_fit_have_a_page_too(features_run, images_run, tmp_path, capsys):
    assert run([str(features_run), str(images_run), f"--out={tmp_path / 'r.html'}"]) == 0
    assert capsys.readouterr().err == ""
    page = (tmp_path / "r.html").read_text()
    assert "python -m scatterdp fit" in page
    assert "Not recorded: there is no test_predictions.npz" in page


def test_what_is_left_out_is_said(finished_runs, tmp_path, capsys):
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.json").write_text("{}")
    assert run([str(finished_runs / "own"), str(tmp_path / "stopped"), f"--out={tmp_path / 'r.html'}"]) == 0
    assert "without a result: stopped: it is not finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: runs: give at least one run folder"),
        (["none"], "error: runs=none: no such folder"),
        (["."], "error: runs=.: no finished run there (.: no run folder is there)"),
        ([".", "--out=report.txt"], "error: out=report.txt: expected a file name that ends in .html"),
        ([".", "--tail=sweep"], "error: tail=sweep: follows a sweep and makes no page"),
    ],
)
def test_user_errors_are_one_sentence_and_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: run(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_as_a_process(finished_runs, tmp_path: Path):
    command = [sys.executable, "-m", "scatterdp", "report", str(finished_runs / "own"), f"--out={tmp_path / 'r.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"report: {tmp_path / 'r.html'}")
