#!/usr/bin/env bash
# Runs the tests, in an environment that tools/setup_env.sh finds or makes.
#
#   bash tools/run_tests.sh                          all of them
#   bash tools/run_tests.sh -k retinanet -x          arguments go to pytest
#   bash tools/run_tests.sh tests/test_install       a path takes the place of all
#   MMSKD_STACK=onedl bash tools/run_tests.sh        with the maintained forks
#   MMSKD_PYTHON=/path/to/python bash tools/run_tests.sh
#
# MMSKD_TEST_DATA=folder with bccd/ and the like switches on the tests that need real images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tools/setup_env.sh

if ! "$MMSKD_PYTHON" -c 'import pytest' >/dev/null 2>&1; then
    echo "[mmskd] pytest is not installed in this environment: installing it, and nothing else"
    "$MMSKD_PYTHON" -m pip install --quiet --disable-pip-version-check pytest || {
        echo "[mmskd] stopped: pip could not install pytest in $MMSKD_PYTHON" >&2
        exit 1
    }
fi

# The tests' tensors are small: a second thread waits more than it works.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Pictures are written, no window is opened.
export MPLBACKEND="${MPLBACKEND:-Agg}"

paths=(tests)
for argument in "$@"; do
    case $argument in
        -*) ;;
        *) if [ -e "${argument%%::*}" ]; then paths=(); fi ;;
    esac
done

echo "[mmskd] python -m pytest ${paths[*]} $* (OMP_NUM_THREADS=$OMP_NUM_THREADS)"
exec "$MMSKD_PYTHON" -m pytest ${paths[@]+"${paths[@]}"} "$@"
