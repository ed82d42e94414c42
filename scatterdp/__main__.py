"""``python -m scatterdp COMMAND``, also installed as ``scatterdp``."""

from __future__ import annotations

import importlib
import sys

from scatterdp.exits import check_one_process, exit_code

COMMANDS = {
    "fit": "a private classifier of your own features or images",
    "predict": "classes and probabilities by a fitted classifier",
    "finetune": "a network pre-trained on public images, tuned on private ones",
    "extract": "compute and cache features",
    "cache": "show, check and remove cached features",
    "synthetic": "draw a sheet of synthetic images",
    "sweep": "many runs of one command, and their table",
    "report": "a page about runs: results, curves, certificates",
    "benchmark": "measure what clipping per example costs",
    "certificate": "print and check what a run guarantees",
    "budget": "how much noise a budget needs",
}

SHARED = ("fit", "extract")
"""Commands that several processes (``torchrun``) do together."""


def main() -> int:
    """Hand the rest of the command line to the named command."""
    names = sys.argv[1:2]
    if not names or names[0] in ("-h", "--help"):
        print("usage: scatterdp COMMAND …\n\ncommands:")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<12}{purpose}")
        print("\nThe published experiment is `python -m scatterdp.baselines --help`.")
        return 0 if names else 2
    if names[0] not in COMMANDS:
        print(f"error: command {names[0]!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2

    def run() -> int:
        if names[0] not in SHARED:
            check_one_process(f"command {names[0]}")
        return importlib.import_module(f"scatterdp.commands.{names[0]}").run(sys.argv[2:])

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
