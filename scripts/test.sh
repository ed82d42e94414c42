#!/usr/bin/env bash
# Make the environment and run the whole test suite. Arguments go to pytest:
#   scripts/test.sh -m slow      the tests that take minutes or fetch data sets
#   scripts/test.sh tests/privacy
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/environment.sh
exec .venv/bin/python -m pytest "$@"
