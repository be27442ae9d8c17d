#!/usr/bin/env bash
# Does specialization make up for fewer layers? The BLEU change of shallower models against the deepest dense one, into
# and out of English, with specialization and without (figure 3 of the paper). Run again to resume, or to add a depth.
#   scripts/experiments/depth_sweep.sh [--depths N,N,...] [--pretrain-updates N] [--updates N] [--smoke] [--run DIR]
#                                      [--dry-run]
#     --depths N,N,...      layers of the encoder, and as many of the decoder (default 1,2,3,6)
#     --pretrain-updates N  of every dense model (default 3000: on 2 CPU cores 10 to 40 minutes by depth, estimated)
#     --updates N           of every continuation (default 300)
#     --smoke               the toy corpus, depths 1 and 2, in minutes
#     --run DIR             where everything goes (default runs/depth-sweep, or runs/depth-sweep-smoke)
#     --dry-run             print every command, run none
# The corpus and the models' other sizes are the quickstart's. Uses .venv, or else an active environment that
# has neuron-spec; a GPU if torch sees one.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh

depths='' pretrain_updates='' updates=''
take_options "--depths --pretrain-updates --updates" "$@"
if [[ $size == smoke ]]; then
  depths=${depths:-1,2} pretrain_updates=${pretrain_updates:-300} updates=${updates:-60}
  corpus=toy configs=configs/smoke data=(--train-size 1500 --valid-size 60 --test-size 30)
else
  depths=${depths:-1,2,3,6} pretrain_updates=${pretrain_updates:-3000} updates=${updates:-300}
  corpus=homeassistant configs=configs/quickstart data=()
fi
default_run depth-sweep
needs_list --depths "$depths" '[1-9][0-9]*' 'whole numbers from 1'
needs_number 'number of updates' "$pretrain_updates"
needs_number 'number of updates' "$updates"

$dry_run || command -v neuron-spec >/dev/null || scripts/00_install.sh
choose_device
often=("${device[@]}" --log-format simple --log-interval 50 --save-interval-updates 100 --keep-interval-updates 1
  --validate-interval-updates 1000000)

say "corpus: $corpus"
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"
data_bin=$run/corpus/data-bin

for depth in ${depths//,/ }; do
  of=$run/depth-$depth
  dense=$of/dense/checkpoint_last.pt
  layers=(--encoder-layers "$depth" --decoder-layers "$depth")

  say "depth $depth: pretrain a dense model with plain fairseq"
  logged "$of/dense/train.log" scripts/20_pretrain.sh "$data_bin" "$of/dense" $configs/pretrain.yaml "${layers[@]}" \
    --max-update "$pretrain_updates" --total-num-update "$pretrain_updates" "${often[@]}"
  stage scripts/30_profile.sh "$data_bin" "$dense" "$of/profile.safetensors" "${device[@]}"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks.safetensors"

  for system in dense-continuation specialized; do
    say "depth $depth: continue training, $system"
    masks=$of/masks.safetensors
    [[ $system == specialized ]] || masks=none
    logged "$of/$system/train.log" scripts/50_specialize.sh "$data_bin" "$dense" "$masks" "$of/$system" \
      $configs/continue.yaml "${layers[@]}" --max-update "$updates" --total-num-update "$updates" "${often[@]}"
  done
  penalty=(--tune-lenpen) # by validation text, of the dense continuation; the others of this depth take it
  for system in dense-continuation dense specialized; do
    stage scripts/60_evaluate.sh "$data_bin" "$of/$system/checkpoint_last.pt" "$of/evaluation/$system" "${penalty[@]}" \
      "${device[@]}" -- --max-len-a 2 --max-len-b 10
    penalty=(--lenpen-from "$of/evaluation/dense-continuation")
  done
done

say "table and figure"
stage neuron-spec sweep "$run"
