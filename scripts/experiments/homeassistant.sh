#!/usr/bin/env bash
# The built-in experiment: twelve languages with English, 24 directions in natural tiers. A dense model, and five ways
# to go on from it: specialized, without masks, through random sets of the same sizes, through another direction's sets,
# and the ceiling, each direction with its own copy of every FFN. Run again to resume.
#   scripts/experiments/homeassistant.sh [--cpu | --smoke] [--seeds N,N,...] [--stop-after MINUTES] [--run DIR]
#                                        [--results DIR] [--dry-run]
#     (neither)              6+6 layers on one GPU: under 30 minutes for three seeds, an estimate and not measured
#     --cpu                  3+3 layers on CPUs: about four hours of one core a seed
#     --smoke                the toy corpus and two seeds on 2 CPU cores: minutes
#     --seeds N,N,...        each seed has its own dense model, sets and continuations (default 1,2,3; smoke 1,2)
#     --stop-after MINUTES   stop then; the same command goes on, training from where it last saved
#     --run DIR              where everything goes (default runs/homeassistant, with -cpu or -smoke)
#     --results DIR          copy scores, comparisons and analyses there, without texts and checkpoints
#     --dry-run              print every command, run none
# Uses .venv, or else an active environment that has neuron-spec.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh
# shellcheck source=scripts/systems.sh
source scripts/systems.sh

take_options "--cpu --seeds --stop-after --results" "$@"
if [[ $size == smoke ]]; then seeds=${seeds:-1,2}; fi
seeds=${seeds:-1,2,3}
needs_seeds
# shellcheck source=scripts/homeassistant.sh
source scripts/homeassistant.sh
systems+=(ceiling)

stop_in_time
needs_environment

say "corpus: $corpus"
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"

for seed in ${seeds//,/ }; do
  say "seed $seed: pretrain a dense model with plain fairseq"
  pretrain "$seed"
  say "seed $seed: profile and select"
  profile_and_select "$seed"
  for system in "${systems[@]:1}"; do # without dense, which is where they start
    say "seed $seed: continue training, $system"
    continue_training "$seed" "$system"
  done
  say "seed $seed: evaluate"
  evaluate_systems "$seed"
  say "seed $seed: analyze its sets"
  analyze "$seed"
done
say "compare over seeds"
compare_systems
read_outcome "$comparison"
say "report"
stage scripts/70_report.sh "$run"

if [[ -n $results ]]; then
  say "copy the results to $results"
  keep "$run/corpus/corpus.json" "$results"
  seed=${seeds%%,*}
  keep "$run/analysis/seed-$seed"/figures/{iou-first-decoder-layer,overlap}.png "$results/seed-$seed/figures"
  for seed in ${seeds//,/ }; do
    for system in "${systems[@]}"; do
      keep "$run/seed-$seed/evaluation/$system/scores.csv" "$results/seed-$seed/$system.csv"
    done
    keep "$run/analysis/seed-$seed/analysis.md" "$results/seed-$seed"
  done
  keep "$run"/verdict/{stage-1.png,verdict.{png,md,json}} "$results"
  keep "$comparison/against-dense-continuation"/comparison.{csv,md} "$results/against-dense-continuation"
  for control in matched-random other-direction; do
    keep "$comparison/against-$control"/comparison.{md,csv} "$results/against-$control"
  done
fi
say "done: read $run/report.html, $run/verdict/verdict.md, $comparison/*/comparison.md and $run/analysis/*/analysis.md"
