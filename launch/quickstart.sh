#!/usr/bin/env bash
# Installs star_jax and runs the whole path, from tables to a report, on this machine's CPU.
#
#   launch/quickstart.sh [DATA_DIR] [--workdir W] [--a.b value ...]
#
# DATA_DIR  a folder of tables in the layout star-tidy-1; without it, a synthetic labour market.
# W         folder of everything that is made; default: runs/<name of the data> in the repository.
# --a.b     sets a field of the config: configs/run/quickstart.py, or market.py beside it.
#
# The same command again goes on where the last one stopped. The last line printed is the path of
# metrics.json.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

data='' workdir='' overrides=()
while (($#)); do
  case $1 in
    -h | --help)
      sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --workdir)
      (($# > 1)) || fail "--workdir needs a folder"
      workdir=$2
      shift
      ;;
    --workdir=*) workdir=${1#*=} ;;
    --*)
      overrides+=("$1")
      while (($# > 1)) && [[ $2 != --* ]]; do
        overrides+=("$2")
        shift
      done
      ;;
    *)
      [[ -z $data ]] || fail "two data folders are given: $data and $1"
      data=$1
      ;;
  esac
  shift
done

name=market config=market
if [[ -n $data ]]; then
  [[ -d $data ]] || fail "data folder $data does not exist"
  data=$(cd "$data" && pwd)
  name=$(basename "$data") config=quickstart
  overrides=(--tables.source "$data" ${overrides[@]+"${overrides[@]}"})
fi

install_locked requirements.lock
exec "$VENV/bin/star" run "$ROOT/configs/run/$config.py" \
  --workdir "${workdir:-$ROOT/runs/$name}" ${overrides[@]+"${overrides[@]}"}
