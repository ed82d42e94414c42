"""Following a sweep: what the table shows, and when it ends."""

from __future__ import annotations

import io
import json
import threading

import pytest
from rich.console import Console

from scatterdp.errors import ConfigError
from scatterdp.sweeps import follow as module
from scatterdp.sweeps.folder import SweepFolder
from scatterdp.sweeps.follow import follow
from scatterdp.sweeps.record import RunEntry, SweepRecord


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=False)


@pytest.fixture
def record() -> SweepRecord:
    states = ("done", "running", "failed", "waiting", "waiting", "waiting", "waiting", "waiting")
    runs = [
        RunEntry(
            name=f"{number:03}",
            changes={"lr": number},
            run_dir=f"runs/{number:03}",
            state=state,
            epochs=9,
            target_epsilon=3.0,
        )
        for number, state in enumerate(states, 1)
    ]
    runs[0].test_accuracy, runs[0].epsilon, runs[0].seconds = 0.75, 2.99991, 12.0
    runs[2].error = "target_epsilon=0.1: too little"
    return SweepRecord(name="x", command="cnns", delta=1e-5, score="test_accuracy", num_runs=8, runs=runs)


def shown(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


class TestFollow:
    def test_a_stopped_sweep_is_shown_once(self, tmp_path, record, console):
        (tmp_path / "runs" / "002").mkdir(parents=True)
        row = json.dumps({"epoch": 4, "test_accuracy": 0.5, "epsilon": 1.5, "seconds": 3.2})
        (tmp_path / "runs" / "002" / "metrics.jsonl").write_text(f"{row}\n{row[:20]}")  # the last line is half written
        record.save(tmp_path)
        follow(tmp_path, console=console)
        said = shown(console)
        assert "★ 001" in said
        assert "0.7500" in said
        assert "3.0000" in said
        assert "4/9" in said
        assert "1.5000" in said
        assert "too little" in said
        assert "… and 2 more that wait" in said
        assert "1 done, 1 stopped, 5 waiting, 1 failed; stopped before its end" in said

    def test_it_ends_with_the_sweep(self, tmp_path, record, console, monkeypatch):
        monkeypatch.setattr(module, "_SECONDS", 0.01)
        record.save(tmp_path)
        seen = threading.Event()
        load = SweepRecord.load

        def watched(folder):
            seen.set()
            return load(folder)

        monkeypatch.setattr(SweepRecord, "load", watched)
        with SweepFolder(tmp_path).locked():
            thread = threading.Thread(target=follow, args=(tmp_path,), kwargs={"console": console})
            thread.start()
            assert seen.wait(10)
            thread.join(0.2)
            assert thread.is_alive()
            record.finished = True
            record.selection = {"statement": "1 run looked at the private data."}
            record.save(tmp_path)
            thread.join(10)
            assert not thread.is_alive()
        assert "finished" in shown(console)
        assert "1 run looked at the private data." in shown(console)

    def test_it_ends_when_the_sweep_is_killed(self, tmp_path, record, console, monkeypatch):
        monkeypatch.setattr(module, "_SECONDS", 0.01)
        record.save(tmp_path)
        with SweepFolder(tmp_path).locked():
            thread = threading.Thread(target=follow, args=(tmp_path,), kwargs={"console": console})
            thread.start()
            thread.join(0.2)
        thread.join(10)
        assert not thread.is_alive()
        assert "stopped before its end" in shown(console)

    def test_another_folder_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"not a sweep's folder \(sweep.json in it: .*\); give one that"):
            follow(tmp_path)

    def test_a_damaged_record_is_told_with_what_to_do(self, tmp_path):
        (tmp_path / "sweep.json").write_text("{")
        with pytest.raises(ConfigError, match=r"its sweep.json is damaged \(.*\); bring it back"):
            follow(tmp_path)
