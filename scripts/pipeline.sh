# shellcheck shell=bash
# Sourced, in the checkout's root, by the scripts that run a whole pipeline: environment, options, progress, dry runs.
# They set self, their own path.

# .venv before any other environment that is active.
export PATH=$PWD/.venv/bin:$PATH
# Two cores: two threads; more do not help models this small. Passive waiting keeps a busy machine usable.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=PASSIVE
# fairseq and current hydra and torch warn about each other at every start.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

# What options say; scripts have others of their own. again: those with which stop_in_time runs the script again.
dry_run=false size=gpu seeds='' run='' stop_after='' results='' again=()

say() { printf '\n== %s\n' "$*" >&2; }

refuse() { echo "$*; see --help" >&2; exit 2; }

# The comment at the top of the script.
usage() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "${self:?}"; }

# OPTIONS ARGUMENT ...: set a variable for each option given: --adapter-size 16 is adapter_size=16, --submit submit=true,
# --cpu size=cpu. OPTIONS are those of the script beside --smoke, --run and --dry-run, which all of them have. Where the
# script sets sources, options that name files, data gathers these.
take_options() {
  local own=" --smoke --run --dry-run $1 " name value
  shift
  while [[ $# -gt 0 ]]; do
    name=${1#--} name=${name//-/_}
    case $1 in
      -h | --help) usage; exit 0 ;;
      *[[:space:]]* | '') refuse "unknown option: $1" ;;
    esac
    if [[ " ${sources[*]-} " == *" $1 "* ]]; then
      needs_value "$@"
      # As it is seen from where the user called.
      value=$2
      [[ $2 == /* ]] || value=${OLDPWD:-$PWD}/$2
      data+=("$1" "$value") again+=("$1" "$value")
      shift 2
      continue
    fi
    [[ $own == *" $1 "* ]] || refuse "unknown option: $1"
    case $1 in
      --cpu | --smoke)
        [[ $size == gpu || $own != *" --cpu "* ]] || refuse "--cpu and --smoke are two sizes: choose one"
        size=$name again+=("$1")
        shift
        ;;
      --dry-run | --submit | --from-scratch | --both-ways) printf -v "$name" true; again+=("$1"); shift ;;
      *)
        needs_value "$@"
        printf -v "$name" %s "$2"
        [[ $1 == --stop-after ]] || again+=("$1" "$2")
        shift 2
        ;;
    esac
  done
  [[ ! -e $run || -d $run ]] || refuse "--run: $run is a file"
  [[ ! -e $results || -d $results ]] || refuse "--results: $results is a file"
  [[ -z $results || $results != *.@(csv|json|md|png) ]] || refuse "--results: got '$results', expected a folder"
  [[ -z $stop_after || ($stop_after =~ ^[0-9]+(\.[0-9]+)?$ && $stop_after == *[1-9]*) ]] ||
    refuse "--stop-after: got '$stop_after', expected minutes above 0"
}

# Run this script again with the options given but --stop-after, and end it then, whatever runs: every stage resumes.
# Does nothing where there is none.
stop_in_time() {
  local status=0
  [[ -n $stop_after ]] && ! $dry_run || return 0
  timeout --kill-after=30 "${stop_after}m" "${self:?}" "${again[@]}" &
  trap 'kill $!' INT TERM
  wait $! || status=$?
  [[ $status == 124 || $status == 137 ]] || exit "$status"
  say "stopped after $stop_after minutes; to go on: $self ${again[*]} --stop-after $stop_after"
  exit 0
}

# NAME: where everything goes, unless --run says so
default_run() { run=${run:-runs/$1$([[ $size == gpu ]] || echo "-$size")}; }

needs_value() { [[ $# -ge 2 && -n $2 ]] || refuse "$1 needs a value"; }

# OPTION NUMBER
needs_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || refuse "$1: got '$2', expected a whole number from 1"; }

needs_seeds() { needs_list --seeds "$seeds" '[1-9][0-9]*' 'whole numbers from 1'; }

# OPTION LIST PATTERN EXPECTED: a list such as 1,2,3 whose parts match PATTERN, each once
needs_list() {
  local part seen=,
  [[ ,$2, != *,,* && $2 != *[[:space:]]* ]] || refuse "$1: got '$2', expected $4, parted by commas"
  for part in ${2//,/ }; do
    [[ $part =~ ^($3)$ ]] || refuse "$1: got '$part', expected $4"
    [[ $seen != *,$part,* ]] || refuse "$1: $part is named twice"
    seen+=$part,
  done
}

# For CPUs: glibc gives freed memory back to the system after each step, and asks for it again in the next.
keep_freed_memory() {
  export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4294967296}
  export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
}

# Asked of torch only where there may be one: it takes seconds to import.
has_gpu() {
  compgen -G '/dev/nvidia*' >/dev/null || compgen -G '/dev/nvhost*' >/dev/null || [[ -e /dev/kfd || -e /dev/dxg ]] || return
  python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
}

# Before the first stage of an experiment that has sizes
needs_environment() {
  $dry_run && return
  command -v neuron-spec &>/dev/null || scripts/00_install.sh
  [[ $size != gpu ]] || has_gpu || refuse "torch sees no GPU here: choose --cpu (hours) or --smoke (minutes)"
}

# Options, code and configs, and every file of the run. While these are as the last run left them, no stage has work, and
# none is asked: each takes seconds to say so.
made_of() {
  local folders=("$(neuron-spec user-dir)" scripts configs "$@" "$run")
  printf '%q ' "$run" "${again[@]}"
  printf '\n'
  find "${folders[@]}" -type f ! -name '*.pyc' ! -path "$run/complete.txt*" -print0 | LC_ALL=C sort --zero-terminated |
    xargs --null sha256sum --
}

# FOLDER ...: whether the run ended before, from what these folders hold
is_finished() { [[ -f $run/complete.txt ]] && made_of "$@" | cmp --silent - "$run/complete.txt"; }

# FOLDER ...: the run has ended
finish() {
  made_of "$@" >"$run/complete.txt.tmp"
  mv "$run/complete.txt.tmp" "$run/complete.txt"
}

# Sets device, the flag of stages: none where there is a GPU.
choose_device() {
  device=()
  has_gpu || { device=(--cpu); keep_freed_memory; }
}

# COMMAND...: run it, or in a dry run print it
stage() {
  local word words=()
  $dry_run || { "$@"; return; }
  for word in "$@"; do
    [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

# LOG COMMAND...: training's progress to the screen, all that fairseq says to LOG; in a dry run print COMMAND
logged() {
  local log=$1 shown='/train_inner|\| valid \||complete already|Error/{s/^(.{160}).*/\1/;p}'
  shift
  if $dry_run; then stage "$@"; return; fi
  mkdir -p "$(dirname "$log")"
  "$@" 2>&1 | tee -a "$log" | sed --unbuffered --quiet --regexp-extended "$shown" >&2 || {
    echo "failed; the last lines of $log:" >&2
    tail -n 25 "$log" | cut -c1-300 >&2
    exit 1
  }
}

# FILE ... FOLDER: copy them in the small form in which results/ keeps them
keep() { stage python scripts/keep_results.py "$@"; }
