#!/usr/bin/env bash
# Make .venv beside the checkout and install neuron_spec into it. Needs Python 3.11 or 3.12; skips what is done.
# Without a checkout, it needs an environment that has neuron-spec.
#   scripts/00_install.sh [EXTRAS]        EXTRAS such as dev
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}

# Written by neuron-spec init: the environment that has neuron-spec is the one.
if [[ ! -f setup.py ]]; then
  command -v neuron-spec >&2 || { echo "no neuron-spec here: activate the environment that has it" >&2; exit 2; }
  exit 0
fi
done_mark=.venv/.installed-${extras:-plain}

if [[ ! -e $done_mark || setup.py -nt $done_mark ]]; then
  python=$(command -v python3.11 || command -v python3.12 || command -v python3)
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    { echo "neuron_spec needs Python 3.11 or 3.12; found $("$python" --version)" >&2; exit 2; }
  [[ -x .venv/bin/python ]] || "$python" -m venv .venv
  # Where there is no GPU, the torch that everything was measured with.
  if ! .venv/bin/python -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
    .venv/bin/pip install --quiet torch==2.13.0
  fi
  .venv/bin/pip install --quiet --editable ".${extras:+[$extras]}"
  touch "$done_mark"
fi
echo "installed: .venv/bin/neuron-spec" >&2
