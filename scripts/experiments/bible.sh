#!/usr/bin/env bash
# Is there interference, is there something to gain, and does specialization gain it? Verses in twelve languages of six
# families, out of English (docs/bible.md has the rules by which the outcome is read). Run again to resume.
#   scripts/experiments/bible.sh [--cpu | --smoke] [--seeds N,N,...] [--both-ways] [--ffn N] [--stop-after MINUTES]
#                                [--run DIR] [--results DIR] [--dry-run]
#     (neither)              4+4 layers on one GPU: not run; stage 1 made 5 to 6 updates a second on an H200, so 40 minutes
#     --cpu                  2+2 layers on 2 CPU cores: hours a seed
#     --smoke                the toy corpus and one seed on 2 CPU cores: minutes
#     --seeds N,N,...        each seed has its own dense model, sets and continuations (default 1,2,3; smoke 1)
#     --both-ways            directions into English too
#     --ffn N                neurons of every FFN (default: the config's, 256 at CPU size)
#     --stop-after MINUTES   stop then; the same command goes on, training from where it last saved
#     --run DIR              where everything goes (default runs/bible, with -cpu, -smoke, -both-ways, -ffn-N)
#     --results DIR          copy scores, comparisons and learning curves there
#     --dry-run              print every command, run none
# Uses .venv, or else an active environment that has neuron-spec.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh
# shellcheck source=scripts/systems.sh
source scripts/systems.sh

both_ways=false ffn=''
take_options "--cpu --seeds --both-ways --ffn --stop-after --results" "$@"
[[ -z $ffn ]] || needs_number --ffn "$ffn"
default_run "bible$($both_ways && echo -both-ways || true)${ffn:+-ffn-$ffn}"
if [[ $size == smoke ]]; then seeds=${seeds:-1}; fi
seeds=${seeds:-1,2,3}
needs_seeds

corpus=bible langs=de,fr,es,it,ro,ru,uk,ar,fa,id,vi,tl
data=(--langs "$langs" --vocab-size 2000)
configs=configs/bible/$size checkpoint=checkpoint_last.pt device=(--cpu) batch=()
# The gate's models are of one direction each, trained for their share of the dense model's updates.
updates=1500 bilingual_updates=30000 gates=en-de,en-ru,en-ar,en-id k=70
often=(--log-format simple --log-interval 50 --save-interval-updates 250 --keep-interval-updates 1
  --validate-interval-updates 250)
pretraining=(--cpu --log-format simple --log-interval 250 --save-interval-updates 1500 --keep-interval-updates 1
  --validate-interval-updates 1500)
[[ $size == gpu ]] || keep_freed_memory
case $size in
  gpu)
    device=() batch=(--max-tokens 16000) bilingual_updates=12000 updates=600
    pretraining=("${pretraining[@]:1}")
    ;;
  cpu) ;;
  smoke)
    corpus=toy langs=qa,qb,qm data=(--langs qa,qb,qm --train-size 1200 --valid-size 60 --test-size 30)
    configs=configs/smoke updates=20 bilingual_updates=120 gates=en-qa
    pretraining=(--cpu --max-update "$bilingual_updates" --total-num-update "$bilingual_updates" "${often[@]}")
    ;;
esac
if [[ -n $ffn ]]; then
  often+=(--encoder-ffn-embed-dim "$ffn" --decoder-ffn-embed-dim "$ffn") pretraining+=("${often[@]: -4}")
fi
profiling=("${device[@]}" "${batch[@]}") evaluating=("${device[@]}" "${batch[@]}" -- --max-len-a 2 --max-len-b 10)
data_bin=$run/corpus/data-bin
continuing=("${device[@]}" "${often[@]}")
if $both_ways; then pairs=$(directions "$langs"); else pairs=en-${langs//,/,en-}; fi
among=(--lang-pairs "$pairs") pretraining+=(--lang-pairs "$pairs")

# All start from the dense model and see the same sentences. -long: three times the updates.
decisive=(dense-continuation specialized "specialized-$k" ceiling)
long=(dense-continuation-long specialized-long "specialized-$k-long" ceiling-long)
variants=("frozen-$k" "shared-core-$k" "matched-random-$k" "other-direction-$k" decoder-95)

stop_in_time
needs_environment

# SEED
select_sets() {
  local of=$run/seed-$1 method
  stage scripts/30_profile.sh "$data_bin" "$of/dense/$checkpoint" "$of/profile.safetensors" "${profiling[@]}" \
    "${among[@]}"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/specialized.safetensors"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/specialized-$k.safetensors" --k "$k"
  for method in shared-core other-direction; do
    stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/$method-$k.safetensors" --method "$method" --k "$k"
  done
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/matched-random-$k.safetensors" \
    --method matched-random --k "$k" --seed "$1"
  stage scripts/40_select.sh "$of/profile.safetensors" "$of/masks/decoder-95.safetensors" --only-side decoder
}

# SEED SYSTEM
train_system() {
  local of=$run/seed-$1 number=$updates name=${2%-long} flags=() masks length
  masks=$of/masks/$name.safetensors
  [[ $2 != *-long ]] || number=$((3 * updates))
  length=(--max-update "$number" --total-num-update "$number")
  case $name in
    dense-continuation) masks=none ;;
    frozen-*) masks=$of/masks/specialized-$k.safetensors flags=(--dropped-neurons frozen) ;;
    ceiling) train_ceiling "$1" "$2" "${length[@]}"; return ;;
  esac
  train_on "$1" "$2" "$of/dense/$checkpoint" "$masks" "${length[@]}" "${flags[@]}"
}

# SYSTEM ...: of all seeds, so that the first question has its answer before the second is asked
train_and_evaluate() {
  local seed system
  for seed in ${seeds//,/ }; do
    for system in "$@"; do
      say "seed $seed: continue training, $system"
      train_system "$seed" "$system"
      evaluate "$seed" "$system"
    done
  done
}

say "corpus: $corpus"
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"
result=$run/comparison-seeds-${seeds//,/-}
for seed in ${seeds//,/ }; do
  say "seed $seed: pretrain a dense model with plain fairseq"
  pretrain "$seed"
  say "seed $seed: sets and controls"
  select_sets "$seed"
done

train_and_evaluate "${decisive[@]}"
for seed in ${seeds//,/ }; do evaluate "$seed" dense; done
compare "$result/against-dense-continuation" evaluation/SYSTEM "${decisive[@]}" dense
say "the gate of interference: a model per direction"
seed=${seeds%%,*}
train_bilingual "$seed" "$gates" "$run/seed-$seed/gate/bilingual"
stage neuron-spec compare "dense=$run/seed-$seed/evaluation/dense" "bilingual=$run/seed-$seed/gate/bilingual" \
  --common-directions --output "$result/bilingual-against-dense"
read_outcome "$result"

train_and_evaluate "${variants[@]}"
compare "$result/variants-against-dense-continuation" evaluation/SYSTEM dense-continuation "${variants[@]}"
compare "$result/controls-against-specialized-$k" evaluation/SYSTEM "specialized-$k" "${variants[@]:2:2}"
read_outcome "$result"

train_and_evaluate "${long[@]}"
compare "$result/against-dense-continuation-long" evaluation/SYSTEM "${long[@]}"
read_outcome "$result"

if [[ -n $results ]]; then
  say "copy the results to $results"
  keep "$run/corpus/corpus.json" "$results"
  keep "$run"/verdict/{stage-1.png,verdict.{png,md,json}} "$results"
  for what in {,variants-}against-dense-continuation "controls-against-specialized-$k" against-dense-continuation-long \
    bilingual-against-dense; do
    keep "$result/$what"/comparison.{csv,md} "$results/$what"
  done
fi
[[ $size != smoke ]] || say "of a toy corpus and a few updates: its numbers show what is written, and answer nothing"
say "done: read $run/verdict/verdict.md; docs/bible.md says how, $result/*/comparison.md every direction"
