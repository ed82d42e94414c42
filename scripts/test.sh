#!/usr/bin/env bash
# Make the environment and run the whole test suite on all cores. Arguments go to pytest:
#   scripts/test.sh -m slow      the tests that take minutes or fetch data sets
#   scripts/test.sh tests/privacy
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/environment.sh
# A process a core; one thread each, in what the tests start too.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadscope "$@"
