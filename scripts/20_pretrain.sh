#!/usr/bin/env bash
# Stage 1: pretrain a dense multilingual transformer with plain fairseq. Run again to resume.
#   scripts/20_pretrain.sh DATA_BIN SAVE_DIR CONFIG [flags of fairseq-train]
set -euo pipefail
data_bin=$1 save_dir=$2 config=$3
mapfile -t flags < <(neuron-spec flags "$config")
[[ ${#flags[@]} -gt 0 ]] || exit 2
mkdir -p "$save_dir"

# --user-dir only so that current torch agrees to read the checkpoint when resuming; the model is fairseq's.
"$(dirname "$0")/once.sh" "$save_dir/complete.txt" "$data_bin/lang_pairs.txt" -- \
  fairseq-train "$data_bin" --user-dir "$(neuron-spec user-dir)" \
  --task translation_multi_simple_epoch \
  --langs "$(paste -sd, "$data_bin/langs.txt")" --lang-pairs "$data_bin/lang_pairs.txt" \
  --save-dir "$save_dir" --no-epoch-checkpoints \
  "${flags[@]}" "${@:4}"
