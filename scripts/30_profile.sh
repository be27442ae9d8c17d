#!/usr/bin/env bash
# Stage 2: count active neurons on the validation set, all directions in one pass.
#   scripts/30_profile.sh DATA_BIN DENSE_CHECKPOINT PROFILE [flags of neuron-spec profile]
set -euo pipefail
data_bin=$1 dense=$2 profile=$3
neuron-spec profile "$data_bin" --path "$dense" --output "$profile" "${@:4}"
