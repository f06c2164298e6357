#!/usr/bin/env bash
# Teaches a small pose estimator in three ways on generated images, prints one table and writes
# pictures. The environment is one that tools/setup_env.sh finds or makes.
#
#   bash tools/demo.sh                  `--help` lists the arguments, they go to tools/demo.py
#   MMSKD_STACK=onedl bash tools/demo.sh
#   MMSKD_PYTHON=/path/to/python bash tools/demo.sh
set -euo pipefail

# Relative paths among the arguments are those of the caller, so the folder stays.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

source "$root/tools/setup_env.sh"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"   # a training is one thread, a core has one training
export MPLBACKEND="${MPLBACKEND:-Agg}"

exec "$MMSKD_PYTHON" "$root/tools/demo.py" "$@"
