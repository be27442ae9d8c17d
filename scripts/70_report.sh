#!/usr/bin/env bash
# Stage 6: a run's report, report.html and report.md: scores, significance, sets, figures, sample translations.
#   scripts/70_report.sh RUN_DIR
set -euo pipefail
neuron-spec report "$1" "${@:2}"
