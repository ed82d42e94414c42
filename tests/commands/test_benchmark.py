"""``scatterdp benchmark``: files, figures and reasons, agreement with a negative control, and what it refuses. Nothing is timed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from scatterdp.benchmarking import CONTENDERS, NETWORKS, Cell, Largest
from scatterdp.benchmarking.contenders import Contender
from scatterdp.commands import benchmark
from scatterdp.commands.benchmark import BenchmarkConfig, run
from scatterdp.engines import ENGINES
from scatterdp.errors import ConfigError
from scatterdp.exits import exit_code
from scatterdp.report.clipping_cost import clipping_table


def table_rows(markdown: str) -> list[list[str]]:
    """Cells of the rows that begin with a batch size."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]
    return [line for line in lines if line[0].isdigit()]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The folder of a small run."""
    out = tmp_path_factory.mktemp("benchmark")  # empty, so it is taken
    flags = ["--models=scatternet_cnn", "--batch_sizes", "4", "2", "--repeats=2", "--threads=1", "--device=cpu"]
    assert run([*flags, f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def content(out) -> dict:
    return json.loads((out / "benchmark.json").read_text())


class TestMeasuring:
    def test_four_files(self, out):
        assert sorted(path.name for path in out.iterdir()) == [
            f"benchmark.{suffix}" for suffix in ("json", "md", "png", "svg")
        ]
        assert "<svg" in (out / "benchmark.svg").read_text()
        with Image.open(out / "benchmark.png") as picture:
            assert picture.size == (1050, 1050)
            colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0, 0, 0)} <= colours  # mixed_ghost, opacus_hooks, non_private

    def test_every_contender_has_its_figures(self, content):
        cells = {(cell["batch_size"], cell["contender"]): cell for cell in content["cells"]}
        assert list(cells) == [(size, name) for size in (2, 4) for name in CONTENDERS]
        others = {"non_private", "privacy_engine", "opacus_hooks", "opacus_ghost"}
        assert set(CONTENDERS) == {*others, *ENGINES} - {"linear"}
        for cell in cells.values():
            assert cell["note"] is None
            assert len(cell["seconds"]) == 2
            assert min(cell["seconds"]) <= cell["median_seconds"] <= max(cell["seconds"])
            assert 0 <= cell["extra_memory"] < 100e6

    def test_says_on_what_it_ran(self, content):
        assert content["setup"]["torch"] == torch.__version__
        assert content["setup"]["threads"] == 1
        assert content["setup"]["opacus"].startswith("1.6")
        assert content["config"]["batch_sizes"] == [4, 2]
        assert content["units"] == {"seconds": "s", "extra_memory": "bytes"}

    def test_the_table_tells_the_same_figures(self, out, content):
        rows = table_rows((out / "benchmark.md").read_text())
        assert len(rows) == len(content["cells"])
        base = {cell["batch_size"]: cell for cell in content["cells"] if cell["contender"] == "non_private"}
        for row, cell in zip(rows, content["cells"], strict=True):
            assert row[:2] == [str(cell["batch_size"]), cell["contender"]]
            plain = base[cell["batch_size"]]
            seconds, memory = cell["median_seconds"], cell["extra_memory"]
            expected = [1e3 * seconds, seconds / plain["median_seconds"], memory / 1e6]
            assert [float(value) for value in row[2:5]] == pytest.approx(expected, rel=0.01)
            assert row[6] == ""

    def test_a_folder_in_use_is_left_alone(self, out, capsys):
        before = {path: path.read_bytes() for path in out.iterdir()}
        assert exit_code(lambda: run([f"--out={out}"])) == 2
        message = f"error: out={out}: holds files already and is left alone; give a new or empty folder\n"
        assert capsys.readouterr().err == message
        assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_the_largest_batch_is_searched_for_every_contender(tmp_path, monkeypatch, capsys):
    asked = []

    def largest(ask, bound, *, max_seconds):
        asked.append((bound, max_seconds))
        return Largest(batch_size=7, how="measured: 7 fits, 8 does not")

    monkeypatch.setattr(benchmark, "largest_batch", largest)
    cell = Cell(network="cnn", batch_size=2, contender="crb", seconds=(1.0,), extra_memory=10)
    monkeypatch.setattr(benchmark, "measure", lambda question, contenders, **_: [cell])
    flags = ["--models", "cnn", "--engines", "crb", "ghost", "--batch_sizes=2", "--memory_bound=1.5GB", "--threads=1"]
    assert run([*flags, f"--out={tmp_path / 'new' / 'folder'}"]) == 0
    assert asked == [(1_500_000_000, 10.0)] * 2
    assert "cnn ghost: largest batch in 1.5GB: measured: 7 fits, 8 does not" in capsys.readouterr().out
    content = json.loads((tmp_path / "new" / "folder" / "benchmark.json").read_text())
    assert [found["contender"] for found in content["largest_batches"]] == ["crb", "ghost"]
    assert content["largest_batches"][0]["batch_size"] == 7


def test_what_has_no_figure_has_a_reason_in_the_table():
    cells = [
        Cell(network="cnn", batch_size=8, contender="crb", note="needs more | than 5 MB"),
        Cell(network="cnn", batch_size=8, contender="loop", seconds=(12.0,), note="one step, slower than 10 s"),
    ]
    markdown = clipping_table(cells, {("cnn", "crb"): Largest(batch_size=None, how="unknown: why")}, "2GB")
    assert table_rows(markdown) == [
        ["8", "crb", "–", "–", "–", "–", "needs more / than 5 MB"],
        ["8", "loop", "12000", "–", "–", "–", "one step, slower than 10 s"],
    ]
    assert "at most 2GB" in markdown
    assert "| crb | – | unknown: why |" in markdown


def test_interruption_says_what_is_kept(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", interrupted)
    assert exit_code(lambda: run(["--threads=1", f"--out={tmp_path}"])) == 130
    assert capsys.readouterr().err.startswith(f"interrupted: {tmp_path} holds what was measured before")


class TestGradcheck:
    FLAGS = ("--gradcheck", "--models=scatternet_cnn", "--batch_sizes=3", "--threads=1", "--device=cpu")

    def test_all_contenders_agree(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run([*self.FLAGS]) == 0
        out = capsys.readouterr().out
        lines = [line.split() for line in out.splitlines() if line.startswith("  ")][1:]
        clipping = [name for name in CONTENDERS if name != "non_private"]
        assert [line[2] for line in lines] == [*CONTENDERS, *clipping] * 3
        assert all(float(line[4]) <= 1e-5 for line in lines)
        assert out.endswith("all agree within 1e-05\n")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("fault", ["one entry", "no clipping", "one missing", "not a number"])
    def test_a_wrong_engine_is_found(self, monkeypatch, capsys, fault):
        right = CONTENDERS["crb"].prepare

        def prepare(model, x, y, max_grad_norm):
            def step():
                bound = 1e9 if fault == "no clipping" else max_grad_norm
                gradients = dict(right(model, x, y, bound)())
                name, value = next(reversed(gradients.items()))
                if fault == "one entry":
                    value.view(-1)[0] += 1e-3 * value.abs().max()
                elif fault == "not a number":
                    value.view(-1)[0] = float("nan")
                elif fault == "one missing":
                    del gradients[name]
                return gradients

            return step

        monkeypatch.setitem(CONTENDERS, "crb", Contender(prepare))
        assert run([*self.FLAGS, "--engines", "hooks", "crb"]) == 1
        out = capsys.readouterr().out
        wrong = [line.split()[2] for line in out.splitlines() if line.endswith("DIFFERS")]
        assert wrong == ["crb"] * (3 if fault == "no clipping" else 6)
        assert out.endswith(f"{len(wrong)} differ by more than 1e-05\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"models": ("cnn", "alexnet")}, f"models=alexnet: expected some of {', '.join(NETWORKS)}"),
        ({"engines": ("linear",)}, f"engines=linear: expected some of {', '.join(CONTENDERS)}"),
        ({"models": ()}, "models=(): expected some of"),
        ({"batch_sizes": (64, 0)}, "batch_sizes=64 0: expected integers ≥ 1"),
        ({"repeats": 0}, "repeats=0: expected an integer ≥ 1"),
        ({"threads": 0}, "threads=0: expected an integer ≥ 1"),
        ({"max_seconds": 0.0}, "max_seconds=0.0: expected a number > 0"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan: expected a number > 0"),
        ({"memory_bound": "2 gigs"}, "memory_bound='2 gigs': expected a size such as 500MB or 2GB"),
        ({"memory_bound": "0GB"}, "memory_bound='0GB': expected a size"),
    ],
)
def test_what_cannot_be_is_said(flags, message):
    with pytest.raises(ConfigError) as raised:
        BenchmarkConfig(**flags)
    assert message in str(raised.value)


def test_bad_flags_of_the_command_line_end_with_2(tmp_path, capsys):
    assert exit_code(lambda: run(["--models", "alexnet", f"--out={tmp_path}"])) == 2
    assert capsys.readouterr().err == f"error: models=alexnet: expected some of {', '.join(NETWORKS)}\n"
    assert exit_code(lambda: run(["--device=cuda:99", f"--out={tmp_path / 'new'}"])) == 2
    assert capsys.readouterr().err.startswith("error: device=cuda:99: this machine shows")
    assert exit_code(lambda: run(["--device=cpu", "--memory_bound=9000000GB", f"--out={tmp_path / 'new'}"])) == 2
    assert re.fullmatch(
        r"error: memory_bound=9000000GB: [\d.]+ GB are free here; give at most [\d.]+GB\n", capsys.readouterr().err
    )
    (tmp_path / "file").touch()
    assert exit_code(lambda: run([f"--out={tmp_path / 'file'}"])) == 2
    assert capsys.readouterr().err.startswith(f"error: out={tmp_path / 'file'}: is no folder to write in")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
