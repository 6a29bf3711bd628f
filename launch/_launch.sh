# Sourced by the launchers of accelerators: finds the hosts, installs, and runs a command of star
# on each of them.
# shellcheck shell=bash

_USAGE='CONFIG [--stage S] [--workdir W] [--dry-run] [--topology T] [--a.b value ...]'

# say WORDS...: about the launch itself; on stderr, as what star prints is for others to read.
say() {
  printf 'launch: %s\n' "$*" >&2
}

# quoted WORDS...: as a shell would read them again.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# launch gpu|tpu VARIABLES ARGS...: reads the arguments that the launchers explain, shows the
# environment variables, and ends as star ends.
launch() {
  local kind=$1 variables arguments=() argument
  read -ra variables <<<"$2"
  shift 2
  for argument in "$@"; do
    [[ $argument == --dry-run ]] || arguments+=("$argument")
  done
  local config='' workdir='' stage=run topology='' finding=() rest=()
  while (($#)); do
    case $1 in
      -h | --help)
        sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0"
        exit 0
        ;;
      --dry-run) DRY_RUN=true ;;
      --workdir | --stage | --topology | --hosts | --host-index | --num-hosts | --port)
        (($# > 1)) || fail "$1 needs a value"
        take_option "$1" "$2"
        shift
        ;;
      --workdir=* | --stage=* | --topology=* | --hosts=* | --host-index=* | --num-hosts=* | --port=*)
        take_option "${1%%=*}" "${1#*=}"
        ;;
      *) if [[ -z $config && $1 != --* ]]; then config=$1; else rest+=("$1"); fi ;;
    esac
    shift
  done
  [[ -n $config ]] || fail "CONFIG is missing: $0 $_USAGE"
  [[ -f $config ]] || fail "config $config does not exist"
  workdir=${workdir:-$ROOT/runs/$(basename "$config" .py)}

  show_environment "${variables[@]}"
  local python hosts=() host='' host_index=0 coordinator='' source='' starts_others=false
  local requirements=requirements-tpu.txt
  python=$(find_python)
  find_hosts
  [[ $kind == tpu ]] || find_gpu_requirements
  [[ $starts_others == false ]] || start_others
  install_extra
  run_star
}

# take_option NAME VALUE: into the variables of `launch`.
take_option() {
  case $1 in
    --workdir) workdir=$2 ;;
    --stage) stage=$2 ;;
    --topology) topology=$2 ;;
    *) finding+=("$1" "$2") ;;
  esac
}

# Sets what launch/hosts.py says. A dry run without any sign of a TPU assumes one host.
find_hosts() {
  local found name value
  if ! found=$("$python" "$ROOT/launch/hosts.py" "$kind" ${finding[@]+"${finding[@]}"} 2>&1); then
    [[ $DRY_RUN == true && $found == *'is no TPU VM and no GKE pod'* ]] || die "$found"
    say 'no TPU here: assuming one host'
    found=$("$python" "$ROOT/launch/hosts.py" gpu)
  fi
  while IFS='=' read -r name value; do
    case $name in
      hosts) read -ra hosts <<<"$value" ;;
      *) printf -v "$name" '%s' "$value" ;;
    esac
  done <<<"$found"
  say "host $host_index of ${#hosts[@]}: $host (by $source)${coordinator:+, they meet at $coordinator}"
}

die() {
  printf '%s\n' "$*" >&2
  exit 2
}

# The first of listed hosts starts the others by ssh: same repository, same folder, same command.
start_others() {
  local index command
  for ((index = 1; index < ${#hosts[@]}; index++)); do
    command=$(quoted "$ROOT/launch/$(basename "$0")" "${arguments[@]}" --host-index "$index")
    command="cd $(quoted "$PWD") && exec $command"
    if [[ $DRY_RUN == true ]]; then
      run ssh -o BatchMode=yes "${hosts[index]}" "$command"
      continue
    fi
    # The signals that end this one end the others through the training itself.
    (
      trap '' TERM INT HUP
      ssh -o BatchMode=yes "${hosts[index]}" "$command" </dev/null ||
        say "${hosts[index]} ended with $?"
    ) &
  done
}

# Hosts that share the environment install one after the other.
install_extra() {
  local lock=''
  if [[ $DRY_RUN == false ]]; then
    exec {lock}>"$ROOT/.installing"
    flock "$lock"
  fi
  install_locked requirements.lock
  install_beside requirements.lock -r "$ROOT/$requirements"
  if [[ -n $lock ]]; then
    exec {lock}>&- # Else the training would hold it.
  fi
}

# Sets the requirements to those of the CUDA that the driver carries.
find_gpu_requirements() {
  local cuda
  if ! command -v nvidia-smi >/dev/null && [[ $DRY_RUN == true ]]; then
    say 'no nvidia-smi here: assuming a driver of CUDA 12'
    cuda=12
  else
    cuda=$("$python" "$ROOT/launch/chips.py" cuda)
  fi
  case $cuda in
    12) requirements='requirements-gpu.txt' ;;
    13) requirements='requirements-gpu-cuda13.txt' ;;
  esac
}

# In the shell's place: a scheduler's SIGTERM must reach the training, which saves its step.
run_star() {
  local command=("$VENV/bin/star" "$stage" "$config" --workdir "$workdir")
  if [[ -n $coordinator ]]; then
    command+=(--coordinator "$coordinator" --num-processes "${#hosts[@]}" --process-id "$host_index")
  fi
  command+=(${rest[@]+"${rest[@]}"})
  local log=$workdir/logs/$host.log
  if [[ $DRY_RUN == true ]]; then
    run exec "${command[@]}"
    say "its output goes to the terminal and to $log"
    show_plan
    return
  fi
  mkdir -p "$workdir/logs"
  printf '\n== %s\n' "$(quoted "${command[@]}")" >>"$log"
  # tee outlives the signals that end the training, or its last words would be lost.
  exec "${command[@]}" \
    > >(trap '' TERM INT HUP && exec tee -a "$log") \
    2> >(trap '' TERM INT HUP && exec tee -a "$log" >&2)
}

# What the run costs on these chips, if star is installed already; ends as `star plan` ends.
show_plan() {
  ((host_index == 0)) || return 0
  if [[ -z $topology ]]; then
    find_topology
  fi
  local command=("$VENV/bin/star" plan "$config" --topology "$topology" --workdir "$workdir")
  command+=(${rest[@]+"${rest[@]}"})
  run "${command[@]}"
  if [[ -x $VENV/bin/star ]]; then
    "${command[@]}"
  else
    say "star is not installed yet: the plan will be shown when $VENV is there"
  fi
}

find_topology() {
  if [[ $kind == gpu ]] && ! command -v nvidia-smi >/dev/null; then
    topology=a100-80:$((8 * ${#hosts[@]}))
    say "no nvidia-smi here: assuming --topology $topology"
  elif [[ $kind == tpu && $source == 'this host' ]]; then
    topology=v5e:2x4
    say "no TPU here: assuming --topology $topology"
  else
    topology=$("$python" "$ROOT/launch/chips.py" "$kind" --num-hosts "${#hosts[@]}")
  fi
}
