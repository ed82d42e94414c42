"""``python -m scatterdp COMMAND`` and how commands end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scatterdp import __main__ as entry
from scatterdp.commands import cache
from scatterdp.errors import BudgetError, CacheError, ConfigError, DatasetError, UserError
from scatterdp.exits import exit_code


class TestMain:
    def run(self, monkeypatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scatterdp", *arguments])
        return entry.main()

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_help_lists_the_commands(self, monkeypatch, capsys, flag):
        assert self.run(monkeypatch, flag) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: scatterdp COMMAND")
        assert all(name in out and purpose in out for name, purpose in entry.COMMANDS.items())
        assert "python -m scatterdp.baselines --help" in out

    def test_without_a_command_the_help_is_an_error(self, monkeypatch, capsys):
        assert self.run(monkeypatch) == 2
        assert "usage: scatterdp COMMAND" in capsys.readouterr().out

    def test_unknown_commands_are_named(self, monkeypatch, capsys):
        assert self.run(monkeypatch, "cach") == 2
        captured = capsys.readouterr()
        assert captured.err == f"error: command 'cach': expected one of {', '.join(entry.COMMANDS)}\n"
        assert captured.out == ""

    def test_the_rest_goes_to_the_command(self, monkeypatch):
        seen = []
        monkeypatch.setattr(cache, "run", seen.append)
        assert self.run(monkeypatch, "cache", "ls", "--features_dir=x") == 0
        assert seen == [["ls", "--features_dir=x"]]

    def test_user_errors_of_commands_end_with_2(self, monkeypatch, capsys):
        def fails(arguments):
            raise CacheError("features_dir=x: no such folder")

        monkeypatch.setattr(cache, "run", fails)
        assert self.run(monkeypatch, "cache") == 2
        assert capsys.readouterr().err == "error: features_dir=x: no such folder\n"

    def test_as_a_process(self):
        done = subprocess.run(
            [sys.executable, "-m", "scatterdp", "nothing"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: command 'nothing': expected one of")
        assert done.stdout == ""


class TestExitCode:
    @pytest.mark.parametrize(("returned", "expected"), [(None, 0), (0, 0), (1, 1), (3, 3)])
    def test_is_what_the_command_returned(self, returned, expected):
        assert exit_code(lambda: returned) == expected

    @pytest.mark.parametrize("kind", [UserError, ConfigError, DatasetError, CacheError, BudgetError])
    def test_user_errors_are_one_sentence_and_2(self, kind, capsys):
        def command():
            raise kind("batch_size=0: expected more")

        assert exit_code(command) == 2
        captured = capsys.readouterr()
        assert captured.err == "error: batch_size=0: expected more\n"
        assert captured.out == ""

    def test_interruption_is_one_sentence_and_130(self, capsys):
        def command():
            raise KeyboardInterrupt

        assert exit_code(command) == 130
        assert capsys.readouterr().err == "interrupted: the same command starts again, and uses what was finished\n"

    @pytest.mark.parametrize(("error", "expected"), [(None, 0), (UserError("epochs=0: too few"), 2)])
    def test_a_process_with_connections_ends_without_taking_the_interpreter_down(self, error, expected, monkeypatch):
        ends = []
        monkeypatch.setattr("scatterdp.exits.connected", lambda: True)
        monkeypatch.setattr("scatterdp.exits.end", ends.append)

        def command():
            if error:
                raise error

        exit_code(command)
        assert ends == [expected]

    def test_an_end_flushes_what_was_said_and_skips_the_rest(self):
        program = "import atexit, scatterdp.ranks as r; atexit.register(print, 'later'); print('said'); r.end(7)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (7, "said\n")

    @pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), SystemExit(3)])
    def test_bugs_are_not_swallowed(self, error):
        def command():
            raise error

        with pytest.raises(type(error)):
            exit_code(command)


def test_a_reader_that_goes_away_ends_the_command_without_a_word():
    command = [sys.executable, "-m", "scatterdp", "budget", "--num_samples=2000", "--batch_size=500", "--epochs=4"]
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")


def test_another_broken_pipe_is_not_taken_for_it():
    code = "from scatterdp.exits import exit_code\ndef broken(): raise BrokenPipeError\nexit_code(broken)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "BrokenPipeError" in found.stderr
