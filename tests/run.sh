#!/usr/bin/env bash
# Installs star_jax with its tools and checks everything: format, lint, types, scripts, tests.
#
#   tests/run.sh [--extras beam,stores,...] [pytest arguments]
#
# --extras  also installs these extras of pyproject.toml and runs their tests; one that cannot be
#           installed or imported fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/_env.sh"

extras=''
case ${1:-} in
  -h | --help)
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  --extras)
    (($# > 1)) || fail "--extras needs names, separated by commas"
    extras=$2
    shift 2
    ;;
  --extras=*)
    extras=${1#*=}
    shift
    ;;
esac

for extra in ${extras//,/ }; do
  grep -q "^$extra = \[" "$ROOT/pyproject.toml" || fail "extra $extra is not in pyproject.toml"
done
install_locked requirements-dev.lock
for extra in ${extras//,/ }; do
  if [[ $extra == interop ]]; then
    install_beside_by_pip requirements-dev.lock -r "$ROOT/requirements-interop.txt"
  else
    install_beside requirements-dev.lock --editable "${ROOT}[$extra]"
  fi
done

cd "$ROOT"
export STAR_EXTRAS=$extras
failed=()
check() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed+=("$name")
}
check format "$VENV/bin/ruff" format --check
check lint "$VENV/bin/ruff" check
check types "$VENV/bin/basedpyright" --pythonpath "$PYTHON"
check scripts "$VENV/bin/shellcheck" launch/*.sh tests/run.sh .ci/run
# A worker per core; the tests of a file share its fixtures, hence one worker. In our order, not
# that of the plugin, which begins with the files of most tests and ends with the longest ones.
check tests "$PYTHON" -m pytest -q --durations=15 -n auto --dist loadfile --no-loadscope-reorder "$@"

if ((${#failed[@]})); then
  printf '\nfailed: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nall checks passed\n'
