#!/usr/bin/env bash
# Subnetworks and meta-learning for languages with few sentences, on the built-in corpus (docs/subnetworks.md). A dense
# model of the other languages goes on in six ways, {ordinary, meta} x {full model, static, dynamic subnetworks}; each
# then adapts to three languages it never saw: two with a relative that it knows, one without. Run again to resume.
#   scripts/experiments/subnetworks.sh [--cpu | --smoke] [--seeds N,N,...] [--shots N,N,...] [--meta METHOD]
#                                      [--dynamic RULE] [--voters N,N,...] [--stop-after MINUTES] [--run DIR]
#                                      [--results DIR] [--dry-run]
#     (neither)              6+6 layers on one GPU
#     --cpu                  3+3 layers on 2 CPU cores: hours a seed
#     --smoke                the toy corpus and one seed on 2 CPU cores: minutes
#     --seeds N,N,...        each seed has its own dense model, subnetworks and continuations (default 1,2; smoke 1)
#     --shots N,N,...        training sentences of a new language (default 0,20,100,1000; smoke 0,20)
#     --meta METHOD          fomaml or reptile (default fomaml)
#     --dynamic RULE         learned or reselect (default learned)
#     --voters N,N,...       static subnetworks are what the copies fine-tuned with these seeds vote for
#                            (default 1,2,3; cpu and smoke 1)
#     --stop-after MINUTES   stop then; the same command goes on, training from where it last saved
#     --run DIR              where everything goes (default runs/subnetworks, with -cpu or -smoke)
#     --results DIR          copy scores, comparisons, masks' statistics and figures there
#     --dry-run              print every command, run none
# Uses .venv, or else an active environment that has neuron-spec.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh
# shellcheck source=scripts/systems.sh
source scripts/systems.sh

shots='' meta=fomaml dynamic=learned voters=''
take_options "--cpu --seeds --stop-after --results --shots --meta --dynamic --voters" "$@"
[[ $meta == fomaml || $meta == reptile ]] || refuse "--meta: got '$meta', expected fomaml or reptile"
[[ $dynamic == learned || $dynamic == reselect ]] || refuse "--dynamic: got '$dynamic', expected learned or reselect"
if [[ $size == smoke ]]; then seeds=${seeds:-1} shots=${shots:-0,20}; fi
[[ $size == gpu ]] || voters=${voters:-1}
seeds=${seeds:-1,2} shots=${shots:-0,20,100,1000} voters=${voters:-1,2,3}
needs_seeds
needs_list --shots "$shots" '[0-9]+' 'whole numbers'
needs_list --voters "$voters" '[1-9][0-9]*' 'whole numbers from 1'
default_run subnetworks
# shellcheck source=scripts/homeassistant.sh
source scripts/homeassistant.sh

# Known languages; new ones with the relative whose masks they borrow; a new one without relatives.
known=de,sv,es,pt,cs,sk,ru,hu,et related=nl=de,it=es unrelated=tr
# Adaptation takes more and longer steps of the same plain SGD that inner steps are made of: after 20 steps at the inner
# rate a dense model of the CPU size still says nothing in a new language.
inner_steps=3 inner_lr=0.1 updates=300 adapting=(--steps 100 --lr 0.5 --optimizer sgd)
pruning=(--step-fraction 0.1 --quality-floor 0.95) stepping=(--lr 0.1 --sentences 500)
case $size in
  gpu) ;;
  cpu)
    data=(--langs "$langs" --vocab-size "$vocab_size" --valid-size 300 --test-size 200)
    updates=200
    pruning=(--step-fraction 0.2 --quality-floor 0.95 --sentences 150) stepping=(--lr 0.1 --sentences 200)
    ;;
  smoke)
    langs=qa,qb,qm,qn,qx known=qa,qm related=qb=qa,qn=qm unrelated=qx
    data=(--langs "$langs" --train-size 1500 --valid-size 60 --test-size 20)
    updates=40 adapting=(--steps 20 --lr 0.1 --optimizer sgd)
    pruning=(--step-fraction 0.3 --quality-floor 0.9 --max-steps 8) stepping=(--lr 0.1 --sentences 100)
    ;;
esac
# As many gradients of sentences as an episode takes: inner steps on its support, one step on its query.
case $meta in
  fomaml) episode=(--inner-steps "$inner_steps" --inner-lr "$inner_lr" --support-fraction 0.5) longer=$((updates * (inner_steps + 1) / 2)) ;;
  reptile) episode=(--inner-steps "$inner_steps" --inner-lr "$inner_lr") longer=$((updates * inner_steps)) ;;
esac
systems=("${subnetworks[@]}") baseline=full

stop_in_time
needs_environment

known_pairs=$(directions "$known")
new_pairs=$(directions "$(sed 's/=[^,]*//g' <<<"$related"),$unrelated")
among=(--lang-pairs "$known_pairs") pretraining+=(--lang-pairs "$known_pairs")

# SEED: neurons and heads that each direction needs
find_static() {
  local of=$run/seed-$1
  stage neuron-spec prune "$data_bin" --path "$of/dense/$checkpoint" --output "$of/masks/static.safetensors" \
    --sites both "${pruning[@]}" --fine-tune "$configs/finetune.yaml" --work "$of/fine-tuning" --voters "$voters" \
    "${device[@]}"
}

# SEED SYSTEM: to the new languages
adapt() {
  local of=$run/seed-$1 flags=("${device[@]}") missing=()
  [[ $2 == *full* ]] || { flags+=(--borrow "$related"); missing=(--missing-direction dense); }
  stage neuron-spec adapt "$data_bin" --path "$of/$2/$checkpoint" --lang-pairs "$new_pairs" --shots "$shots" \
    --seed "$1" "${adapting[@]}" --output "$of/adaptation-$2" "${flags[@]}" -- --max-len-a 2 --max-len-b 10 \
    "${missing[@]}"
}

# SEED: do gradients conflict, over training, with masks and without; does overlap go with transfer
interference() {
  local of=$run/seed-$1 system saved
  # The full model has moved on from the dense one, whose masks they are.
  local overlap=(--overlap "$of/masks/static.safetensors" --allow-other-checkpoint)
  for system in full static dynamic; do
    mapfile -t saved < <(printf '%s\n' "$of/$system"/checkpoint_*_*.pt | sort --version-sort)
    stage neuron-spec conflict "$data_bin" --output "$of/conflict-$system" --tag both "${overlap[@]}" "${device[@]}" \
      --path "$of/dense/$checkpoint" "${saved[@]}" "$of/$system/$checkpoint"
  done
  for system in full static; do
    stage neuron-spec transfer "$data_bin" --path "$of/$system/$checkpoint" --output "$of/transfer-$system" \
      "${overlap[@]}" "${stepping[@]}" "${device[@]}"
  done
}

say "corpus: $corpus"
stage scripts/10_data.sh $corpus "$run/corpus" "${data[@]}"
for seed in ${seeds//,/ }; do
  say "seed $seed: pretrain a dense model of $known, by plain fairseq"
  pretrain "$seed"
  say "seed $seed: static subnetworks"
  find_static "$seed"
  for system in "${systems[@]}"; do
    say "seed $seed: continue training, $system"
    continue_training "$seed" "$system"
    say "seed $seed: evaluate and adapt, $system"
    evaluate "$seed" "$system"
    adapt "$seed" "$system"
  done
  if [[ $seed == "${seeds%%,*}" ]]; then
    say "seed $seed: conflict of gradients, transfer"
    interference "$seed"
  fi
done

say "compare over seeds"
result=$run/comparison-seeds-${seeds//,/-}
compare "$result/against-full" evaluation/SYSTEM "${systems[@]}"
for n in ${shots//,/ }; do compare "$result/shots-$n" "adaptation-SYSTEM/all/$n" "${systems[@]}"; done
say "table, figures and report"
stage neuron-spec subnetworks "$result" --seed "$run/seed-${seeds%%,*}" --output "$result"
stage scripts/70_report.sh "$run"

if [[ -n $results ]]; then
  say "copy the results to $results"
  keep "$run/corpus/corpus.json" "$result"/subnetworks*.{png,csv,md} "$results"
  for what in against-full $(printf 'shots-%s ' ${shots//,/ }); do
    keep "$result/$what/comparison.csv" "$results/$what"
  done
  of=$run/seed-${seeds%%,*}
  for figure in conflict-layers conflict-tag; do keep "$of/conflict-full/$figure.png" "$results/conflict-full"; done
  keep "$of/transfer-full/transfer.png" "$results/transfer-full"
  for what in conflict-{full,static,dynamic} transfer-{full,static}; do
    keep "$of/$what/${what%%-*}.md" "$results/$what" # every pair, in the csv, is megabytes
  done
fi
say "done: read $result/subnetworks.md and $run/report.html"
