#!/usr/bin/env bash
# Runs a config on the NVIDIA GPUs of one host (A100, H100, H200).
#
#   launch/gpu_a100.sh CONFIG [--workdir W] [--dry-run] [--a.b value ...]
#   launch/gpu_a100.sh configs/run/recommended.py --tables.source DATA_DIR
#
# CONFIG is one of the presets, configs/run/recommended.py or faithful.py (the paper without
# additions), or your own.
# W defaults to runs/<name of the config> in the repository. The same command again resumes.
# --dry-run prints the environment and the commands.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

# Overlap the gradients' all-reduce with the backward pass that makes the next ones.
add_flag XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true
# Leave 8 % for cuDNN's and NCCL's own buffers; JAX's default of 75 % would not hold a 7B batch.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# A missing or broken driver must stop the run: the CPU would do it a thousand times slower.
export JAX_PLATFORMS=cuda

show_environment XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION JAX_PLATFORMS
launch requirements-gpu.txt "$@"
