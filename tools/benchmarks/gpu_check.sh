#!/usr/bin/env bash
# Everything that must be seen on a GPU, in one command, without a network.
#
#   bash tools/benchmarks/gpu_check.sh PACKAGES [RESULTS]
#
# PACKAGES is a folder with the wheels (sources, where there are none) of what is not installed (mmengine, mmdet, mmpose
# and what they need, without torch) and the source of mmcv (mmcv-*.tar.gz, or a folder mmcv*). The operators of mmcv are
# compiled for the GPU that is there, into a new environment on top of the one whose Python runs (MMSKD_PYTHON, default:
# python3), which has torch; that one is not changed. Compiled, they are kept for the next time in MMSKD_CACHE (default:
# ~/.cache/mmskd). Then: the tests marked `cuda`, step_cost.py (also --amp) and scaling.py with --device cuda. What they
# measure, and the logs, go to RESULTS (default: results/gpu).
#
# Ends with 0 if all went well, 1 if something failed, and 77, with the reason, where it cannot run at all.
# MMSKD_BUDGET is how many seconds it may take, 570 by default; what does not fit any more is named.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
BASE="${MMSKD_PYTHON:-python3}"
BUDGET="${MMSKD_BUDGET:-570}"
RESULTS="${2:-results/gpu}"

say() { printf '[gpu_check] %s\n' "$*"; }
skip() { say "not run: $*"; exit 77; }

[ $# -ge 1 ] || skip 'give a folder with wheels and the source of mmcv'
[ -d "$1" ] || skip "there is no folder $1"
PACKAGES="$(cd "$1" && pwd)"
"$BASE" -c 'import torch' 2>/dev/null || skip "$BASE has no torch; name one that has with MMSKD_PYTHON"
"$BASE" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    skip "torch $("$BASE" -c 'import torch; print(torch.__version__)') sees no GPU here"
NVCC="$("$BASE" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")')/bin/nvcc"
[ -x "$NVCC" ] || skip 'there is no nvcc to build the operators of mmcv with (CUDA_HOME)'
SOURCE="$(find "$PACKAGES" -maxdepth 1 \( -name 'mmcv-*.tar.gz' -o -type d -name 'mmcv*' \) | sort | head -n 1)"
[ -n "$SOURCE" ] || skip "$PACKAGES has no source of mmcv (mmcv-*.tar.gz)"

mkdir -p "$RESULTS"
RESULTS="$(cd "$RESULTS" && pwd)"
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
FAILED=()

left() { echo $((BUDGET - SECONDS)); }

step() {   # step TITLE LOG SECONDS COMMAND...: at most so many, and no more than are left
    local title=$1 log="$RESULTS/$2.log" limit=$3 start=$SECONDS
    shift 3
    if [ "$(left)" -lt 15 ]; then
        say "$title: no time left"
        FAILED+=("$title")
        return 1
    fi
    if [ "$(left)" -lt "$limit" ]; then limit=$(left); fi
    if timeout "$limit" "$@" >"$log" 2>&1; then
        say "$title: done in $((SECONDS - start)) s"
        return 0
    fi
    say "$title: failed after $((SECONDS - start)) s of at most $limit; the end of $log:"
    tail -n 5 "$log" | sed 's/^/    /'
    FAILED+=("$title")
    return 1
}

"$BASE" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())' | tee "$RESULTS/machine.txt"
export TORCH_CUDA_ARCH_LIST MMCV_WITH_OPS=1 FORCE_CUDA=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}"
TORCH_CUDA_ARCH_LIST="$("$BASE" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')"
PIP_FLAGS=(--disable-pip-version-check --no-input --quiet --no-index --no-deps)

# `timeout` runs programs, not functions
KEPT="${MMSKD_CACHE:-$HOME/.cache/mmskd}/mmcv-$("$BASE" -c 'import sys, torch
print("py%d%d-torch%s-sm%d%d" % (*sys.version_info[:2], torch.__version__, *torch.cuda.get_device_capability()))')"
mkdir -p "$KEPT"
cat > "$WORK/operators.sh" <<'END'
set -eu
python=$1 kept=$2 source=$3
shift 3
if ! ls "$kept"/*.whl >/dev/null 2>&1; then
    "$python" -m pip wheel "$@" --no-build-isolation -w "$kept.part" "$source"
    mv "$kept.part"/*.whl "$kept"
fi
"$python" -m pip install "$@" "$kept"/*.whl
END
cat > "$WORK/environment.sh" <<'END'
set -eu
base=$1 venv=$2 packages=$3
shift 3
"$base" -m venv --system-site-packages "$venv"
# What is installed where the base is an environment itself
"$base" -c 'import site; print("\n".join(site.getsitepackages()))' \
    > "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/base.pth"
if ls "$packages"/*.whl >/dev/null 2>&1; then
    "$venv/bin/python" -m pip install "$@" "$packages"/*.whl
fi
find "$packages" -maxdepth 1 -name '*.tar.gz' ! -name 'mmcv-*' -print0 |   # xtcocotools has no wheels
    xargs -0 -r "$venv/bin/python" -m pip install "$@" --no-build-isolation
END

PY="$WORK/venv/bin/python"
# Where the base has ninja, without which one file is compiled after the other
PATH="$(dirname "$("$BASE" -c 'import sys; print(sys.executable)')"):$PATH"
export PATH PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg
if step 'environment' environment 120 \
        bash "$WORK/environment.sh" "$BASE" "$WORK/venv" "$PACKAGES" "${PIP_FLAGS[@]}" &&
    step "operators of mmcv for compute capability $TORCH_CUDA_ARCH_LIST" mmcv 420 \
        bash "$WORK/operators.sh" "$PY" "$KEPT" "$SOURCE" "${PIP_FLAGS[@]}" &&
    step 'an operator of mmcv on the GPU' operators 60 "$PY" -c \
        'import torch; from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9]]).cuda()
assert len(nms(boxes, boxes[:, 2], 0.5)[0]) == 1'; then
    step 'tests marked cuda' tests 180 "$PY" -m pytest -q -m cuda -p no:cacheprovider tests/test_cuda.py
    step 'cost of a step' step_cost 180 \
        "$PY" tools/benchmarks/step_cost.py --device cuda --memory --out "$RESULTS/step_cost.json"
    step 'cost of a step in mixed precision' step_cost_amp 180 \
        "$PY" tools/benchmarks/step_cost.py --device cuda --amp --memory --out "$RESULTS/step_cost_amp.json"
    step 'scaling' scaling 120 \
        "$PY" tools/benchmarks/scaling.py --device cuda --out "$RESULTS/scaling.json" --plot "$RESULTS/scaling.png"
fi

say "after $SECONDS s: $(ls "$RESULTS" | tr '\n' ' ')"
[ ${#FAILED[@]} = 0 ] || { say "failed: ${FAILED[*]}"; exit 1; }
