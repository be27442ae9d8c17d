#!/usr/bin/env bash
# Train a dense model of one direction with plain fairseq, for that direction's share of a multilingual training. Run
# again to resume.
#   scripts/bilingual.sh DATA_BIN DIRECTION UPDATES SAVE_DIR CONFIG [flags of fairseq-train]
# UPDATES are those of all directions' models together: the corpus's, or those of --lang-pairs among the flags. CONFIG is that of the multilingual model: its temperature says
# how large the share is, and the warm-up keeps its part of the training.
set -euo pipefail
data_bin=$1 direction=$2 all=$3 save_dir=$4 config=$5
among=()
for ((i = 6; i < $#; i++)); do
  [[ ${!i} != --lang-pairs ]] || among=(--lang-pairs "${@:i+1:1}")
done
share=$(neuron-spec bilingual updates "$data_bin" "$direction" --config "$config" --of "$all" "${among[@]}")
read -r updates warmup <<<"$share"
"$(dirname "$0")/20_pretrain.sh" "$data_bin" "$save_dir" "$config" "${@:6}" --lang-pairs "$direction" \
  --max-update "$updates" --total-num-update "$updates" --warmup-updates "$warmup"
