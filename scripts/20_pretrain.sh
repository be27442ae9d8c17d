#!/usr/bin/env bash
# Stage 1: pretrain a dense multilingual transformer with plain fairseq. Run again to resume.
#   scripts/20_pretrain.sh DATA_BIN SAVE_DIR CONFIG [flags of fairseq-train]
# All GPUs of the machine train, or --distributed-world-size N of them; on several nodes, start it through torchrun.
set -euo pipefail
data_bin=$1 save_dir=$2 config=$3
# shellcheck source=scripts/training.sh
source "$(dirname "$0")/training.sh"
gpus=$(gpus "${@:4}")
mapfile -t flags < <(neuron-spec flags "$config" --gpus "$gpus" --keep "$save_dir")
[[ ${#flags[@]} -gt 0 ]] || exit 2

# --user-dir only so that current torch agrees to read the checkpoint when resuming; the model is fairseq's. Where the
# package lies is not what is trained: a checkout that was moved goes on with its runs.
"$(dirname "$0")/once.sh" "$save_dir/complete.txt" "$data_bin/lang_pairs.txt" -- \
  fairseq-train "$(data_path "$data_bin")" \
  --task translation_multi_simple_epoch \
  --langs "$(paste -sd, "$data_bin/langs.txt")" --lang-pairs "$data_bin/lang_pairs.txt" \
  --save-dir "$save_dir" --no-epoch-checkpoints \
  "${flags[@]}" "${@:4}" -- --user-dir "$(neuron-spec user-dir)" "${rank[@]}"
