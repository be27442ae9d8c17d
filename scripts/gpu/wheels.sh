#!/usr/bin/env bash
# On a machine with network: download what bench.sh needs on one without, in the versions of .venv.
#   scripts/gpu/wheels.sh DIR [PYTHON_VERSION [PACKAGE ...]]
#     PYTHON_VERSION   of the other machine (default 3.12), which is Linux on x86-64
#     PACKAGE          to have too, of those that are assumed to be there already: torch for its GPU, numpy,
#                      packaging, typing_extensions, and scikit-learn scipy joblib threadpoolctl narwhals
set -euo pipefail
[[ $# -ge 1 && $1 != -* ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
folder=$(realpath "$1") python_version=${2:-3.12}
cd "$(dirname "$0")/../.."
[[ -x .venv/bin/python ]] || { echo "no .venv: run scripts/00_install.sh first" >&2; exit 2; }

# fairseq declares torchaudio and Cython too, and runs without them; without scikit-learn it cannot be imported.
packages=("${@:3}" ve-fairseq hydra-core omegaconf bitarray cffi pycparser regex PyYAML tqdm safetensors sentencepiece
  sacrebleu portalocker tabulate colorama lxml langcodes)
platforms=()
for glibc in 1 2010 2014 _2_17 _2_24 _2_26 _2_27 _2_28 _2_31 _2_34; do
  platforms+=(--platform "manylinux${glibc}_x86_64")
done

pinned() { .venv/bin/python -c 'import importlib.metadata as m, sys; print(f"{sys.argv[1]}=={m.version(sys.argv[1])}")' "$1"; }

wanted=()
for package in "${packages[@]}"; do wanted+=("$(pinned "$package")"); done
.venv/bin/pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python_version" \
  "${platforms[@]}" --dest "$folder" "${wanted[@]}"
# It comes as source alone; the wheel made of it serves every Python.
.venv/bin/pip wheel --quiet --no-deps --wheel-dir "$folder" "$(pinned antlr4-python3-runtime)"
du -ch "$folder"/*.whl | tail -n 1 >&2
echo "$folder"
