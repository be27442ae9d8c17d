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

size=gpu seeds='' without='' adapter_size='' alpha=0.7 stop_after='' run='' results='' again=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --cpu | --smoke)
      [[ $size == gpu ]] || refuse "--cpu and --smoke are two sizes: choose one"
      size=${1#--} again+=("$1")
      shift
      ;;
    --dry-run) dry_run=true; shift ;;
    --stop-after) needs_value "$@"; stop_after=$2; shift 2 ;;
    --seeds) needs_value "$@"; seeds=$2 again+=("$1" "$2"); shift 2 ;;
    --without) needs_value "$@"; without=$2 again+=("$1" "$2"); shift 2 ;;
    --adapter-size) needs_value "$@"; adapter_size=$2 again+=("$1" "$2"); shift 2 ;;
    --alpha) needs_value "$@"; alpha=$2 again+=("$1" "$2"); shift 2 ;;
    --run) needs_value "$@"; run=$2 again+=("$1" "$2"); shift 2 ;;
    --results) needs_value "$@"; results=$2 again+=("$1" "$2"); shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) refuse "unknown option: $1" ;;
  esac
done
[[ -z $stop_after ]] || needs_minutes "$stop_after"
[[ -z $without ]] || needs_list --without "$without" 'adapters-pair|adapters-family|lass|bilingual' \
  'adapters-pair, adapters-family, lass or bilingual'
[[ $alpha =~ ^0\.[0-9]+$ ]] || refuse "--alpha: got '$alpha', expected a fraction from 0.0 to below 1"
if [[ $size == smoke ]]; then
  seeds=${seeds:-1} adapter_size=${adapter_size:-16} run=${run:-runs/systems-smoke}
fi
seeds=${seeds:-1,2,3} adapter_size=${adapter_size:-64}
needs_list --seeds "$seeds" '[1-9][0-9]*' 'whole numbers from 1'
[[ $adapter_size =~ ^[1-9][0-9]*$ ]] || refuse "--adapter-size: got '$adapter_size', expected a whole number from 1"
if [[ -z $run ]]; then
  run=runs/homeassistant
  [[ $size == gpu ]] || run+=-$size
fi
# shellcheck source=scripts/homeassistant.sh
source scripts/homeassistant.sh
# All bilingual models together are trained as long as a multilingual one: the tokens of both its stages, in updates of
# the first stage's size (updates x max-tokens x update-freq in the config files).
case $size in
  gpu) bilingual_updates=3300 benchmarking=(--device cuda --dtype fp16 --tokens 2000) ;;
  cpu) bilingual_updates=4800 benchmarking=(--tokens 1000) ;;
  smoke)
    langs=qa,qb # one family
    data+=(--langs "$langs") bilingual_updates=460 benchmarking=(--tokens 200 --sentences 8 --repeats 2)
    ;;
esac

if [[ -n $stop_after ]] && ! $dry_run; then run_for "$stop_after" "${again[@]}"; fi
needs_environment

baselines=()
for system in adapters-pair adapters-family lass bilingual; do
  [[ ,$without, == *,$system,* ]] || baselines+=("$system")
done
directions=()
for lang in ${langs//,/ }; do directions+=("en-$lang" "$lang-en"); done

# SEED: stages that are over in seconds are run once more to be timed, since homeassistant.sh does not time them
time_extraction() {
  local of=$run/seed-$1/extraction
  stage scripts/timed.sh "$of/profile.json" "$of/profile.safetensors" -- \
    scripts/30_profile.sh "$data_bin" "$run/seed-$1/dense/$checkpoint" "$of/profile.safetensors" "${profiling[@]}"
  stage scripts/timed.sh "$of/select.json" "$of/masks.safetensors" -- \
    scripts/40_select.sh "$of/profile.safetensors" "$of/masks.safetensors"
}

# SEED SYSTEM FLAG ...: as continue_training, of another architecture
continue_as() {
  local of=$run/seed-$1
  logged "$of/$2/train.log" scripts/50_specialize.sh "$data_bin" "$of/dense/$checkpoint" none "$of/$2" \
    "$configs/continue.yaml" --seed "$1" "${continuing[@]}" "${@:3}"
}

# SEED: fine-tune per direction for masks, then train jointly with them
train_lass() {
  local of=$run/seed-$1
  stage neuron-spec lass "$data_bin" --path "$of/dense/$checkpoint" --alpha "$alpha" \
    --config "$configs/finetune.yaml" --work "$of/lass-fine-tuning" --output "$of/masks/lass-$alpha.safetensors" \
    "${device[@]}" -- --seed "$1"
  continue_as "$1" lass --arch neuron_spec_lass_tiny --weight-masks "$of/masks/lass-$alpha.safetensors"
}

# SEED: a model per direction, and their evaluations joined into one
train_and_evaluate_bilingual() {
  local of=$run/seed-$1 direction evaluations=()
  for direction in "${directions[@]}"; do
    logged "$of/bilingual/$direction/train.log" scripts/bilingual.sh "$data_bin" "$direction" "$bilingual_updates" \
      "$of/bilingual/$direction" "$configs/pretrain.yaml" --seed "$1" "${device[@]}" "${often[@]}"
    stage scripts/60_evaluate.sh "$data_bin" "$of/bilingual/$direction/$checkpoint" \
      "$of/bilingual/$direction/evaluation" "${evaluating[@]}"
    evaluations+=("$of/bilingual/$direction/evaluation")
  done
  stage neuron-spec bilingual join "${evaluations[@]}" --output "$of/evaluation/bilingual"
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
  for system in "${systems[@]}"; do evaluate "$seed" "$system"; done
  for system in "${baselines[@]}"; do
    say "seed $seed: train and evaluate, $system"
    case $system in
      adapters-*)
        continue_as "$seed" "$system" --arch neuron_spec_adapters_tiny --adapters "${system#adapters-}" \
          --adapter-size "$adapter_size"
        ;;
      lass) train_lass "$seed" ;;
      bilingual) train_and_evaluate_bilingual "$seed" ;;
    esac
    [[ $system == bilingual ]] || evaluate "$seed" "$system"
  done
done

say "compare over seeds"
result=$run/systems-seeds-${seeds//,/-}${without:+-without-${without//,/-}}
comparison=$result # compare adds against-BASELINE
compare dense-continuation specialized matched-random dense "${baselines[@]}"
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
  stage mkdir -p "$results/against-dense-continuation"
  stage cp "$run/corpus/corpus.json" "$result"/systems.{md,csv,json} "$benchmark" "$results"
  stage cp "$result"/against-dense-continuation/comparison.{md,csv,json,png} "$results/against-dense-continuation"
fi
say "done: read $result/systems.md and $result/*/comparison.md"
