#!/usr/bin/env bash
# Runs the tests, in an environment that tools/setup_env.sh finds or makes.
#
#   bash tools/run_tests.sh                          all of them, on up to four cores
#   bash tools/run_tests.sh --fast                   without what pyproject.toml calls slow
#   bash tools/run_tests.sh -k retinanet -x          arguments go to pytest
#   bash tools/run_tests.sh tests/test_install       a path takes the place of all
#   MMSKD_STACK=onedl bash tools/run_tests.sh        with the maintained forks
#   MMSKD_PYTHON=/path/to/python bash tools/run_tests.sh
#
# MMSKD_TEST_DATA=folder with bccd/ and the like switches on the tests that need real images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tools/setup_env.sh

missing=()
"$MMSKD_PYTHON" -c 'import pytest' >/dev/null 2>&1 || missing+=(pytest)
"$MMSKD_PYTHON" -c 'import xdist' >/dev/null 2>&1 || missing+=(pytest-xdist)
if [ ${#missing[@]} -gt 0 ]; then
    echo "[mmskd] not installed in this environment: ${missing[*]}. Installing that, and nothing else"
    "$MMSKD_PYTHON" -m pip install --quiet --disable-pip-version-check "${missing[@]}" || {
        echo "[mmskd] stopped: pip could not install ${missing[*]} in $MMSKD_PYTHON" >&2
        exit 1
    }
fi

# The tests' tensors are small: a second thread waits more than it works.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Pictures are written, no window is opened.
export MPLBACKEND="${MPLBACKEND:-Agg}"

# All tests: a process for each core, but not more than four, since each loads torch. Each takes files
# that follow one another, whose tests share what their fixtures trained; who is done early takes from
# another's end.
parallel=()
if [ "$*" = --fast ]; then
    set -- -m 'not slow'
    all=1
elif [ $# = 0 ]; then
    all=1
fi
if [ -n "${all:-}" ]; then
    # nproc would take OMP_NUM_THREADS for an answer
    cores="$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)"
    if [ "$cores" -gt 4 ]; then cores=4; fi
    if [ "$cores" -gt 1 ]; then parallel=(-n "$cores" --dist worksteal); fi
fi

paths=(tests)
for argument in "$@"; do
    case $argument in
        -*) ;;
        *) if [ -e "${argument%%::*}" ]; then paths=(); fi ;;
    esac
done

set -- ${paths[@]+"${paths[@]}"} ${parallel[@]+"${parallel[@]}"} "$@"
echo "[mmskd] python -m pytest $* (OMP_NUM_THREADS=$OMP_NUM_THREADS)"
exec "$MMSKD_PYTHON" -m pytest "$@"
