#!/usr/bin/env bash
# Make .venv and install the project with what its tests need; nothing to do when that is done already.
#   scripts/environment.sh            PYTHON=python3.12 scripts/environment.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is $("$python" --version 2>&1); Python 3.11 or newer is needed, name one with PYTHON=…" >&2
    exit 2
}
stamp=.venv/installed
if [ -f "$stamp" ] && [ "$stamp" -nt requirements.txt ] && [ "$stamp" -nt pyproject.toml ]; then
    exit 0
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "making the environment in .venv (some minutes the first time)" >&2
# torch by itself first: pip then never weighs another build of it.
.venv/bin/python -m pip install --quiet "$(grep '^torch==' requirements.txt)"
.venv/bin/python -m pip install --quiet -r requirements.txt -e '.[dev]'
touch "$stamp"
