#!/usr/bin/env bash
# The paper's large benchmark, EC30: thirty languages with English, 61 M pairs in five shards, a big transformer. A
# dense model, and four ways to go on from it: specialized, without masks, through random sets of the same sizes,
# through another direction's sets. Run again to resume.
#   scripts/ec30/run.sh TEXT [--seeds N,N,...] [--gpus N] [--run DIR] [--stop-after MINUTES] [--dry-run]
#   scripts/ec30/run.sh TEXT --slurm PARTITION --gpus N [--nodes N] [--submit] [...]
#   scripts/ec30/run.sh --smoke [...]
#   TEXT is one of two:
#     --plain DIR --valid DIR --test DIR   EC40_dataset, NTREX-128 and flores200_dataset, as downloaded
#     --data-bin DIR                       the official data-bin, the folder that holds shard0 to shard4
#   and the rest:
#     --seeds N,N,...        each seed has its own dense model, sets and continuations (default 222, the official code's)
#     --gpus N               GPUs that train together on a node (default: all that torch sees); any number that divides
#                            the config's tokens-per-update gives updates of the same size
#     --average N            evaluate the mean of each training's N best checkpoints (default: its best one; the papers do
#                            not say)
#     --run DIR              where everything goes (default runs/ec30, or runs/ec30-smoke)
#     --stop-after MINUTES   stop then; the same command goes on, training from where it last saved
#     --slurm PARTITION      write a SLURM job for each step, and a script that submits them in order
#     --nodes N              nodes that train together in a SLURM job (default 1)
#     --submit               submit the jobs too
#     --smoke                a tiny corpus of the same shape, on the CPU, in minutes
#     --dry-run              print every command, run none
# Uses .venv, or else an active environment that has neuron-spec. docs/recipes.md says more.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh
# shellcheck source=scripts/systems.sh
source scripts/systems.sh
# shellcheck source=scripts/recipe.sh
source scripts/recipe.sh

corpus=ec30 seeds=222
sources=(--plain --valid --test --data-bin)
parameters_millions=307 # of 6+6/1024/4096 with a vocabulary of 64,000
corpus_gb=30            # estimated from 61 M pairs: raw text and data-bin

full_size() {
  profiling=(--max-tokens 30000 -- --distributed-world-size 1)
  evaluating=(--fp16 --max-tokens 8000)
  comparing=(--bootstrap 2000) # sixty directions: after Holm's adjustment 1000 samples cannot give a p below 0.06
  # A downloaded data-bin has no raw text beside it: scored as its authors do.
  [[ " ${data[*]} " != *" --data-bin "* ]] || evaluating+=(--references data-bin --official-scoring)
  reporting=(--published results/published/ec30.csv)
}

smoke_size() {
  local source=$run/source
  data=(--plain "$source/EC40_dataset" --valid "$source/NTREX-128" --test "$source/flores200_dataset" --vocab-size 1500
    --workers 1)
  evaluating=(--cpu --beam 1 -- --max-len-a 1 --max-len-b 5)
}

recipe "$@"
