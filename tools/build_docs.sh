#!/usr/bin/env bash
# Builds the documentation in docs/_build/html, in an environment that tools/setup_env.sh finds or makes.
#
#   bash tools/build_docs.sh            warnings are errors
#   bash tools/build_docs.sh -b linkcheck docs docs/_build/linkcheck     arguments take the place of these
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

"$MMSKD_PYTHON" -c 'import sphinx, myst_parser, furo, sphinx_copybutton' >/dev/null 2>&1 ||
    "$MMSKD_PYTHON" -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
if [ $# = 0 ]; then set -- -b html docs docs/_build/html; fi
exec "$MMSKD_PYTHON" -m sphinx -W --keep-going -q "$@"
