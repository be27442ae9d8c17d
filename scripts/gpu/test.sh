#!/usr/bin/env bash
# What a GPU may not change, as tests: layers, counts, training in single and half precision, likelihood, studies. About 2 minutes.
#   scripts/gpu/test.sh [--wheels DIR]
#     --wheels DIR   install from DIR, made by scripts/gpu/wheels.sh, into a temporary folder; needs no network
# Uses .venv where there is one, else the machine's python3, which needs pytest.
set -euo pipefail
takes=--wheels
# shellcheck source=scripts/gpu/environment.sh
source "$(dirname "$0")/environment.sh"
python3 -m pytest -q -m gpu tests/test_gpu.py
