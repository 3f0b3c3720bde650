# Sourced by install.sh and lock.sh: a Python that fits, and uv of the locked version.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }

die() {
  printf '\nerror: %s\n' "$1" >&2
  shift
  [[ $# -eq 0 ]] || printf '  %s\n' "$@" >&2
  exit 1
}

python_fits() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

# Prints the Python to build the environment with: $PYTHON if set, else the first one that fits.
find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    python_fits "$PYTHON" ||
      die "PYTHON=$PYTHON is not a working Python 3.10, 3.11 or 3.12."
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.10; do
    if python_fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.10, 3.11 or 3.12 found on PATH." \
    "Install one, or name it: make setup PYTHON=/path/to/python3.11"
}

create_venv() { # create_venv FOLDER
  local python
  python=$(find_python)
  say "Creating $1 with $("$python" --version)"
  "$python" -m venv "$1" || die "\`$python -m venv\` failed." \
    "On Debian and Ubuntu it needs the package python3-venv (python3.X-venv for python3.X)." \
    "Then delete $1 and run the same command again."
}

# Puts uv into the environment, and lets it use the package index that pip is configured for.
ensure_uv() { # ensure_uv FOLDER
  local python=$1/bin/python index
  if [[ ! -x $1/bin/uv ]]; then
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null ||
      die "$1 has neither uv nor pip." "Delete $1 and run the same command again."
    say "Installing uv"
    "$python" -m pip install --quiet --disable-pip-version-check \
      "$(grep -om1 '^uv==[^ ;]*' requirements/cpu.txt)" ||
      die "pip could not install uv." "Check the network, and pip's proxy and index settings."
  fi
  index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
  if [[ -n $index && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
    export UV_DEFAULT_INDEX=$index
  fi
  export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
}
