# Sourced by what runs on a machine with a GPU, which says in `takes` which flags it has: those, PATH and PYTHONPATH.
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")

wheels='' output=$root/results/benchmarks
while [[ $# -gt 0 ]]; do
  [[ " ${takes:?} -h --help " == *" $1 "* ]] || { echo "unknown option: $1; see --help" >&2; exit 2; }
  case $1 in
    --wheels) wheels=$(realpath "$2"); shift 2 ;;
    --output) output=$(realpath --canonicalize-missing "$2"); shift 2 ;;
    -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  esac
done
cd "$root"
export PATH=$root/.venv/bin:$PATH PYTHONPATH=$root PYTHONWARNINGS=${PYTHONWARNINGS:-ignore} PYTHONUNBUFFERED=1

python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "torch sees no GPU here: $(command -v python3) needs a torch with CUDA and a GPU it can use" >&2; exit 2; }
if [[ -n $wheels ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl
  # Before what the machine has, which may be of another version.
  PYTHONPATH=$root:$site PATH=$site/bin:$PATH
  printf '#!/bin/sh\nexec python3 -m neuron_spec "$@"\n' > "$site/bin/neuron-spec"
  chmod +x "$site/bin/neuron-spec"
fi
python3 -c 'import fairseq, neuron_spec' ||
  { echo "fairseq cannot be imported here: install what is missing, or see --wheels" >&2; exit 2; }
