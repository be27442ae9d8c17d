# shellcheck shell=bash
# Sourced after pipeline.sh and systems.sh by the experiments on the built-in corpus. They set size (gpu, cpu, smoke)
# and run; this sets what systems.sh asks for, alike for all of them, so that they share corpora and models.

corpus=homeassistant langs=de,nl,sv,es,pt,it,cs,sk,ru,hu,et,tr vocab_size=8000
[[ $size != cpu ]] || vocab_size=4000
data=(--langs "$langs" --vocab-size "$vocab_size" --valid-size 300 --test-size 400)
configs=configs/homeassistant/$size checkpoint=checkpoint_last.pt
device=(--cpu) batch=() fewer=()
often=(--log-format simple --log-interval 20 --save-interval-updates 60 --keep-interval-updates 1
  --validate-interval-updates 100)
seldom=(--log-format simple --log-interval 100 --save-interval-updates 500 --keep-interval-updates 1
  --validate-interval-updates 1000)
[[ $size == gpu ]] || keep_freed_memory
default_run homeassistant
case $size in
  gpu) device=() batch=(--max-tokens 16000) ;;
  smoke)
    corpus=toy data=(--train-size 1500 --valid-size 60 --test-size 30) configs=configs/smoke
    fewer=(--max-update 60 --total-num-update 60)
    seldom=(--max-update 400 --total-num-update 400 "${often[@]}")
    ;;
esac
pretraining=("${device[@]}" "${seldom[@]}") continuing=("${device[@]}" "${fewer[@]}" "${often[@]}")
profiling=("${device[@]}" "${batch[@]}")
evaluating=("${device[@]}" "${batch[@]}" -- --max-len-a 2 --max-len-b 10)
data_bin=$run/corpus/data-bin
