"""``python -m scatterdp report RUNS…``: a page about runs, to look at and to send: one HTML file that loads nothing.

    python -m scatterdp report runs/                         # every run in a folder
    python -m scatterdp report runs/a runs/b --out=two.html
    python -m scatterdp report --tail=runs/opacus_baseline   # follow a sweep in the terminal

Each figure lies as PNG and SVG in report_files/ beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from scatterdp.errors import ConfigError
from scatterdp.report.runs import find_runs


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make a page about runs: results, accuracy against ε, training, what was spent, mistakes, certificates, commands."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or folders that contain them, such as a sweep's."""
    out: Path = Path("report.html")
    """The page. A report that is there is replaced, no other file."""
    data_dir: Path | None = None
    """Where published data sets are, for pictures of public test images; nothing is fetched. None: $SCATTERDP_DATA, else ./data."""
    tail: Path | None = None
    """Follow this sweep's folder in the terminal instead."""

    def __post_init__(self) -> None:
        if self.tail is not None and self.runs:
            raise ConfigError(f"tail={self.tail}: follows a sweep and makes no page; leave runs out, or --tail")
        if self.tail is None and not self.runs:
            raise ConfigError("runs: give at least one run folder, or a folder that contains some")


def run(argv: list[str]) -> int:
    """Run ``report`` with its arguments.

    Raises:
        UserError: see the message; then no page was written.
    """
    config = tyro.cli(ReportConfig, prog="scatterdp report", args=argv, use_underscores=True, description=__doc__)
    if config.tail is not None:
        from scatterdp.sweeps.follow import follow  # pyright: ignore[reportMissingImports]

        follow(config.tail)
        return 0
    from scatterdp.report.page import check_out, write_report  # matplotlib takes a second to import

    check_out(config.out)
    found = find_runs(config.runs)
    folder = write_report(found, config.out, data_dir=config.data_dir, say=lambda line: print(line, flush=True))
    for one in found.without_result:
        print(f"without a result: {one.name}: {one.reason}")
    print(f"report: {config.out} ({config.out.stat().st_size / 1e6:.1f} MB), figures in {folder}")
    return 0
