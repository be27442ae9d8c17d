# shellcheck shell=bash
# Sourced by the two stages that train: the data as fairseq-train takes it, and which processes train together.

# DATA_BIN: of a sharded one, the path shard0:shard1:...; fairseq trains on a shard per epoch, in turn
data_path() {
  local path='' shard=0
  while [[ -d $1/shard$shard ]]; do path+=:$1/shard$shard shard=$((shard + 1)); done
  [[ -n $path ]] || path=:$1
  echo "${path#:}"
}

# FLAG OF FAIRSEQ-TRAIN ...: how many processes train together over all nodes, one per GPU; else all GPUs here
gpus() {
  local number=all
  if [[ -n ${WORLD_SIZE:-} ]]; then echo "$WORLD_SIZE"; return; fi # torchrun started this script, once per GPU
  if [[ ${SLURM_NNODES:-1} != 1 ]]; then
    echo "this job has $SLURM_NNODES nodes: start the stage through torchrun on each, as docs/recipes.md shows" >&2
    return 2
  fi
  while [[ $# -gt 0 ]]; do
    case $1 in
      --distributed-world-size) number=$2 ;;
      --distributed-world-size=*) number=${1#*=} ;;
    esac
    shift
  done
  echo "$number"
}

# What torchrun tells this process. fairseq asks the environment too, but not with one GPU per node, nor without GPUs.
rank=()
if [[ -n ${WORLD_SIZE:-} ]]; then
  rank=(--distributed-init-method env:// --distributed-no-spawn --distributed-world-size "$WORLD_SIZE"
    --distributed-rank "$RANK" --device-id "$LOCAL_RANK")
fi

# In a SLURM job of one node fairseq would train on every GPU it sees, whatever it is told.
unset SLURM_JOB_NODELIST SLURM_STEP_NODELIST
