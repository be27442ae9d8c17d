#!/usr/bin/env bash
# Add a language to a specialized model: its text in the model's pieces, a token, its directions' sets beside the others,
# which stay as they are, more training on old and new directions, and scores of both. Run again to resume.
#   scripts/new_language.sh --path CHECKPOINT --masks MASKS --corpus DIR --lang xx --train PREFIX [--valid PREFIX]
#                           [--test PREFIX] [--updates N] [--config FILE] [--run DIR] [--dry-run]
#   scripts/new_language.sh --smoke [--run DIR] [--dry-run]
#     --path, --masks    the specialized checkpoint, and the masks that it was specialized with
#     --corpus DIR       what it was trained on, as neuron-spec data writes it: data-bin/, spm/, raw/
#     --lang xx          the new language, which the model's --langs do not have
#     --train PREFIX     its text: text/train of text/train.en-xx.en and text/train.en-xx.xx, or a folder of such files
#     --valid, --test    the same (default: lines held out from --train)
#     --updates N        of training on, all directions together (default 300)
#     --config FILE      flags of fairseq-train for it, in YAML (default: as the checkpoint was trained)
#     --run DIR          where everything goes (default runs/new-language, or runs/new-language-smoke)
#     --smoke            the toy corpus: a model of two languages, to which a third one comes; two minutes
#     --dry-run          print every command, run none
# Uses .venv, or else an active environment that has neuron-spec.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/.."
# shellcheck source=scripts/pipeline.sh
source scripts/pipeline.sh

path='' masks='' corpus='' lang='' updates='' config='' data=() sources=(--train --valid --test)
take_options "--path --masks --corpus --lang --updates --config" "$@"
for name in path masks corpus config; do
  value=${!name}
  [[ -z $value || $value == /* ]] || printf -v "$name" %s "$OLDPWD/$value" # as it is seen from where the user called
done
default_run new-language
if [[ $size == smoke ]]; then
  [[ -z $path$masks$corpus$lang$updates$config && ${#data[@]} == 0 ]] || refuse "--smoke makes its own model and text"
  lang=qb updates=60
else
  for name in path masks corpus lang; do [[ -n ${!name} ]] || refuse "--$name is missing"; done
  [[ " ${data[*]} " == *" --train "* ]] || refuse "where is the text of $lang? Give --train"
  updates=${updates:-300}
  needs_number --updates "$updates"
fi
$dry_run || command -v neuron-spec &>/dev/null || scripts/00_install.sh
choose_device
training=("${device[@]}" --log-format simple --log-interval 20 --num-workers 0)

if [[ $size == smoke ]]; then
  say "smoke: a specialized model of two languages"
  toy=(--train-size 1200 --valid-size 60 --test-size 30)
  corpus=$(realpath -m "$run/old-corpus") masks=$run/masks.safetensors path=$run/specialized/checkpoint_last.pt
  dense=$run/dense/checkpoint_last.pt
  stage scripts/10_data.sh toy "$corpus" --langs qa,qm "${toy[@]}"
  logged "$run/dense/train.log" scripts/20_pretrain.sh "$corpus/data-bin" "$run/dense" configs/smoke/pretrain.yaml \
    --max-update 90 --total-num-update 90 "${training[@]}"
  stage scripts/30_profile.sh "$corpus/data-bin" "$dense" "$run/profile.safetensors" "${device[@]}"
  stage scripts/40_select.sh "$run/profile.safetensors" "$masks"
  logged "$run/specialized/train.log" scripts/50_specialize.sh "$corpus/data-bin" "$dense" "$masks" "$run/specialized" \
    configs/smoke/continue.yaml --max-update 40 --total-num-update 40 "${training[@]}"
fi

old=$corpus/data-bin new=$run/corpus/data-bin pieces=$corpus/spm/sentencepiece.model
say "corpus: $lang, in the model's pieces"
if [[ $size == smoke ]]; then
  stage scripts/10_data.sh toy "$run/corpus" --langs "$lang" "${toy[@]}" --sentencepiece "$pieces"
else
  stage scripts/10_data.sh text "$run/corpus" "${data[@]}" --sentencepiece "$pieces"
fi

say "a token for $lang; all that the model has stays as it is"
stage neuron-spec checkpoint add-language "$lang" --path "$path" --data-bin "$old" --output "$run/start.pt"
say "profile $lang through all neurons, and add its directions' sets to the others"
among=(--lang-pairs "$new/lang_pairs.txt")
stage scripts/30_profile.sh "$new" "$run/start.pt" "$run/new-profile.safetensors" "${among[@]}" "${device[@]}" \
  -- --missing-direction dense
stage neuron-spec masks add "$masks" "$run/new-profile.safetensors" --path "$run/start.pt" --data-bin "$old" \
  --output "$run/wider-masks.safetensors"

say "continue: $updates updates on old and new directions, each through its own neurons"
stage mkdir -p "$run/both"
stage find "$old/" "$(realpath -m "$new")/" -type f -exec ln -sf --target-directory "$run/both" '{}' +
logged "$run/continued/train.log" neuron-spec specialize "$run/both" --path "$run/start.pt" \
  --masks "$run/wider-masks.safetensors" --save-dir "$run/continued" ${config:+--config "$config"} \
  -- --max-update "$updates" "${training[@]}"

say "evaluate: the old directions before and after, and the new ones"
stage scripts/60_evaluate.sh "$old" "$path" "$run/evaluation/before" "${device[@]}" -- --max-len-a 2 --max-len-b 10
stage scripts/60_evaluate.sh "$old" "$run/continued/checkpoint_last.pt" "$run/evaluation/after" \
  --lang-pairs "$old/lang_pairs.txt" "${device[@]}" -- --max-len-a 2 --max-len-b 10
stage scripts/60_evaluate.sh "$new" "$run/continued/checkpoint_last.pt" "$run/evaluation/new" "${among[@]}" \
  "${device[@]}" -- --max-len-a 2 --max-len-b 10
stage neuron-spec compare "$run/evaluation/before" "$run/evaluation/after" --output "$run/comparison"
say "done: $run/comparison/comparison.md has what the old directions gained or lost, $run/evaluation/new/table.md the new ones"
