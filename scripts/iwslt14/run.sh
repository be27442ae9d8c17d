#!/usr/bin/env bash
# The paper's small benchmark, IWSLT-14: eight languages with English, a transformer of 6+6 layers. A dense model, and
# four ways to go on from it: specialized, without masks, through random sets of the same sizes, through another
# direction's sets. Run again to resume.
#   scripts/iwslt14/run.sh --archive FILE [--seeds N,N,...] [--gpus N] [--run DIR] [--stop-after MINUTES] [--dry-run]
#   scripts/iwslt14/run.sh --archive FILE --slurm PARTITION --gpus N [--nodes N] [--submit] [...]
#   scripts/iwslt14/run.sh --smoke [...]
#     --archive FILE         WIT3's 2014-01.tgz, or a folder of its contents; neuron-spec data iwslt14 says where it is
#     --seeds N,N,...        each seed has its own dense model, sets and continuations (default 1)
#     --gpus N               GPUs that train together on a node (default: all that torch sees); any number that divides
#                            the config's tokens-per-update gives updates of the same size
#     --average N            evaluate the mean of each training's N best checkpoints (default: its best one; the papers do
#                            not say)
#     --run DIR              where everything goes (default runs/iwslt14, or runs/iwslt14-smoke)
#     --stop-after MINUTES   stop then; the same command goes on, training from where it last saved
#     --slurm PARTITION      write a SLURM job for each step, and a script that submits them in order
#     --nodes N              nodes that train together in a SLURM job (default 1)
#     --submit               submit the jobs too
#     --smoke                a tiny archive of the same shape, on the CPU, in minutes
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

corpus=iwslt14 seeds=1
sources=(--archive)
parameters_millions=62 # of 6+6/512/1024 with a vocabulary of 30,000
corpus_gb=2            # estimated from 1.1 M pairs: raw text and data-bin

full_size() {
  profiling=(--max-tokens 16384 -- --distributed-world-size 1)
  evaluating=(--fp16 --max-tokens 8000)
}

smoke_size() {
  data=(--archive "$run/source/2014-01.tgz" --vocab-size 400)
  evaluating=(--cpu --beam 2 -- --max-len-a 1 --max-len-b 5)
}

recipe "$@"
