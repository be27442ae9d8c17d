#!/usr/bin/env bash
# Stage 5: translate and score the test set, all directions with one model load.
#   scripts/60_evaluate.sh DATA_BIN CHECKPOINT OUTPUT [flags of neuron-spec evaluate]
set -euo pipefail
data_bin=$1 checkpoint=$2 output=$3
neuron-spec evaluate "$data_bin" --path "$checkpoint" --output "$output" "${@:4}"
