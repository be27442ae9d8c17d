# shellcheck shell=bash
# Sourced, in the checkout's root, by the scripts that run a whole pipeline: environment, options, progress, dry runs.
# They set self, their own path.

# .venv before any other environment that is active.
export PATH=$PWD/.venv/bin:$PATH
# Two cores: two threads; more do not help models this small. Passive waiting keeps a busy machine usable.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=PASSIVE
# fairseq and current hydra and torch warn about each other at every start.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

dry_run=false

say() { printf '\n== %s\n' "$*" >&2; }

refuse() { echo "$*; see --help" >&2; exit 2; }

# The comment at the top of the script.
usage() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "${self:?}"; }

# OPTION VALUE ...: what follows an option that takes a value
needs_value() { [[ $# -ge 2 ]] || refuse "$1 needs a value"; }

# OPTION LIST PATTERN EXPECTED: a list such as 1,2,3 whose parts match PATTERN, each once
needs_list() {
  local part seen=,
  [[ $2 == *[!,] ]] || refuse "$1: got '$2', expected $4, parted by commas"
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

has_gpu() { python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

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
