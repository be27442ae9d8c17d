#!/usr/bin/env bash
# Make a file, and note how many seconds that took: {"seconds": 12.3}. Skips what is noted; what was made before
# without a note is made anew, since only then there is something to time.
#   scripts/timed.sh NOTE.json FILE -- COMMAND ...
set -euo pipefail
note=$1 file=$2
[[ $3 == -- ]] || { echo "usage: scripts/timed.sh NOTE.json FILE -- COMMAND ..." >&2; exit 2; }
if [[ -f $note && -f $file ]]; then
  echo "$note: complete already" >&2
  exit 0
fi
rm -f "$note" "$file"
start=${EPOCHREALTIME/,/.}
"${@:4}"
awk -v from="$start" -v to="${EPOCHREALTIME/,/.}" 'BEGIN { printf "{\"seconds\": %.1f}\n", to - from }' > "$note.tmp"
mv "$note.tmp" "$note"
