#!/usr/bin/env bash
# Make the environment, get CIFAR-10, train a private classifier on it. Ten minutes on two cores, under 6 GB of memory.
#   scripts/quickstart.sh                       scripts/quickstart.sh --dataset=digits   (seconds, no download)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/environment.sh
exec .venv/bin/python -m scatterdp.baselines --dataset=cifar10 --bn_noise_multiplier=8 --feature_dtype=float16 "$@"
