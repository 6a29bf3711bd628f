#!/usr/bin/env bash
# Runs a config on a Cloud TPU slice, of one host or several.
#
#   launch/tpu.sh CONFIG [options] [--a.b value ...]
#   launch/tpu.sh configs/run/recommended.py --tables.source DATA_DIR
#   launch/tpu.sh configs/run/recommended.py --stage train-text --dry-run
#
# CONFIG is one of the presets, configs/run/recommended.py or faithful.py (the paper without
# additions), or your own. The same command again resumes.
#
# --stage S       one command of star instead of the whole pipeline
# --workdir W     seen by all hosts; default: runs/<name of the config> in the repository
# --dry-run       prints the environment, the hosts, the commands and `star plan`; does nothing
# --topology T    for `star plan`, as v5e:4x4; default: what is found here
# --hosts LIST    h1,h2,... or a file of one a line; the first one starts the others by ssh
# --host-index I  which of them this is, where something else starts all of them
# --port P        where they meet on the first host
#
# TPU VMs and GKE say the hosts themselves. Each host writes its output to
# W/logs/HOST.log too. launch/TPU.md has examples and says what the flags do.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"

# Overlap the all-gathers of fsdp parameters with the layers that do not need them yet.
add_flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion=true
add_flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
# Let one fusion span several steps of the ring, which hides longer transfers.
add_flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_multiple_steps=true
# Run collectives beside compute on the same core.
add_flag LIBTPU_INIT_ARGS --xla_tpu_overlap_compute_collective_tc=true
# A host without chips must stop here, not go on with its CPU.
export JAX_PLATFORMS=tpu

launch tpu 'LIBTPU_INIT_ARGS JAX_PLATFORMS' "$@"
