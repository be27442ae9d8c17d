#!/usr/bin/env bash
# The one test command: environment, ruff, mypy, pytest.
#   scripts/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/00_install.sh dev
export PATH=$PWD/.venv/bin:$PATH
ruff check .
ruff format --check .
mypy
pytest "$@"
