#!/usr/bin/env bash
# Makes requirements.lock (base) and requirements-dev.lock (base + tools) anew: exact versions
# with hashes for Python 3.11 to 3.13.
#
# Both are resolved under the versions at which base, tools and all extras fit together, so that
# an extra installed later changes nothing that is there. Needs uv; run it after editing
# requirements*.txt or the extras in pyproject.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all=$(mktemp)
trap 'rm -f "$all"' EXIT
compile() {
  uv pip compile --quiet --universal --python-version 3.11 --no-annotate "$@"
}
compile --no-header --all-extras pyproject.toml requirements-dev.txt --output-file "$all"
hashed=(--generate-hashes --custom-compile-command launch/lock.sh --constraints "$all")
# flit_core builds the editable install of star_jax itself.
grep '^flit_core' requirements-dev.txt |
  compile "${hashed[@]}" requirements.txt - --output-file requirements.lock
compile "${hashed[@]}" requirements-dev.txt --output-file requirements-dev.lock
