"""The README's snippets are run as they stand."""

import doctest
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_snippets_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert results.attempted > 10
    assert results.failed == 0
