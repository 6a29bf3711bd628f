#!/usr/bin/env bash
# Runs a config on the NVIDIA GPUs of one host or several (A100, H100, H200).
#
#   launch/gpu_a100.sh CONFIG [options] [--a.b value ...]
#   launch/gpu_a100.sh configs/run/recommended.py --tables.source DATA_DIR
#   launch/gpu_a100.sh configs/run/recommended.py --stage train-text --dry-run
#
# CONFIG is one of the presets, configs/run/recommended.py or faithful.py (the paper without
# additions), or your own. The same command again resumes.
#
# --stage S       one command of star instead of the whole pipeline
# --workdir W     seen by all hosts; default: runs/<name of the config> in the repository
# --dry-run       prints the environment, the hosts, the commands and `star plan`; does nothing
# --topology T    for `star plan`, as a100-80:16; default: what is found here
# --hosts LIST    h1,h2,... or a file of one a line; the first one starts the others by ssh
# --host-index I  which of them this is, where something else starts all of them
# --num-hosts N   of a JobSet: its parallelism
# --port P        where they meet on the first host
#
# Slurm and JobSet say the hosts themselves. Each host writes its output to
# W/logs/HOST.log too. launch/GPU.md has examples and says what the flags do.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"

# Overlap the gradients' all-reduce with the backward pass that makes the next ones.
add_flag XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true
# Leave 8 % for cuDNN's and NCCL's own buffers; JAX's default of 75 % would not hold a 7B batch.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# A missing or broken driver must stop the run: the CPU would do it a thousand times slower.
export JAX_PLATFORMS=cuda

launch gpu 'XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION JAX_PLATFORMS' "$@"
