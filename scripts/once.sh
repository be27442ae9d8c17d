#!/usr/bin/env bash
# Run a command unless it has already ended well with the same words and the same input files.
#   scripts/once.sh MARK [INPUT_FILE ...] -- COMMAND ... [-- WORD ...]
# The words after a second -- are the command's too, but not remembered: which process this is, not what is made.
set -euo pipefail
mark=$1 inputs=() command=()
shift
while [[ $1 != -- ]]; do inputs+=("$1"); shift; done
shift
while [[ $# -gt 0 && $1 != -- ]]; do command+=("$1"); shift; done
made_from=$(printf '%q ' "${command[@]}"; printf '\n'; [[ ${#inputs[@]} -eq 0 ]] || sha256sum -- "${inputs[@]}")

if [[ -f $mark && $(<"$mark") == "$made_from" ]]; then
  echo "$mark: complete already" >&2
  exit 0
fi
"${command[@]}" "${@:2}"
# A training that had ended under other words makes no update, and what is there is not made by these.
folder=$(dirname "$mark")
if [[ -f $mark && $(<"$mark") != "$made_from" ]] && compgen -G "$folder/*.pt" > /dev/null &&
  [[ -z $(find -L "$folder" -maxdepth 1 -name '*.pt' -newer "$mark") ]]; then
  echo "$mark: another training is complete here, and no update was made; the words or files that differ:" >&2
  diff <(tr ' ' '\n' < "$mark") <(tr ' ' '\n' <<< "$made_from") | grep '^[<>]' >&2 || true
  echo "name another folder, or delete what is there" >&2
  exit 2
fi
# Processes of several nodes may do this at once.
unfinished=$mark.${HOSTNAME:-here}.$$.tmp
for left in "$mark.${HOSTNAME:-here}".*.tmp; do # of those that were killed here
  process=${left%.tmp} process=${process##*.}
  kill -0 "$process" 2>/dev/null || rm -f "$left"
done
printf '%s\n' "$made_from" > "$unfinished" && mv "$unfinished" "$mark"
