#!/usr/bin/env bash
# Stage 3: select each direction's specialized neurons.
#   scripts/40_select.sh PROFILE MASKS [flags of neuron-spec select]
set -euo pipefail
profile=$1 masks=$2
neuron-spec select "$profile" --output "$masks" "${@:3}"
