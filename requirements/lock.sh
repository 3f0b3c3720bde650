#!/usr/bin/env bash
# Resolves setup.py into requirements/{cpu,gpu}.txt. Called by `make lock`.
# Keeps what is locked as far as setup.py allows; UPGRADE=1 takes the newest versions instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. requirements/bootstrap.sh

VENV=${VENV:-.venv}
[[ -e $VENV/bin/python ]] || create_venv "$VENV"
ensure_uv "$VENV"

# Every line would carry the markers of [tool.uv] environments, which install.sh has checked.
strip_common_markers() {
  sed -E -i \
    -e "s/ and platform_machine == 'x86_64' and sys_platform == 'linux'$//" \
    -e "s/ (;|and) python_full_version < '3\.13'$//" "$1"
}

for extra in cpu gpu; do
  lock=requirements/$extra.txt
  say "Resolving .[$extra,dev] into $lock"
  "$VENV/bin/uv" pip compile --quiet setup.py --extra "$extra" --extra dev \
    --universal --python-version 3.10 --override requirements/overrides.txt \
    --no-header --no-annotate --no-emit-index-url ${UPGRADE:+--upgrade} --output-file "$lock" ||
    die "the requirements in setup.py have no common solution for $extra; the lines above say why."
  strip_common_markers "$lock"
  sed -i "1i # .[$extra,dev] for Linux x86_64 and Python 3.10-3.12. Written by \`make lock\`." "$lock"
done
