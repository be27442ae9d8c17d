#!/usr/bin/env bash
# Neuron Specialization beside what else can be done, on the built-in corpus: dense, dense continuation, random sets,
# adapters per pair and per family, LaSS, bilingual models. Scores with significance, and what each system costs
# (docs/systems.md). Run again to resume. Takes over what homeassistant.sh has trained in the same folder.
#   scripts/experiments/systems.sh [--cpu | --smoke] [--seeds N,N,...] [--without SYSTEM,...] [--adapter-size N]
#                                  [--alpha X] [--stop-after MINUTES] [--run DIR] [--results DIR] [--dry-run]
#     (neither)              6+6 layers on one GPU
#     --cpu                  3+3 layers on 2 CPU cores: beyond homeassistant.sh's hours, about two more a seed of one
#                            core, half of them for bilingual models
#     --smoke                the toy corpus, four directions and one seed, on 2 CPU cores: minutes
#     --seeds N,N,...        each seed has its own dense model and continuations (default 1,2,3; smoke 1)
#     --without SYSTEM,...   leave out some of: adapters-pair, adapters-family, lass, bilingual
#     --adapter-size N       bottleneck of the adapters (default 64; smoke 16)
#     --alpha X              fraction of each matrix that LaSS drops (default 0.7)
#     --stop-after MINUTES   stop then; the same command goes on, training from where it last saved
#     --run DIR              where everything goes (default as homeassistant.sh; smoke: runs/systems-smoke)
#     --results DIR          copy the tables, the comparison and the benchmark there
#     --dry-run              print every command, run none
# Uses .venv, or else an active environment that has neuron-spec.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh
# shellcheck source=scripts/systems.sh
source scripts/systems.sh

without='' adapter_size='' alpha=0.7
take_options "--cpu --seeds --stop-after --results --without --adapter-size --alpha" "$@"
expected=$(IFS='|'; echo "${baselines[*]}")
[[ -z $without ]] || needs_list --without "$without" "$expected" 'adapters-pair, adapters-family, lass or bilingual'
[[ $alpha =~ ^0\.[0-9]+$ ]] || refuse "--alpha: got '$alpha', expected a fraction from 0.0 to below 1"
if [[ $size == smoke ]]; then
  seeds=${seeds:-1} adapter_size=${adapter_size:-16}
  default_run systems
fi
seeds=${seeds:-1,2,3} adapter_size=${adapter_size:-64}
needs_seeds
needs_number --adapter-size "$adapter_size"
# shellcheck source=scripts/homeassistant.sh
source scripts/homeassistant.sh
# All bilingual models together are trained as long as a multilingual one: the tokens of both its stages, in updates of
# the first stage's size (updates x max-tokens x update-freq in the config files).
case $size in
  gpu) bilingual_updates=3300 benchmarking=(--device cuda --dtype fp16 --tokens 2000) ;;
  cpu) bilingual_updates=21000 benchmarking=(--tokens 1000) ;;
  smoke)
    langs=qa,qb # one family
    data+=(--langs "$langs") bilingual_updates=460 benchmarking=(--tokens 200 --sentences 8 --repeats 2)
    ;;
esac

stop_in_time
needs_environment

for system in ${without//,/ }; do
  # shellcheck disable=SC2206  # names have no spaces
  baselines=(${baselines[@]/#$system})
done

# SEED: stages that are over in seconds are run once more to be timed, since homeassistant.sh does not time them
time_extraction() {
  local of=$run/seed-$1/extraction
  stage scripts/timed.sh "$of/profile.json" "$of/profile.safetensors" -- \
    scripts/30_profile.sh "$data_bin" "$run/seed-$1/dense/$checkpoint" "$of/profile.safetensors" "${profiling[@]}"
  stage scripts/timed.sh "$of/select.json" "$of/masks.safetensors" -- \
    scripts/40_select.sh "$of/profile.safetensors" "$of/masks.safetensors"
}

say "corpus: $corpus"
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"

for seed in ${seeds//,/ }; do
  say "seed $seed: pretrain a dense model with plain fairseq"
  pretrain "$seed"
  say "seed $seed: profile and select"
  profile_and_select "$seed"
  time_extraction "$seed"
  for system in "${systems[@]:1}"; do # without dense, which is where they start
    say "seed $seed: continue training, $system"
    continue_training "$seed" "$system"
  done
  evaluate_systems "$seed"
  for system in "${baselines[@]}"; do
    say "seed $seed: train and evaluate, $system"
    continue_training "$seed" "$system"
    evaluate "$seed" "$system"
  done
done

say "compare over seeds"
result=$run/systems-seeds-${seeds//,/-}${without:+-without-${without//,/-}}
compare "$result/against-dense-continuation" evaluation/SYSTEM \
  dense-continuation specialized matched-random other-direction dense "${baselines[@]}"
say "time all systems of seed ${seeds%%,*} in turns"
benchmark=$result/systems.cpu.json
[[ $size != gpu ]] || benchmark=$result/systems.cuda.json
stage scripts/once.sh "$result/benchmark.txt" "$result/against-dense-continuation/comparison.json" -- \
  python benchmarks/systems.py "$run/seed-${seeds%%,*}" --data-bin "$data_bin" --output "$result" "${benchmarking[@]}"
say "table"
stage neuron-spec systems "$run/seed-${seeds%%,*}" --comparison "$result/against-dense-continuation" \
  --benchmark "$benchmark" --output "$result"
if [[ -n $results ]]; then
  say "copy the results to $results"
  keep "$result"/systems.{csv,md} "$benchmark" "$results"
  keep "$result"/against-dense-continuation/comparison.{png,csv,md} "$results/against-dense-continuation"
fi
say "done: read $result/systems.md and $result/*/comparison.md"
