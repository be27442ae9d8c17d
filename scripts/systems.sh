# shellcheck shell=bash
# Sourced after pipeline.sh by experiments that compare, over seeds, a dense model and ways to go on from it: all
# systems, and how each is trained. The experiments set seeds, run, data_bin, configs (a folder), checkpoint (which of
# fairseq's a stage hands on) and the flags of stages: pretraining, profiling, continuing, evaluating; comparing, among
# (flags that say which directions are trained) and average (evaluate the mean of so many best checkpoints) where the
# default will not do. baseline is the system whose length penalty, chosen by validation text, all of its seed are
# translated with; empty: evaluating says how.

systems=(dense dense-continuation specialized matched-random other-direction)
baselines=(adapters-pair adapters-family lass bilingual)
subnetworks=(full full-longer static dynamic meta-full meta-static meta-dynamic)
comparing=() among=() baseline=dense-continuation

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
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/other-direction.safetensors" --method other-direction
}

# SEED SYSTEM: all start from the dense model and see the same sentences in each update, but for bilingual models
continue_training() {
  local of=$run/seed-$1 masks=none number=${updates-} flags=()
  case $2 in
    dense-continuation) ;;
    ceiling) train_ceiling "$1" ceiling; return ;;
    specialized | matched-random | other-direction) masks=$of/masks/$2.safetensors ;;
    adapters-*)
      flags=(--arch neuron_spec_adapters_tiny --adapters "${2#adapters-}" --adapter-size "${adapter_size:?}")
      ;;
    lass) # a copy is fine-tuned per direction for masks, then all are trained jointly with them
      flags=(--arch neuron_spec_lass_tiny --weight-masks "$of/masks/lass-${alpha:?}.safetensors")
      stage neuron-spec lass "$data_bin" --path "$of/dense/$checkpoint" --alpha "$alpha" \
        --config "$configs/finetune.yaml" --work "$of/lass-fine-tuning" --output "${flags[3]}" "${device[@]}" \
        -- --seed "$1"
      ;;
    bilingual) train_bilingual "$1" "$(directions "$langs")" "$of/evaluation/bilingual"; return ;;
    full | full-longer | static | dynamic | meta-*)
      [[ $2 == *full* ]] || masks=$of/masks/static.safetensors
      [[ $2 != full-longer ]] || number=${longer:?}
      flags=(--save-interval-updates "$(((number + 2) / 3))" --keep-interval-updates 2
        --max-update "$number" --total-num-update "$number" --task neuron_spec_meta)
      if [[ $2 == meta-* ]]; then flags+=(--meta "${meta:?}" "${episode[@]}"); else flags+=(--meta none); fi
      [[ $2 != *dynamic ]] || flags+=(--dynamic-masks "${dynamic:?}")
      ;;
  esac
  train_on "$1" "$2" "$of/dense/$checkpoint" "$masks" "${flags[@]}"
}

# SEED SYSTEM [flags of fairseq-train]: each direction goes on with a copy of every FFN of its own
train_ceiling() {
  local start=$run/seed-$1/ceiling-start flags=()
  stage neuron-spec unshare --path "$run/seed-$1/dense/$checkpoint" --output "$start" "${among[@]}"
  # In a dry run there is no file to read yet.
  if ! $dry_run; then
    mapfile -t flags < <(neuron-spec flags "$start/flags.yaml")
    [[ ${#flags[@]} -gt 0 ]] || exit 2
  fi
  train_on "$1" "$2" "$start/dense.pt" "$start/masks.safetensors" "${@:3}" "${flags[@]}"
}

# SEED SYSTEM CHECKPOINT MASKS|none [flags of fairseq-train]
train_on() {
  local of=$run/seed-$1/$2
  logged "$of/train.log" scripts/50_specialize.sh "$data_bin" "$3" "$4" "$of" "$configs/continue.yaml" --seed "$1" \
    "${among[@]}" "${continuing[@]}" "${@:5}"
}

# LANG,... : en-LANG and LANG-en of each
directions() {
  local lang pairs=()
  for lang in ${1//,/ }; do pairs+=("en-$lang" "$lang-en"); done
  (IFS=,; echo "${pairs[*]}")
}

# SEED DIRECTION,... OUTPUT: a model for each direction, and their evaluations joined into one
train_bilingual() {
  local of direction evaluations=()
  for direction in ${2//,/ }; do
    of=$run/seed-$1/bilingual/$direction
    logged "$of/train.log" scripts/bilingual.sh "$data_bin" "$direction" "${bilingual_updates:?}" "$of" \
      "$configs/pretrain.yaml" --seed "$1" "${among[@]}" "${device[@]}" "${often[@]}"
    translate_and_score "$1" bilingual "$of/$checkpoint" "$of/evaluation"
    evaluations+=("$of/evaluation")
  done
  stage neuron-spec bilingual join "${evaluations[@]}" --output "$3"
}

# SEED SYSTEM; the baseline first
evaluate() {
  [[ $2 != bilingual ]] || return 0 # as it is trained
  local of=$run/seed-$1/$2 path
  path=$of/$checkpoint
  if [[ -n ${average-} ]]; then
    path=$of/average-$average.pt
    stage neuron-spec checkpoint average --inputs "$of" --num-best-checkpoints "$average" --output "$path"
  fi
  translate_and_score "$1" "$2" "$path" "$run/seed-$1/evaluation/$2"
}

# SEED: those that nearly every experiment has
evaluate_systems() {
  local system
  evaluate "$1" "$baseline"
  for system in "${systems[@]}"; do
    [[ $system == "$baseline" ]] || evaluate "$1" "$system"
  done
}

# SEED SYSTEM CHECKPOINT OUTPUT
translate_and_score() {
  local penalty=()
  case $baseline in
    '') ;;
    "$2") penalty=(--tune-lenpen) ;;
    *) penalty=(--lenpen-from "$run/seed-$1/evaluation/$baseline") ;;
  esac
  stage scripts/60_evaluate.sh "$data_bin" "$3" "$4" "${penalty[@]}" "${evaluating[@]}"
}

# SEED
analyze() {
  stage neuron-spec analyze "$run/seed-$1/masks/specialized.safetensors" --corpus-card "$run/corpus/corpus.json" \
    --output "$run/analysis/seed-$1"
}

# FOLDER EVALUATION BASELINE SYSTEM ...: compare all seeds; of EVALUATION, in a seed's folder, SYSTEM is the name
compare() {
  local output=$1 evaluation=$2 system seed folders compared=()
  shift 2
  for system in "$@"; do
    folders=()
    for seed in ${seeds//,/ }; do folders+=("$run/seed-$seed/${evaluation/SYSTEM/$system}"); done
    compared+=("$system=$(IFS=,; echo "${folders[*]}")")
  done
  stage neuron-spec compare "${compared[@]}" --output "$output" "${comparing[@]}"
}

# COMPARISONS, those of neuron-spec compare: read by the rules of docs/bible.md
read_outcome() {
  local seed folders=()
  for seed in ${seeds//,/ }; do folders+=("$run/seed-$seed"); done
  stage neuron-spec verdict "$1" --seeds "${folders[@]}" --output "$run/verdict"
}

compare_systems() {
  comparison=$run/comparison-seeds-${seeds//,/-}
  compare "$comparison/against-dense-continuation" evaluation/SYSTEM \
    "${systems[@]:1}" dense
  compare "$comparison/against-matched-random" evaluation/SYSTEM matched-random specialized
  compare "$comparison/against-other-direction" evaluation/SYSTEM other-direction specialized
}
