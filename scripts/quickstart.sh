#!/usr/bin/env bash
# The whole method on real text, from a machine with only Python 3.11 or 3.12 to a report. Run again to resume.
#   scripts/quickstart.sh [--minutes N] [--from-scratch] [--smoke] [--run DIR] [--results DIR] [--dry-run]
#     --minutes N      training time of each of the two systems, on 2 CPU cores (default 5)
#     --from-scratch   pretrain the dense model too (about an hour) instead of taking the shipped one
#     --smoke          the toy corpus from scratch, in under 3 minutes
#     --run DIR        where everything goes (default runs/quickstart, or runs/smoke)
#     --results DIR    copy the report, scores and figures there
#     --dry-run        print every command, run none
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh

minutes=5 from_scratch=false
take_options "--minutes --from-scratch --results" "$@"
[[ $minutes =~ ^[1-9][0-9]*$ ]] || { echo "--minutes: got $minutes, expected a whole number from 1" >&2; exit 2; }

say "install"
$dry_run || scripts/00_install.sh
choose_device

if [[ $size == smoke ]]; then
  run=${run:-runs/smoke} corpus=toy configs=configs/smoke from_scratch=true
  data=(--train-size 2500 --valid-size 100 --test-size 50) updates=150
else
  run=${run:-runs/quickstart} corpus=homeassistant configs=configs/quickstart
  data=() updates=$((minutes * 60)) # about 60 updates a minute on 2 cores
fi
shipped=data/quickstart
if ! $dry_run && [[ -z $results ]] && is_finished $shipped; then
  say "complete already: read $run/report.html or $run/report.md"
  exit 0
fi
data_bin=$run/corpus/data-bin

say "corpus: $corpus"
$from_scratch || data+=(--sentencepiece "$shipped"/sentencepiece.model)
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"

dense=$run/dense/checkpoint_last.pt
if $from_scratch; then
  say "pretrain: a dense model with plain fairseq"
  logged "$run/dense/train.log" scripts/20_pretrain.sh "$data_bin" "$run/dense" $configs/pretrain.yaml "${device[@]}" --log-format simple --log-interval 50 \
    --save-interval-updates 200 --keep-interval-updates 1
else
  dense=$shipped/dense.pt
  say "dense model: the shipped checkpoint, $dense"
  stage neuron-spec checkpoint check $shipped/dense.json --corpus "$run/corpus"
fi

say "profile"
stage scripts/30_profile.sh "$data_bin" "$dense" "$run/profile.safetensors" "${device[@]}"
say "select, and analyze: whose sets overlap, at the method's k and at that of the published figures"
stage scripts/40_select.sh "$run/profile.safetensors" "$run/masks.safetensors"
stage scripts/40_select.sh "$run/profile.safetensors" "$run/k-70/masks.safetensors" --k 70
for of in "$run" "$run/k-70"; do
  stage neuron-spec analyze "$of/masks.safetensors" --corpus-card "$run/corpus/corpus.json" --output "$of/analysis"
done

training=(--max-update "$updates" --total-num-update "$updates" "${device[@]}" --log-format simple --log-interval 20
  --save-interval-updates 60 --keep-interval-updates 1 --validate-interval-updates 100)
say "specialize: $updates updates, each direction through its own neurons"
logged "$run/specialized/train.log" scripts/50_specialize.sh "$data_bin" "$dense" "$run/masks.safetensors" "$run/specialized" $configs/continue.yaml "${training[@]}"
say "control, dense continuation: the same $updates updates without masks"
logged "$run/dense-continuation/train.log" scripts/50_specialize.sh "$data_bin" "$dense" none "$run/dense-continuation" $configs/continue.yaml "${training[@]}"

say "evaluate: the length penalty that validation text chooses for the dense continuation is every system's"
penalty=(--tune-lenpen)
for system in dense-continuation dense specialized; do
  checkpoint=$run/$system/checkpoint_last.pt
  [[ $system == dense ]] && checkpoint=$dense
  stage scripts/60_evaluate.sh "$data_bin" "$checkpoint" "$run/evaluation/$system" "${penalty[@]}" "${device[@]}" \
    -- --max-len-a 2 --max-len-b 10
  penalty=(--lenpen-from "$run/evaluation/dense-continuation")
done

say "report"
stage scripts/70_report.sh "$run"
if [[ -n $results ]]; then
  say "copy the results to $results"
  for system in dense dense-continuation specialized; do
    keep "$run/evaluation/$system/scores.csv" "$results/$system.csv"
  done
  keep "$run"/figures/{iou,overlap,scores}.png "$results/figures"
  keep "$run/report.md" "$run/masks.json" "$results"
fi
$dry_run || finish $shipped
say "done: read $run/report.html or $run/report.md; scores and translations are in $run/evaluation, figures in $run/figures"
