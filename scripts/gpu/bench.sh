#!/usr/bin/env bash
# All benchmarks on one GPU, in at most 10 minutes; small JSON files. Goes on where one fails, and says so at the end.
#   scripts/gpu/bench.sh [--wheels DIR] [--output DIR]
#     --wheels DIR   install from DIR, made by scripts/gpu/wheels.sh, into a temporary folder; needs no network
#     --output DIR   where the JSON goes (default results/benchmarks)
# Uses .venv where there is one, else the machine's python3.
set -euo pipefail
takes="--wheels --output"
# shellcheck source=scripts/gpu/environment.sh
source "$(dirname "$0")/environment.sh"

failed=()
# SECONDS_AT_MOST BENCHMARK [FLAGS]
measure() {
  local limit=$1 status=0
  shift
  printf '\n== %s\n' "$*"
  timeout --kill-after=5 "$limit" python3 "benchmarks/$1.py" --device cuda --output "$output" "${@:2}" || status=$?
  case $status in
    0) ;;
    124 | 137) failed+=("$* (over its $limit s)") ;;
    *) failed+=("$* (exit status $status)") ;;
  esac
}

# What matters most comes first. The limits add up to 575 s: with the installation, about 10 minutes.
measure 115 ffn_step --dtype bf16
measure 100 generation --dtype fp16
measure 35 ec30_plan --dtype fp16 --pairs 60000 --output "$output/fp16"
measure 50 profiling --repeats 5
measure 40 ffn_step --dtype bf16 --break-even --break-even-tokens 128 512 1024 2048 4096 8192
measure 65 scaling --dtype bf16 --dim 1024 --tokens 8192 --ffn 1024 2048 4096
measure 35 ec30_plan --dtype bf16 --pairs 60000
measure 95 ffn_step --dtype fp16 --output "$output/fp16"
measure 40 masks_memory --dtype fp16

printf '\n%s s in all; the figures are in %s\n' "$SECONDS" "$output"
if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
