#!/usr/bin/env bash
# Specialized neurons in NLLB-600M, on your own text: profile, select, train jointly and as deltas, translate, score.
# Run again to resume; every stage skips what is complete.
#   scripts/huggingface/nllb.sh [--smoke] [--text PREFIX] [--pairs PAIR,PAIR,...] [--tuned DIRECTION,...] [--model NAME]
#                               [--updates N] [--k PERCENT] [--run DIR] [--dry-run]
#     (neither)         on one GPU, not run here: no weights of NLLB were at hand. 600M parameters in 32 bits take 2.5 GB; joint
#                       training with Adam about 10 GB and what a batch takes, deltas about half
#     --smoke           a tiny random model and a tokenizer, made here of a toy text, on 1 CPU core: minutes, no downloads
#     --text PREFIX     PREFIX-train, PREFIX-valid and PREFIX-test with a file for each side of each pair, such as
#                       text/mine-train.eng_Latn-deu_Latn.deu_Latn (default text/mine). FLORES-200 serves for two of them:
#                       cp flores200_dataset/dev/deu_Latn.dev text/mine-valid.eng_Latn-deu_Latn.deu_Latn
#     --pairs PAIR,...  of languages, by NLLB's codes; both directions (default eng_Latn-deu_Latn,eng_Latn-fra_Latn)
#     --tuned D,D,...   directions that get a delta (default both of the first pair)
#     --model NAME      of the hub, or a folder (default facebook/nllb-200-distilled-600M)
#     --updates N       of each training (default 2000)
#     --k PERCENT       neurons of the deltas (default 50); the joint model's are of k = 95, as the paper's
#     --run DIR         where everything goes (default runs/nllb, with -smoke)
#     --dry-run         print every command, run none
# Uses .venv, or else an active environment that has neuron-spec and its extra huggingface.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh

text='' pairs='' tuned='' model='' updates='' k=50
take_options "--text --pairs --tuned --model --updates --k" "$@"
default_run nllb
pairs=${pairs:-eng_Latn-deu_Latn,eng_Latn-fra_Latn}
code='[a-z]{3}_[A-Z][a-z]{3}'
needs_list --pairs "$pairs" "$code-$code" 'pairs such as eng_Latn-deu_Latn'
turned() { echo "${1#*-}-${1%-*}"; }
first=${pairs%%,*}
tuned=${tuned:-$first,$(turned "$first")}
needs_list --tuned "$tuned" "$code-$code" 'directions such as eng_Latn-deu_Latn'
[[ -z $updates ]] || needs_number --updates "$updates"
needs_list --k "$k" '[1-9][0-9]?' 'a whole number from 1 to 99'
if [[ $size == smoke ]]; then
  [[ -z $text$model ]] || refuse "--smoke makes its own text and model: leave out --text and --model"
  [[ $pairs == eng_Latn-deu_Latn,eng_Latn-fra_Latn ]] || refuse "--smoke has its own pairs: leave out --pairs"
  text=$run/text/toy model=$run/tiny updates=${updates:-20} device=(--cpu) half=() batch=(--max-tokens 500)
  search=(--beam 2)
else
  text=${text:-text/mine} model=${model:-facebook/nllb-200-distilled-600M} updates=${updates:-2000}
  [[ $text == /* ]] || text=${OLDPWD:-$PWD}/$text
  [[ ! -d ${OLDPWD:-$PWD}/$model ]] || model=$(cd "${OLDPWD:-$PWD}/$model" && pwd)
  device=() half=(--bf16) batch=(--max-tokens 4000 --update-freq 4) search=()
  $dry_run || has_gpu || refuse "torch sees no GPU here: --smoke runs on a CPU"
fi
export TOKENIZERS_PARALLELISM=false
both=''
for pair in ${pairs//,/ }; do both+=${both:+,}$pair,$(turned "$pair"); done

# DIRECTION SYSTEM FLAGS...
translate() {
  local pair=$1 output=$run/translations/$2/$1
  [[ ,$pairs, == *,$1,* ]] || pair=$(turned "$1")
  [[ -f $output.txt ]] || stage neuron-spec translate --direction "$1" --input "$text-test.$pair.${1%-*}" \
    --output "$output.txt" "${device[@]}" "${search[@]}" "${@:3}"
  [[ -f $output.json ]] || scored "$text-test.$pair.${1#*-}" "$output"
}

# REFERENCE OUTPUT
scored() {
  local command=(sacrebleu "$1" -i "$2.txt" -m bleu chrf --chrf-word-order 2)
  if $dry_run; then stage "${command[@]}"; return; fi
  "${command[@]}" >"$2.tmp"
  mv "$2.tmp" "$2.json"
}

if [[ $size == smoke ]]; then
  say "a toy text, and a tiny model of NLLB's kind"
  [[ -f $run/text/toy-test.eng_Latn-fra_Latn.fra_Latn ]] || stage python scripts/huggingface/smoke_text.py "$text"
  [[ -f $model/model.safetensors ]] ||
    stage python scripts/huggingface/tiny_model.py --text "$text"-train.*.* --output "$model"
fi
say "profile: on how many tokens of each direction each neuron is active"
stage neuron-spec profile --hf "$model" --text "$text-valid" --lang-pairs "$both" "${half[@]}" "${device[@]}" \
  --output "$run/profile.safetensors"
say "select each direction's neurons"
stage neuron-spec select "$run/profile.safetensors" --k 95 --output "$run/masks-95.safetensors"
stage neuron-spec select "$run/profile.safetensors" --k "$k" --output "$run/masks-$k.safetensors"
training=(--valid "$text-valid" --updates "$updates" "${batch[@]}" "${half[@]}" "${device[@]}")
say "train all directions jointly, each through its own neurons (the paper's stage 2)"
stage neuron-spec tune --hf "$model" --mode joint --masks "$run/masks-95.safetensors" --text "$text-train" \
  --lang-pairs "$both" --temperature 2 --output "$run/joint" "${training[@]}"
say "train deltas of $tuned: all other directions stay bit for bit what they are"
stage neuron-spec tune --hf "$model" --mode delta --masks "$run/masks-$k.safetensors" --text "$text-train" \
  --lang-pairs "$tuned" --delta-dtype bf16 --output "$run/deltas" "${training[@]}"
deltas=()
for one in ${tuned//,/ }; do deltas+=("$run/deltas/$one.delta.safetensors"); done
say "translate and score the tuned directions; with deltas, others are the plain model's"
for one in ${tuned//,/ }; do
  translate "$one" plain --hf "$model"
  translate "$one" joint --hf "$run/joint"
  translate "$one" deltas --hf "$model" --delta "${deltas[@]}"
done
say "done: losses before and after in $run/joint/losses.json and $run/deltas/losses.json, scores in $run/translations"
