#!/usr/bin/env bash
# Builds what a release consists of, in dist/, and looks at it as one who installs it would.
#
#   bash tools/release.sh        nothing is uploaded
#
# Stops if the version in mmskd/version.py has no section in CHANGELOG.md or the checkout has changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

stop() { echo "[mmskd] stopped: $*" >&2; exit 1; }

version="$("$MMSKD_PYTHON" -c 'exec(open("mmskd/version.py").read()); print(__version__)')"
grep -q "^## $version" CHANGELOG.md || stop "CHANGELOG.md has no section '## $version'"
[ -z "$(git status --porcelain)" ] || stop 'the checkout has changes that are not committed'

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$MMSKD_PYTHON" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build twine
rm -rf dist
"$work/build/bin/python" -m build --outdir dist .
"$work/build/bin/python" -m twine check --strict dist/*

# In an environment of its own that sees the packages of the one at hand, and not this checkout.
"$MMSKD_PYTHON" -m venv "$work/fresh"
site="$("$MMSKD_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "$site" >"$(echo "$work"/fresh/lib/python*/site-packages)/environment.pth"
"$work/fresh/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
(cd "$work" && env -u PYTHONPATH "$work/fresh/bin/python" -W ignore - <<'PYTHON'
import mmskd
from mmengine.config import Config
from mmengine.hub import get_config

assert 'fresh' in mmskd.__file__, mmskd.__file__
assert Config.fromfile(mmskd.__path__[0] + '/.mim/configs/pskd_retinanet.py').custom_hooks
assert get_config('mmskd::pskd_retinanet.py').custom_hooks
print(f'[mmskd] {mmskd.__version__}: installed by itself, its configs are found by name')
PYTHON
)
ls -l dist
