# shellcheck shell=bash
# Sourced after pipeline.sh by experiments that compare, over seeds, a dense model and three ways to go on from it:
# specialized, without masks, through random sets of the same sizes. They set seeds, run, data_bin, configs (a folder),
# checkpoint (which of fairseq's a stage hands on) and the flags of stages: pretraining, profiling, continuing,
# evaluating; comparing too, where the default will not do.

systems=(dense dense-continuation specialized matched-random)
comparing=()

# MINUTES OPTION ...: run this script again with the options, and end it then, whatever runs: every stage resumes
run_for() {
  local minutes=$1 status=0
  shift
  timeout --kill-after=30 "${minutes}m" "${self:?}" "$@" &
  trap 'kill $!' INT TERM
  wait $! || status=$?
  [[ $status == 124 || $status == 137 ]] || exit "$status"
  say "stopped after $minutes minutes; to go on: $self $* --stop-after $minutes"
  exit 0
}

# VALUE of --stop-after
needs_minutes() {
  [[ $1 =~ ^[0-9]+(\.[0-9]+)?$ && $1 == *[1-9]* ]] || refuse "--stop-after: got '$1', expected minutes above 0"
}

# SEED
pretrain() {
  logged "$run/seed-$1/dense/train.log" scripts/20_pretrain.sh "$data_bin" "$run/seed-$1/dense" \
    "$configs/pretrain.yaml" --seed "$1" "${pretraining[@]}"
}

# SEED
profile_and_select() {
  local of=$run/seed-$1
  stage scripts/30_profile.sh "$data_bin" "$of/dense/$checkpoint" "$of/profile.safetensors" "${profiling[@]}"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/specialized.safetensors"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/matched-random.safetensors" \
    --method matched-random --seed "$1"
}

# SEED SYSTEM: all start from the dense model, with the same updates on the same batches
continue_training() {
  local of=$run/seed-$1 masks=$run/seed-$1/masks/$2.safetensors
  [[ $2 != dense-continuation ]] || masks=none
  logged "$of/$2/train.log" scripts/50_specialize.sh "$data_bin" "$of/dense/$checkpoint" "$masks" "$of/$2" \
    "$configs/continue.yaml" --seed "$1" "${continuing[@]}"
}

# SEED SYSTEM
evaluate() {
  stage scripts/60_evaluate.sh "$data_bin" "$run/seed-$1/$2/$checkpoint" "$run/seed-$1/evaluation/$2" \
    "${evaluating[@]}"
}

# SEED
analyze() {
  stage neuron-spec analyze "$run/seed-$1/masks/specialized.safetensors" --corpus-card "$run/corpus/corpus.json" \
    --output "$run/analysis/seed-$1"
}

# SYSTEM: its evaluations of all seeds, as neuron-spec compare takes them
evaluations() {
  local seed folders=()
  for seed in ${seeds//,/ }; do folders+=("$run/seed-$seed/evaluation/$1"); done
  (IFS=,; echo "$1=${folders[*]}")
}

# BASELINE SYSTEM ...
compare() {
  local system compared=()
  for system in "$@"; do compared+=("$(evaluations "$system")"); done
  stage neuron-spec compare "${compared[@]}" --output "$comparison/against-$1" "${comparing[@]}"
}

compare_systems() {
  comparison=$run/comparison-seeds-${seeds//,/-}
  compare dense-continuation specialized matched-random dense
  compare matched-random specialized
}
