#!/usr/bin/env bash
# Train a dense model of one direction with plain fairseq, for that direction's share of a multilingual training. Run
# again to resume.
#   scripts/bilingual.sh DATA_BIN DIRECTION UPDATES SAVE_DIR CONFIG [flags of fairseq-train]
# UPDATES are those of all directions' models together. CONFIG is that of the multilingual model: its temperature says
# how large the share is, and the warm-up keeps its part of the training.
set -euo pipefail
data_bin=$1 direction=$2 all=$3 save_dir=$4 config=$5
share=$(neuron-spec bilingual updates "$data_bin" "$direction" --config "$config" --of "$all")
read -r updates warmup <<<"$share"
"$(dirname "$0")/20_pretrain.sh" "$data_bin" "$save_dir" "$config" "${@:6}" --lang-pairs "$direction" \
  --max-update "$updates" --total-num-update "$updates" --warmup-updates "$warmup"
