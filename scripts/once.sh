#!/usr/bin/env bash
# Run a command unless it has already ended well with the same words and the same input files.
#   scripts/once.sh MARK [INPUT_FILE ...] -- COMMAND ...
set -euo pipefail
mark=$1 inputs=()
shift
while [[ $1 != -- ]]; do inputs+=("$1"); shift; done
shift
made_from=$(printf '%q ' "$@"; printf '\n'; [[ ${#inputs[@]} -eq 0 ]] || sha256sum -- "${inputs[@]}")

if [[ -f $mark && $(<"$mark") == "$made_from" ]]; then
  echo "$mark: complete already" >&2
  exit 0
fi
"$@"
printf '%s\n' "$made_from" > "$mark.tmp" && mv "$mark.tmp" "$mark"
