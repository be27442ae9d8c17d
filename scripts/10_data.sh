#!/usr/bin/env bash
# Prepare a corpus: raw text, SentencePiece model, data-bin, corpus card.
#   scripts/10_data.sh toy|homeassistant|bible OUTPUT [flags of neuron-spec data]
set -euo pipefail
corpus=$1 output=$2
neuron-spec data "$corpus" --output "$output" "${@:3}"
