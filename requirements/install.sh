#!/usr/bin/env bash
# Installs everything pinned in requirements.lock into a virtual environment and compiles mmcv's operators.
# usage: bash requirements/install.sh .venv          (PYTHON names the interpreter, default python3.11)
#
# mmcv and xtcocotools have no wheel that works here (mmcv: source only; xtcocotools: built for numpy 1), so both
# are built against the torch and numpy just installed. mmcv's 78 translation units are each dominated by torch's
# headers; joining its 56 thin dispatchers in two, and most of its 20 CPU kernels in one, makes the build several times
# quicker and changes no code. The four kernels named below stay alone: they define the same helpers, or macros.
set -euo pipefail
venv=$1
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3)}
stamp=$venv/.installed
wanted=$(cat "$root/requirements.lock" "$root/setup.cfg" "$0" | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

say() { echo "[install] $*" >&2; }
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
  || { say "Python 3.11 or 3.12 is needed; $python is $("$python" -V). Name another by PYTHON=..."; exit 1; }
command -v c++ >/dev/null || { say "a C++ compiler is needed for mmcv's operators (Debian: apt-get install g++)"; exit 1; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
venv=$(cd "$venv" && pwd)
export PATH="$venv/bin:$PATH"
export VIRTUAL_ENV=$venv
export UV_COMPILE_BYTECODE=1  # uv leaves it to the first import, which costs 10 s a process where nobody may write it
say "packages of requirements.lock into $venv (PyTorch's CUDA build: about 3 GB of downloads)"
"$venv/bin/pip" install -q --disable-pip-version-check 'uv==0.13.8' 'ninja==1.13.2' 'wheel==0.47.0' 2>/dev/null \
  || "$venv/bin/pip" install -q --disable-pip-version-check uv ninja wheel
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
grep -v -E '^(onedl-mmcv|xtcocotools)==' "$root/requirements.lock" > "$scratch/wheels.txt"
uv pip install -q --no-deps -r "$scratch/wheels.txt"

mmcv=$(grep -E '^onedl-mmcv==' "$root/requirements.lock")
xtcoco=$(grep -E '^xtcocotools==' "$root/requirements.lock")
if ! python -c 'import importlib.metadata as m, sys; sys.exit(m.version("onedl-mmcv") != sys.argv[1])' "${mmcv#*==}" 2>/dev/null; then
  say "compiling mmcv's operators (about a minute and a half on two cores)"
  # mmcv's metadata needs setuptools >= 84, torch wants < 82 at run time: the newer one only stands on this build's path.
  uv pip install -q --no-deps --target "$scratch/tools" 'setuptools==84.0.0'
  export PYTHONPATH=$scratch/tools CUDA_VISIBLE_DEVICES= CFLAGS="-g0 -O1" LDFLAGS="-s" MAX_JOBS="${MAX_JOBS:-$(nproc)}"
  pip download -q --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation -d "$scratch" "$mmcv"
  tar -xzf "$scratch"/onedl_mmcv-*.tar.gz -C "$scratch"
  ( cd "$scratch"/onedl_mmcv-*/mmcv/ops/csrc/pytorch
    n=0
    for f in *.cpp; do
      mv "$f" "${f%.cpp}.inc"
      echo "#include \"${f%.cpp}.inc\"" >> "joined_$((n % 2)).cpp"
      n=$((n + 1))
    done
    cd cpu
    for f in *.cpp; do
      case $f in psamask.cpp | roi_align.cpp | roi_align_rotated.cpp | rotated_feature_align.cpp) continue ;; esac
      mv "$f" "${f%.cpp}.inc"
      echo "#include \"${f%.cpp}.inc\"" >> joined.cc
    done
    mv joined.cc joined.cpp )
  ( cd "$scratch"/onedl_mmcv-*/ && pip wheel -q --no-deps --no-build-isolation -w "$scratch/dist" . > "$scratch/mmcv.log" 2>&1 ) \
    || { tail -n 40 "$scratch/mmcv.log" >&2; say "mmcv did not compile (log above)"; exit 1; }
  unset PYTHONPATH
  uv pip install -q --no-deps "$scratch"/dist/onedl_mmcv-*.whl
fi
say "building xtcocotools against numpy 2"
uv pip install -q --no-deps --no-binary xtcocotools --no-build-isolation "$xtcoco"
uv pip install -q --no-deps --no-build-isolation -e "$root"
python - <<'PY'
import mmcv.ops, xtcocotools.mask, torchvision  # noqa: F401  (fails here, not in the middle of a run)
PY
echo "$wanted" > "$stamp"
say "done"
