# Sourced by the other scripts: the virtual environment at the repository's root, and how to say
# that something is wrong.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
DRY_RUN=${DRY_RUN:-false}
unset PYTHONDONTWRITEBYTECODE # Else every process compiles all it imports anew, for some seconds.

fail() {
  printf 'star: error: %s\n' "$*" >&2
  exit 2
}

# Runs a command, or prints it under --dry-run.
run() {
  if [[ $DRY_RUN == true ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

has_uv() {
  uv --version >/dev/null 2>&1 # A pyenv shim may exist and not work.
}

# Prints the path of a Python of 3.11 or newer.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11) or print(sys.executable))' \
      2>/dev/null && return
  done
  fail "no Python of 3.11 or newer is on the PATH; on Debian or Ubuntu: apt-get install python3 python3-venv"
}

make_venv() {
  local python
  [[ -e $VENV ]] && [[ ! -x $PYTHON ]] && fail "$VENV holds no working Python; remove it"
  [[ -x $PYTHON ]] && return
  python=$(find_python)
  if has_uv; then
    run uv venv --quiet --python "$python" "$VENV"
    return
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    fail "$python has no venv module; on Debian or Ubuntu: apt-get install $("$python" -c \
      'import sys; print("python3.%d-venv" % sys.version_info[1])')"
  fi
  run "$python" -m venv "$VENV"
}

# Installs into the environment, by uv where it is present, else by pip.
install() {
  if has_uv; then
    run uv pip install --quiet --python "$PYTHON" "$@"
  elif [[ $DRY_RUN == true ]] || "$PYTHON" -m pip --version >/dev/null 2>&1; then
    run "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"
  else
    fail "$VENV has no pip (uv made it, and uv is gone); remove it"
  fi
}

# install_locked LOCK: makes the environment and installs a lock with hashes and star_jax itself.
# Does nothing when that was done before.
install_locked() {
  local lock=$ROOT/$1 stamp=$VENV/.installed-$1 content
  content=$(cat "$lock" "$ROOT/pyproject.toml" | sha256sum)
  make_venv
  [[ -f $stamp ]] && [[ $(<"$stamp") == "$content" ]] && return
  [[ $DRY_RUN == true ]] || printf 'installing %s into %s\n' "$1" "$VENV" >&2
  install --require-hashes -r "$lock"
  install --no-deps --no-build-isolation --editable "$ROOT"
  [[ $DRY_RUN == true ]] || printf '%s\n' "$content" >"$stamp"
}

# constraints LOCK: writes the lock's versions without their hashes, and prints the file's path.
constraints() {
  local file=$VENV/.constraints.txt
  [[ $DRY_RUN == true ]] || sed -nE 's/^([A-Za-z0-9_.-]+==[^\\]*).*/\1/p' "$ROOT/$1" >"$file"
  printf '%s' "$file"
}

# install_beside LOCK ARGS...: installs more, at the lock's versions where it names one.
install_beside() {
  local file
  file=$(constraints "$1")
  install --constraint "$file" "${@:2}"
}

# install_beside_by_pip LOCK ARGS...: the same by pip even where uv is present: only pip heeds the
# machine's pip settings, and with them a CPU build of torch instead of one with 2 GB of CUDA.
install_beside_by_pip() {
  local file
  file=$(constraints "$1")
  "$PYTHON" -m pip --version >/dev/null 2>&1 || install pip # An environment made by uv has none.
  run "$PYTHON" -m pip install --quiet --disable-pip-version-check \
    --constraint "$file" "${@:2}"
}

# add_flag VARIABLE FLAG: appends to what the caller has already set.
add_flag() {
  printf -v "$1" '%s' "${!1:+${!1} }$2"
  export "${1?}"
}

# show_environment VARIABLE...
show_environment() {
  local name
  for name in "$@"; do
    printf '%s=%q\n' "$name" "${!name}"
  done
}
