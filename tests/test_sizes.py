"""Amounts of memory in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from scatterdp.errors import ConfigError
from scatterdp.sizes import available_memory, bytes_of, report_field


@pytest.mark.parametrize(
    ("words", "count"), [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5kB", 1500), ("2KB", 2000)]
)
def test_sizes_in_words(words, count):
    assert bytes_of(words, argument="memory_bound") == count


@pytest.mark.parametrize("words", ["", "0GB", "4", "4 gb", "1Kb", "-1GB", "1e3GB", "GB", "4GiB"])
def test_what_is_no_size(words):
    with pytest.raises(ConfigError) as raised:
        bytes_of(words, argument="memory_budget")
    assert str(raised.value) == f"memory_budget={words!r}: expected a size such as 500MB or 2GB (units: kB, MB, GB)"


def test_reports_of_the_system(tmp_path):
    report = tmp_path / "meminfo"
    report.write_text("MemTotal:       100 kB\nMemAvailable:    7 kB\n")
    assert report_field(report, "MemAvailable") == 7 * 1024
    assert report_field(report, "Swap") is None
    assert report_field(tmp_path / "none", "MemAvailable") is None
    assert available_memory() == pytest.approx(report_field(Path("/proc/meminfo"), "MemAvailable"), rel=0.5)
