#!/usr/bin/env bash
# Runs a config on the chips of one Cloud TPU host.
#
#   launch/tpu.sh CONFIG [--workdir W] [--dry-run] [--a.b value ...]
#   launch/tpu.sh configs/run/recommended.py --tables.source DATA_DIR
#
# CONFIG is one of the presets, configs/run/recommended.py or faithful.py (the paper without
# additions), or your own.
# W defaults to runs/<name of the config> in the repository. The same command again resumes.
# --dry-run prints the environment and the commands.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

# Overlap the all-gathers of fsdp parameters with the layers that do not need them yet.
add_flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion=true
add_flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
# Let one fusion span several steps of the ring, which hides longer transfers.
add_flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_multiple_steps=true
# Run collectives beside compute on the same core.
add_flag LIBTPU_INIT_ARGS --xla_tpu_overlap_compute_collective_tc=true
# A host without chips must stop here, not go on with its CPU.
export JAX_PLATFORMS=tpu

show_environment LIBTPU_INIT_ARGS JAX_PLATFORMS
launch requirements-tpu.txt "$@"
