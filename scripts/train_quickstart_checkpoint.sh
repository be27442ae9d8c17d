#!/usr/bin/env bash
# Make the small dense checkpoint shipped in data/quickstart: about an hour and a half of one CPU core. Run again to resume.
#   scripts/train_quickstart_checkpoint.sh [RUN_DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/quickstart-checkpoint}
scripts/00_install.sh
export PATH=$PWD/.venv/bin:$PATH
device=$(python -c 'import torch; print("" if torch.cuda.is_available() else "--cpu")')

scripts/10_data.sh homeassistant "$run/corpus" --vocab-size 4000
scripts/20_pretrain.sh "$run/corpus/data-bin" "$run/dense" configs/quickstart/pretrain.yaml $device \
  --log-format simple --log-interval 100 --save-interval-updates 500 --keep-interval-updates 1 \
  --validate-interval-updates 500
neuron-spec checkpoint shrink --path "$run/dense/checkpoint_last.pt" --corpus "$run/corpus" --output data/quickstart/dense.pt
cp "$run/corpus/spm/sentencepiece.model" data/quickstart/sentencepiece.model
