# shellcheck shell=bash
# Sourced after pipeline.sh and systems.sh by the recipes of the paper's corpora: their options, their steps in order,
# and the same steps as SLURM jobs. They set corpus, seeds, sources (options of neuron-spec data that say where the
# text is), parameters_millions, corpus_gb, the functions full_size and smoke_size, and then call recipe.

checkpoint=checkpoint_best.pt baseline='' # beam 5 and fairseq's length penalty, beside published scores
gpus='' nodes=1 average='' slurm='' submit=false data=() reporting=()

recipe() {
  take_options "--seeds --gpus --nodes --average --slurm --submit --stop-after" "$@"
  check_options
  choose_size
  stop_in_time
  if ! $dry_run && [[ -z $slurm ]]; then
    # Official scoring needs sacremoses.
    { command -v neuron-spec && python -c 'import sacremoses'; } &>/dev/null || scripts/00_install.sh official-scoring
  fi
  [[ $size == smoke ]] || needs_disk
  steps
  if [[ -n $slurm ]]; then finish_jobs; else say "done: read $run/report.md and $run/comparison*/*/comparison.md"; fi
}

check_options() {
  needs_seeds
  needs_number --nodes "$nodes"
  [[ -z $gpus ]] || needs_number --gpus "$gpus"
  [[ -z $average ]] || needs_number --average "$average"
  [[ $average != 1 ]] || refuse "--average: got '1', expected a whole number from 2"
  [[ $slurm =~ ^[[:alnum:]_.,-]*$ ]] || refuse "--slurm: got '$slurm', expected a partition's name"
  if [[ -z $slurm ]]; then
    ! $submit || refuse "--submit sends SLURM jobs: name the partition with --slurm"
    [[ $nodes == 1 ]] || refuse "--nodes is for SLURM jobs (--slurm); docs/recipes.md shows torchrun without SLURM"
  else
    # Of the lines that sbatch reads, which know no quotes: nothing ends a word or a line, and no % a pattern.
    [[ $run =~ ^[[:alnum:]_./@+,:=~-]*$ ]] ||
      refuse "--run: got ${run@Q}, expected for SLURM jobs a path of letters, digits and _ . / @ + , : = ~ -"
    [[ -z $stop_after ]] || refuse "--stop-after is not for SLURM jobs: give them a time limit, and submit them again"
  fi
  if [[ $size == smoke ]]; then
    [[ ${#data[@]} == 0 ]] || refuse "--smoke makes its own text: drop ${data[0]}"
    [[ -z $slurm$gpus ]] || refuse "--smoke runs here, on the CPU: drop --slurm and --gpus"
  else
    [[ ${#data[@]} -gt 0 ]] || refuse "where is the text? Give ${sources[*]}, as --help says"
  fi
}

choose_size() {
  default_run "$corpus"
  data_bin=$run/corpus/data-bin
  if [[ $size == smoke ]]; then
    configs=configs/$corpus/smoke gpus=0
    pretraining=(--cpu --distributed-world-size 1 --log-format simple --log-interval 20)
    profiling=(--cpu)
    smoke_size
  else
    local seen=0
    # A machine that only writes jobs or prints commands may have no GPU.
    if [[ -z $gpus ]] || ! { $dry_run || [[ -n $slurm ]]; }; then
      seen=$(python -c 'import torch; print(torch.cuda.device_count())')
    fi
    if [[ -z $gpus ]]; then
      gpus=$seen
      [[ $gpus != 0 ]] || refuse "torch sees no GPU here: give --gpus N for --slurm and --dry-run, or try --smoke"
    elif ! $dry_run && [[ -z $slurm && $seen -lt $gpus ]]; then
      refuse "--gpus: got $gpus, but torch sees $seen here"
    fi
    configs=configs/$corpus
    pretraining=(--distributed-world-size $((gpus * nodes)) --log-format simple --log-interval 100)
    full_size
  fi
  [[ -z $average ]] || pretraining+=(--keep-best-checkpoints "$average")
  continuing=("${pretraining[@]}")
}

# Each step: name, how many GPUs it uses (all, one or none), the steps it waits for, and the function that does it.
steps() {
  local seed system scored=() analyzed=()
  step corpus none '' make_corpus
  for seed in ${seeds//,/ }; do
    step "pretrain-$seed" all corpus pretrain "$seed"
    step "profile-$seed" one "pretrain-$seed" profile_and_select "$seed"
    step "evaluate-$seed-dense" one "pretrain-$seed" evaluate "$seed" dense
    scored+=("evaluate-$seed-dense")
    for system in "${systems[@]:1}"; do # without dense, which is where they start
      step "continue-$seed-$system" all "profile-$seed" continue_training "$seed" "$system"
      step "evaluate-$seed-$system" one "continue-$seed-$system" evaluate "$seed" "$system"
      scored+=("evaluate-$seed-$system")
    done
    step "analyze-$seed" none "profile-$seed" analyze "$seed"
    analyzed+=("analyze-$seed")
  done
  step compare none "${scored[*]}" compare_systems
  step report none "compare ${analyzed[*]}" stage scripts/70_report.sh "$run" "${reporting[@]}"
}

make_corpus() {
  if [[ $size == smoke ]]; then stage python "tests/corpora/tiny_$corpus.py" "$run/source"; fi
  stage scripts/10_data.sh "$corpus" "$run/corpus" "${data[@]}"
}

# Of a checkpoint 12 bytes a parameter were measured: weights, and Adam's two moments. A training has up to four at a
# time, beside those to be averaged: the best, the last, the newest inside an epoch, and the one being written.
needs_disk() {
  local folder=$run free there=0 needed
  needed=$((corpus_gb + parameters_millions * 12 * (4 + ${average:-0}) * ${#systems[@]} * $(wc -w <<<"${seeds//,/ }") / 1000))
  [[ ! -d $run ]] || there=$(du -s -B1G "$run" | cut -f1)
  while [[ ! -e $folder ]]; do folder=$(dirname "$folder"); done
  free=$(df --output=avail -B1G "$folder" | tail -n 1)
  say "disk: up to $needed GB below $run, an estimate; there: $there GB, free: $((free)) GB
== time: not measured at this size, so not estimated"
  $dry_run || [[ $((free + there)) -ge $needed ]] || refuse "too little disk: name another folder with --run"
}

# ------------------------------------------------------------------ run a step, or write it as a SLURM job

# NAME GPUS AFTER COMMAND ...
step() {
  if [[ -n $slurm ]]; then job "$@"; return; fi
  say "$1"
  "${@:4}"
}

# PATH: standard input into that file; in a dry run to the screen
put() {
  if $dry_run; then printf '\n# %s\n' "$1"; cat; return; fi
  mkdir -p "$(dirname "$1")"
  cat > "$1.tmp" && mv "$1.tmp" "$1"
}

submission=() # lines of the script that submits the jobs

# NAME GPUS AFTER COMMAND ...: the same, as a job that starts when the jobs AFTER have ended well
job() {
  local name=$1 after=$3 nodes_of=1 gpus_of=1 launch='' first waits=''
  case $2 in
    all) nodes_of=$nodes gpus_of=$gpus ;;
    none) gpus_of=0 ;;
  esac
  if [[ $nodes_of -gt 1 ]]; then
    # shellcheck disable=SC2016  # expanded in the job
    launch='srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun --nnodes="$SLURM_NNODES" --nproc-per-node='$gpus_of
    launch+=' --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first" --no-python '
    first='first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))'
  fi
  {
    echo '#!/usr/bin/env bash'
    echo "#SBATCH --job-name=$corpus-$name --partition=$slurm --output=$run/slurm/%x-%j.log"
    echo "#SBATCH --nodes=$nodes_of --ntasks-per-node=1 --cpus-per-task=$((gpus_of > 0 ? 4 * gpus_of : 4))"
    [[ $gpus_of == 0 ]] || echo "#SBATCH --gres=gpu:$gpus_of"
    echo 'set -euo pipefail'
    printf 'cd %q\nsource scripts/pipeline.sh\n' "$PWD"
    [[ -z $launch ]] || echo "$first"
    (dry_run=true; "${@:4}") | sed "s|^|$launch|"
  } | put "$run/slurm/$name.sbatch"
  for name in $after; do waits+=:'$'${name//-/_}; done
  [[ -z $waits ]] || waits=" --dependency=afterok$waits"
  submission+=("${1//-/_}=\$(submit$waits $(printf %q "$run/slurm/$1.sbatch"))")
}

finish_jobs() {
  {
    echo '#!/usr/bin/env bash'
    echo '# Submit the jobs of this run, each to start when those it needs have ended well. They skip what is complete.'
    printf 'set -euo pipefail\ncd %q\n' "$PWD"
    echo 'submit() { sbatch --parsable --kill-on-invalid-dep=yes "$@" | cut -d";" -f1; }'
    printf '%s\n' "${submission[@]}"
  } | put "$run/slurm/submit.sh"
  $dry_run && return
  cat "$run/slurm/submit.sh"
  if $submit; then
    bash "$run/slurm/submit.sh"
    say "submitted: squeue shows them, $run/slurm holds their logs"
  else
    say "written; to submit them: bash $run/slurm/submit.sh"
  fi
}
