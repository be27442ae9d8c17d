#!/usr/bin/env bash
# Write the frozen files with the version that is installed: its neuron-spec and fairseq-train are those on PATH.
#   bash make.sh WORK OUTPUT       both must be new
set -euo pipefail
here=$(realpath "$(dirname "$0")")
work=$1 output=$2
mkdir "$work"
work=$(realpath "$work")
mkdir -p "$output"
output=$(realpath "$output")
cd "$work"
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore
data_bin=corpus/data-bin langs=en,qa,qb,qm,qn known=en-qa,qa-en,en-qb,qb-en,en-qm,qm-en new=en-qn,qn-en
few=(--cpu --lang-pairs "$known")

neuron-spec data toy --output corpus --langs qa,qb,qm,qn --vocab-size 110 --train-size 400 --valid-size 8 --test-size 6

cat > flags.yaml <<'END'
arch: neuron_spec_transformer_tiny
encoder-layers: 2
decoder-layers: 2
encoder-embed-dim: 16
decoder-embed-dim: 16
encoder-ffn-embed-dim: 32
decoder-ffn-embed-dim: 32
encoder-attention-heads: 2
decoder-attention-heads: 2
share-all-embeddings: true
max-source-positions: 64
max-target-positions: 64
encoder-langtok: src
decoder-langtok: true
sampling-method: temperature
sampling-temperature: 1
criterion: label_smoothed_cross_entropy
label-smoothing: 0.1
dropout: 0.0
optimizer: adam
adam-betas: (0.9,0.98)
lr: 0.02
lr-scheduler: inverse_sqrt
warmup-updates: 100
max-tokens: 1000
disable-validation: true
seed: 1
num-workers: 0
END
grep -v -e positions -e langtok -e sampling -e scheduler -e warmup flags.yaml > finetune.yaml
printf '%s\n' 'lr-scheduler: polynomial_decay' 'total-num-update: 3' 'max-update: 3' >> finetune.yaml
mapfile -t flags < <(neuron-spec flags flags.yaml)

# NAME UPDATES FLAG ...: a checkpoint without the optimizer, in half precision
train() {
  local name=$1 updates=$2
  fairseq-train $data_bin --user-dir "$(neuron-spec user-dir)" --langs $langs --lang-pairs $known "${flags[@]}" \
    --cpu --no-epoch-checkpoints --max-update "$updates" --save-dir "training/$name" "${@:3}" > "$name.log" 2>&1
  neuron-spec checkpoint shrink --path "training/$name/checkpoint_last.pt" --corpus corpus --output "$name.pt"
}
go_on() { train "$1" "$2" --finetune-from-model dense.pt --lr 0.002 "${@:3}"; }

train dense 1200 --task translation_multi_simple_epoch
neuron-spec profile $data_bin --path dense.pt --output profile.safetensors "${few[@]}"
select_from() { neuron-spec select profile.safetensors --output "masks/$1.safetensors" --k 80 "${@:2}"; }
select_from direction
select_from language --neuron-sets language
select_from matched-random --method matched-random --seed 2
neuron-spec importance $data_bin --path dense.pt --output importance.safetensors "${few[@]}"
neuron-spec prune $data_bin --path dense.pt --output masks/pruned.safetensors --sites both --step-fraction 0.3 \
  --quality-floor 0.8 --max-steps 2 "${few[@]}"
neuron-spec lass $data_bin --path dense.pt --output masks/weights.safetensors --work lass --alpha 0.5 \
  --config finetune.yaml "${few[@]}"

go_on specialized 10 --task neuron_specialization --neuron-masks masks/direction.safetensors
go_on dense-continuation 10 --task neuron_specialization
go_on adapters 4 --task neuron_specialization --arch neuron_spec_adapters_tiny --adapters family --adapter-size 2
go_on lass-joint 4 --task neuron_specialization --arch neuron_spec_lass_tiny --weight-masks masks/weights.safetensors
go_on dynamic 4 --task neuron_spec_dynamic --neuron-masks masks/direction.safetensors --dynamic-masks learned

for system in dense dense-continuation specialized; do
  neuron-spec evaluate $data_bin --path $system.pt --output evaluation/$system "${few[@]}" --beam 2
done
for direction in en-qa qm-en; do
  mkdir -p logs/$direction
  fairseq-generate $data_bin --user-dir "$(neuron-spec user-dir)" --task neuron_specialization --path specialized.pt \
    --langs $langs --lang-pairs $known --encoder-langtok src --decoder-langtok --cpu --beam 2 --max-tokens 1000 \
    --max-source-positions 64 --max-target-positions 64 \
    --remove-bpe sentencepiece -s ${direction%-*} -t ${direction#*-} \
    > logs/$direction/generate-test.txt 2> /dev/null
done
neuron-spec evaluate --generate-output logs/*/generate-test.txt --output evaluation-of-logs
neuron-spec compare evaluation/dense-continuation evaluation/specialized --output comparison --bootstrap 200
neuron-spec ablate $data_bin --path dense.pt --masks masks/direction.safetensors --output ablation --cpu --random-draws 1
neuron-spec conflict $data_bin --path dense.pt --output conflict --overlap masks/direction.safetensors --cpu \
  --lang-pairs en-qa,qa-en,en-qm,qm-en
neuron-spec transfer $data_bin --path dense.pt --output transfer --lr 0.1 --sentences 20 \
  --overlap masks/direction.safetensors "${few[@]}"
neuron-spec adapt $data_bin --path dense.pt --lang-pairs $new --shots 0,5 --steps 2 --lr 0.1 --output adaptation --cpu \
  --beam 1
neuron-spec analyze masks/direction.safetensors --corpus-card corpus/corpus.json --output analysis

# What is kept: no binarized training text (raw text is what languages are identified by), no pages and figures.
rm -r corpus/data-bin/train.* corpus/raw/valid.* corpus/spm adaptation/??-??
mkdir -p "$output"/checkpoints "$output"/evaluation
cp -r corpus masks logs evaluation-of-logs adaptation profile.safetensors importance.safetensors "$output"
cp -r evaluation/{dense,dense-continuation,specialized} "$output/evaluation"
cp {dense,specialized,adapters,lass-joint,dynamic}.pt dense.json specialized.json "$output/checkpoints"
for study in comparison analysis ablation conflict transfer; do
  mkdir "$output/$study"
  cp $study/$study.json "$output/$study"
done
find "$output" \( -name '*.pt' -not -path '*/checkpoints/*' -o -name '*.png' -o -name '*.svg' -o -name table.md \) -delete
python "$here/log_probabilities.py" $data_bin "$output"/checkpoints/*.pt > "$output/log_probabilities.json"
python - "$output" > "$output/identities.json" <<'END'
import json, pathlib, sys
from neuron_spec.checkpoints import checkpoint_sha256  # of a later version: neuron_spec.backends.fairseq.checkpoints
from neuron_spec.neurons.masks import NeuronMasks

folder = pathlib.Path(sys.argv[1])
sets = [path for path in sorted(folder.glob("masks/*.safetensors")) if path.stem != "weights"]
print(json.dumps({
    "masks": {path.stem: NeuronMasks.load(path).fingerprint for path in sets},
    "checkpoints": {path.stem: checkpoint_sha256(path) for path in sorted(folder.glob("checkpoints/*.pt"))},
}, indent=1))
END
xz -9e "$output"/checkpoints/*.pt
