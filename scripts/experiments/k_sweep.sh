#!/usr/bin/env bash
# How many neurons are enough? The BLEU gain against k (figure 4 of the paper), over a dense continuation and over the
# dense model, with the sparsity that each k gives. Profiles once; run again to resume, or to add a k.
#   scripts/experiments/k_sweep.sh [--ks K,K,...] [--updates N] [--dense FILE --data-bin DIR --config FILE] [--smoke]
#                                  [--run DIR] [--dry-run]
#     --ks K,K,...    percent (default 70,80,90,95,98,100). 100 is not trained: it drops only neurons that are never
#                     active, which compute nothing, so the dense continuation stands for it
#     --updates N     of every continuation (default 300: 5 minutes on 2 CPU cores for each)
#     --dense FILE    the dense checkpoint (default: the quickstart's, and its corpus), with the two that go with it:
#     --data-bin DIR  made with the checkpoint's vocabulary
#     --config FILE   flags that continue its training (the quickstart: configs/quickstart/continue.yaml)
#     --smoke         the toy corpus from scratch, k 70 and 95, in minutes
#     --run DIR       where everything goes (default runs/k-sweep, or runs/k-sweep-smoke)
#     --dry-run       print every command, run none
# Uses .venv, or else an active environment that has neuron-spec; a GPU if torch sees one.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh

ks='' updates='' dense='' data_bin='' config=''
take_options "--ks --updates --dense --data-bin --config" "$@"
own=false
if [[ -n $dense$data_bin$config ]]; then
  own=true
  [[ -n $dense && -n $data_bin && -n $config ]] || refuse "--dense, --data-bin and --config go together"
  [[ $size != smoke ]] || refuse "--smoke makes its own dense model: drop --dense, --data-bin and --config"
fi
if [[ $size == smoke ]]; then
  ks=${ks:-70,95} updates=${updates:-80} config=configs/smoke/continue.yaml
else
  ks=${ks:-70,80,90,95,98,100} updates=${updates:-300}
fi
default_run k-sweep
needs_list --ks "$ks" '[1-9][0-9]?(\.[0-9]*[1-9])?|0\.[0-9]*[1-9]|100' 'percents above 0 up to 100'
needs_number --updates "$updates"

$dry_run || command -v neuron-spec >/dev/null || scripts/00_install.sh
choose_device
training=("${device[@]}" --log-format simple --log-interval 20 --save-interval-updates 60 --keep-interval-updates 1
  --validate-interval-updates 1000000)

if [[ $size == smoke ]]; then
  data_bin=$run/corpus/data-bin dense=$run/dense/checkpoint_last.pt
  say "corpus: toy"
  stage scripts/10_data.sh toy "$run/corpus" --train-size 1500 --valid-size 60 --test-size 30
  say "pretrain: a dense model with plain fairseq"
  logged "$run/dense/train.log" scripts/20_pretrain.sh "$data_bin" "$run/dense" configs/smoke/pretrain.yaml \
    --max-update 400 --total-num-update 400 "${training[@]}"
elif ! $own; then
  corpus=runs/quickstart/corpus
  data_bin=$corpus/data-bin dense=data/quickstart/dense.pt config=configs/quickstart/continue.yaml
  say "corpus: the quickstart's"
  stage scripts/10_data.sh homeassistant $corpus --sentencepiece data/quickstart/sentencepiece.model
  stage neuron-spec checkpoint check data/quickstart/dense.json --corpus $corpus
fi

say "profile $dense"
stage scripts/30_profile.sh "$data_bin" "$dense" "$run/profile.safetensors" "${device[@]}"

# MASKS SAVE_DIR
continue_training() {
  logged "$2/train.log" scripts/50_specialize.sh "$data_bin" "$dense" "$1" "$2" "$config" \
    --max-update "$updates" --total-num-update "$updates" "${training[@]}"
}

# CHECKPOINT OUTPUT LENGTH_PENALTY ...: of the dense continuation, chosen by validation text, which all others take
evaluate() {
  stage scripts/60_evaluate.sh "$data_bin" "$1" "$2" "${@:3}" "${device[@]}" -- --max-len-a 2 --max-len-b 10
}
taken=(--lenpen-from "$run/evaluation/dense-continuation")

say "dense model, and its continuation: $updates updates without masks"
continue_training none "$run/dense-continuation"
evaluate "$run/dense-continuation/checkpoint_last.pt" "$run/evaluation/dense-continuation" --tune-lenpen
evaluate "$dense" "$run/evaluation/dense" "${taken[@]}"

for k in ${ks//,/ }; do
  say "k = $k"
  of=$run/k-$k
  stage scripts/40_select.sh "$run/profile.safetensors" "$of/masks.safetensors" --k "$k"
  [[ $k != 100 ]] || continue
  continue_training "$of/masks.safetensors" "$of/specialized"
  evaluate "$of/specialized/checkpoint_last.pt" "$of/evaluation/specialized" "${taken[@]}"
done

say "table and figure"
stage neuron-spec sweep "$run"
