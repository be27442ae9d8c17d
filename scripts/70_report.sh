#!/usr/bin/env bash
# Stage 6: tables, figures and sample translations of a run.
#   scripts/70_report.sh RUN_DIR
set -euo pipefail
neuron-spec report "$1" "${@:2}"
