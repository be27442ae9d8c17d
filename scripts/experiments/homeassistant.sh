#!/usr/bin/env bash
# The built-in experiment: twelve languages with English, 24 directions in natural tiers. A dense model, and three ways
# to go on from it: specialized, without masks, through random sets of the same sizes. Run again to resume.
#   scripts/experiments/homeassistant.sh [--cpu | --smoke] [--seeds N,N,...] [--stop-after MINUTES] [--run DIR]
#                                        [--results DIR] [--dry-run]
#     (neither)              6+6 layers on one GPU: under 30 minutes for three seeds, an estimate and not measured
#     --cpu                  3+3 layers on 2 CPU cores: about two hours a seed
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

size=gpu seeds='' stop_after='' run='' results='' again=()
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
    --run) needs_value "$@"; run=$2 again+=("$1" "$2"); shift 2 ;;
    --results) needs_value "$@"; results=$2 again+=("$1" "$2"); shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) refuse "unknown option: $1" ;;
  esac
done
[[ -z $stop_after || ($stop_after =~ ^[0-9]+(\.[0-9]+)?$ && $stop_after == *[1-9]*) ]] ||
  refuse "--stop-after: got '$stop_after', expected minutes above 0"

corpus=homeassistant langs=de,nl,sv,es,pt,it,cs,sk,ru,hu,et,tr
data=(--langs "$langs" --vocab-size 8000 --valid-size 300 --test-size 400)
configs=configs/homeassistant/$size
device=(--cpu) batch=()
often=(--log-format simple --log-interval 20 --save-interval-updates 60 --keep-interval-updates 1
  --validate-interval-updates 1000000)
case $size in
  gpu)
    device=() batch=(--max-tokens 16000)
    pretraining=(--log-format simple --log-interval 100 --save-interval-updates 500 --keep-interval-updates 1
      --validate-interval-updates 1000)
    continuing=("${often[@]}")
    ;;
  cpu)
    pretraining=(--cpu --log-format simple --log-interval 100 --save-interval-updates 500 --keep-interval-updates 1
      --validate-interval-updates 1000)
    continuing=(--cpu "${often[@]}")
    ;;
  smoke)
    corpus=toy data=(--train-size 1500 --valid-size 60 --test-size 30) configs=configs/smoke
    pretraining=(--cpu --max-update 400 --total-num-update 400 "${often[@]}")
    continuing=(--cpu --max-update 60 --total-num-update 60 "${often[@]}")
    seeds=${seeds:-1,2}
    ;;
esac
seeds=${seeds:-1,2,3}
needs_list --seeds "$seeds" '[1-9][0-9]*' 'whole numbers from 1'
if [[ -z $run ]]; then
  run=runs/homeassistant
  [[ $size == gpu ]] || run+=-$size
fi

if [[ -n $stop_after ]] && ! $dry_run; then
  # Whatever runs then is ended: every stage resumes.
  timeout --kill-after=30 "${stop_after}m" "$self" "${again[@]}" &
  trap 'kill $!' INT TERM
  status=0
  wait $! || status=$?
  [[ $status == 124 || $status == 137 ]] || exit "$status"
  say "stopped after $stop_after minutes; to go on: $self ${again[*]} --stop-after $stop_after"
  exit 0
fi

if ! $dry_run; then
  # analyze needs scipy.
  { command -v neuron-spec && python -c 'import scipy'; } &>/dev/null || scripts/00_install.sh analysis
  [[ $size != gpu ]] || has_gpu || refuse "torch sees no GPU here: choose --cpu (hours) or --smoke (minutes)"
fi

say "corpus: $corpus"
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"
data_bin=$run/corpus/data-bin

systems=(dense dense-continuation specialized matched-random)
for seed in ${seeds//,/ }; do
  of=$run/seed-$seed
  dense=$of/dense/checkpoint_last.pt

  say "seed $seed: pretrain a dense model with plain fairseq"
  logged "$of/dense/train.log" scripts/20_pretrain.sh "$data_bin" "$of/dense" "$configs/pretrain.yaml" \
    --seed "$seed" "${pretraining[@]}"

  say "seed $seed: profile and select"
  stage scripts/30_profile.sh "$data_bin" "$dense" "$of/profile.safetensors" "${device[@]}" "${batch[@]}"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/specialized.safetensors"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/matched-random.safetensors" \
    --method matched-random --seed "$seed"

  # Without dense, which is where they start: the same updates on the same batches.
  for system in "${systems[@]:1}"; do
    say "seed $seed: continue training, $system"
    masks=$of/masks/$system.safetensors
    [[ $system != dense-continuation ]] || masks=none
    logged "$of/$system/train.log" scripts/50_specialize.sh "$data_bin" "$dense" "$masks" "$of/$system" \
      "$configs/continue.yaml" --seed "$seed" "${continuing[@]}"
  done

  say "seed $seed: evaluate"
  for system in "${systems[@]}"; do
    stage scripts/60_evaluate.sh "$data_bin" "$of/$system/checkpoint_last.pt" "$of/evaluation/$system" \
      "${device[@]}" "${batch[@]}" -- --max-len-a 2 --max-len-b 10
  done

  say "seed $seed: analyze its sets"
  stage neuron-spec analyze "$of/masks/specialized.safetensors" --corpus-card "$run/corpus/corpus.json" \
    --output "$run/analysis/seed-$seed"
done

# SYSTEM: its evaluations of all seeds, as neuron-spec compare takes them
evaluations() {
  local seed folders=()
  for seed in ${seeds//,/ }; do folders+=("$run/seed-$seed/evaluation/$1"); done
  (IFS=,; echo "$1=${folders[*]}")
}

# BASELINE SYSTEM...
compare() {
  local system compared=()
  for system in "$@"; do compared+=("$(evaluations "$system")"); done
  stage neuron-spec compare "${compared[@]}" --output "$comparison/against-$1"
}

comparison=$run/comparison-seeds-${seeds//,/-}
say "compare over seeds"
compare dense-continuation specialized matched-random dense
compare matched-random specialized

if [[ -n $results ]]; then
  say "copy the results to $results"
  stage mkdir -p "$results"
  stage cp "$run/corpus/corpus.json" "$results"
  for seed in ${seeds//,/ }; do
    stage mkdir -p "$results/seed-$seed/figures"
    for system in "${systems[@]}"; do
      stage cp "$run/seed-$seed/evaluation/$system/scores.csv" "$results/seed-$seed/$system.csv"
    done
    stage cp "$run/analysis/seed-$seed"/{analysis.md,analysis.json,iou.csv} "$results/seed-$seed"
    stage cp "$run/analysis/seed-$seed"/figures/{sparsity,overlap,dendrogram,iou,iou-first-decoder-layer}.png \
      "$results/seed-$seed/figures"
  done
  for baseline in dense-continuation matched-random; do
    stage mkdir -p "$results/against-$baseline"
    stage cp "$comparison/against-$baseline"/comparison.{md,csv,json,png} "$results/against-$baseline"
  done
fi
say "done: read $comparison/*/comparison.md and $run/analysis/*/analysis.md"
