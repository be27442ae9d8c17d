#!/usr/bin/env bash
# The one test command: environment, ruff, mypy, pytest (which builds the documentation too).
#   scripts/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/00_install.sh dev,docs
export PATH=$PWD/.venv/bin:$PATH
ruff check .
ruff format --check .
mypy
# Two files of tests at a time, one thread each; what a file's tests share is made once. For --pdb run pytest itself.
OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
