#!/usr/bin/env bash
# Stage 4: continue training from the dense checkpoint, each direction through its own neurons. Run again to resume.
# With "none" for MASKS this is the control, dense continuation: the same updates on the same batches, no masks.
#   scripts/50_specialize.sh DATA_BIN DENSE_CHECKPOINT MASKS|none SAVE_DIR CONFIG [flags of fairseq-train]
# All GPUs of the machine train, or --distributed-world-size N of them; on several nodes, start it through torchrun.
set -euo pipefail
data_bin=$1 dense=$2 masks=$3 save_dir=$4 config=$5
# shellcheck source=scripts/training.sh
source "$(dirname "$0")/training.sh"
gpus=$(gpus "${@:6}")
mapfile -t flags < <(neuron-spec flags "$config" --gpus "$gpus" --keep "$save_dir")
[[ ${#flags[@]} -gt 0 ]] || exit 2
inputs=("$dense")
[[ $masks == none ]] || { flags+=(--neuron-masks "$masks"); inputs+=("$masks"); }

"$(dirname "$0")/once.sh" "$save_dir/complete.txt" "${inputs[@]}" -- \
  fairseq-train "$(data_path "$data_bin")" \
  --task neuron_specialization --finetune-from-model "$dense" \
  --langs "$(paste -sd, "$data_bin/langs.txt")" --lang-pairs "$data_bin/lang_pairs.txt" \
  --save-dir "$save_dir" --no-epoch-checkpoints \
  "${flags[@]}" "${@:6}" -- --user-dir "$(neuron-spec user-dir)" "${rank[@]}"
