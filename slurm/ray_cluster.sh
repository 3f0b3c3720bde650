#!/usr/bin/env bash
# Runs a recipe on the nodes of a Slurm job: Ray on all of them, the driver on the first one. The job
# ends with the driver's exit code, or is requeued after a stop with a checkpoint or a lost node.
# usage: ray_cluster.sh RECIPE [key=value ...], as the batch script of a job
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXIT_STOPPED=75 # of vapo_verl.main: stopped on request, with a checkpoint

say() { printf '[%(%F %T)T] %s\n' -1 "$*"; }
die() {
  say "slurm/ray_cluster.sh: $1" >&2
  exit "${2:-2}"
}

check_slurm() {
  local version
  version=$(srun --version 2>/dev/null) || return 0 # slurm 23.11.4
  [[ $version =~ ([0-9]+)\.([0-9]+) ]] || return 0
  ((10#${BASH_REMATCH[1]}${BASH_REMATCH[2]} >= 2205)) ||
    die "$version: before 22.05 the driver's step waits for ever for the memory and GPUs of Ray's step"
}

# on_all_nodes COMMAND...: outside any container.
on_all_nodes() {
  timeout --kill-after=1 "$VAPO_NODE_TIMEOUT_S" srun --quiet --overlap --mpi=none --cpu-bind=none \
    --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 "$@" </dev/null
}

# again COMMAND...: up to three tries, in case slurmctld is too busy to answer.
again() { "$@" || { sleep 2 && "$@"; } || { sleep 5 && "$@"; }; }

read_settings() {
  local file=${VAPO_SITE_ENV:-slurm/site.env}
  [[ -r $file ]] || die "VAPO_SITE_ENV=$file cannot be read; name a copy of slurm/site.env"
  set -a
  # shellcheck source=slurm/site.env
  . "$file"
  set +a
  # every process imports the project's code, also where an image has the package; then your own packages
  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  if [[ -n $VAPO_INTERFACE ]]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$VAPO_INTERFACE}
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$VAPO_INTERFACE}
  fi
  [[ $SLURM_JOB_NAME =~ ^[A-Za-z0-9._-]+$ ]] ||
    die "the job name $SLURM_JOB_NAME names the run folder; use letters, digits, '.', '_' and '-'"
  [[ $VAPO_PORTS =~ ^([0-9]+)-([0-9]+)$ ]] && num_ports=$((BASH_REMATCH[2] - BASH_REMATCH[1] + 1))
  ((${num_ports:-0} >= 1000)) ||
    die "VAPO_PORTS=$VAPO_PORTS is not a range of at least 1000 ports; set FIRST-LAST"
  local socket=$VAPO_NODE_TMP/ray_$SLURM_JOB_ID/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store
  ((${#socket} <= 107)) ||
    die "VAPO_NODE_TMP=$VAPO_NODE_TMP is $((${#socket} - 107)) characters too long for Ray's sockets; set a shorter path"
  # packages below ~/.local would come before those of an image
  export PYTHONNOUSERSITE=1
  restarts=${SLURM_RESTART_COUNT:-0}
  export VAPO_ATTEMPT_LOGS=$VAPO_LOG_DIR/$SLURM_JOB_ID/attempt_$restarts
  mkdir -p "$VAPO_ATTEMPT_LOGS" "$VAPO_RUNS_DIR" "$VAPO_DATA_DIR" "$HF_HOME"
}

choose_container() {
  steps=(--quiet --overlap --export=ALL --mpi=none --cpu-bind=none --kill-on-bad-exit=1)
  inside=()
  export VAPO_PYTHON=$VAPO_CONTAINER_PYTHON
  local folder mounts=$VAPO_CONTAINER_MOUNTS caches=TRITON_CACHE_DIR,TORCHINDUCTOR_CACHE_DIR,VLLM_CACHE_ROOT
  for folder in "$PWD" "$VAPO_RUNS_DIR" "$VAPO_DATA_DIR" "$VAPO_LOG_DIR" "$HF_HOME" "$VAPO_NODE_TMP"; do
    mounts+=${mounts:+,}$folder:$folder
  done
  [[ $VAPO_CONTAINER == none || -n $VAPO_CONTAINER_IMAGE ]] ||
    die "VAPO_CONTAINER=$VAPO_CONTAINER needs an image; set VAPO_CONTAINER_IMAGE"
  case $VAPO_CONTAINER in
    none)
      VAPO_PYTHON=$VAPO_VENV/bin/python
      [[ -x $VAPO_PYTHON ]] || die "$VAPO_PYTHON is missing; run make setup, or set VAPO_VENV"
      ;;
    pyxis) # the steps of a node share one container: the driver wants Ray's sockets
      steps+=(--container-image="$VAPO_CONTAINER_IMAGE" --container-name="vapo_$SLURM_JOB_ID"
        --container-mounts="$mounts" --container-workdir="$PWD"
        # these variables override those of the image
        --container-env="$caches,HF_HOME,PYTHONPATH,PYTHONNOUSERSITE,VAPO_DATA_DIR")
      ;;
    apptainer)
      inside=(apptainer exec --bind "$mounts" --pwd "$PWD")
      [[ -z ${SLURM_GPUS_ON_NODE:-} ]] || inside+=(--nv)
      inside+=("$VAPO_CONTAINER_IMAGE")
      ;;
    *) die "VAPO_CONTAINER=$VAPO_CONTAINER is not one of none, pyxis, apptainer" ;;
  esac
  # a mounted folder must exist
  [[ $VAPO_CONTAINER == none ]] || on_all_nodes mkdir -p "$VAPO_NODE_TMP" ||
    die "VAPO_NODE_TMP=$VAPO_NODE_TMP cannot be made on every node"
  on_head=(srun "${steps[@]}" --nodes=1 --ntasks=1 --nodelist="$head" "${inside[@]}")
}

# Resources of each node for Ray: the recipe's logical sizes, or else the allocation.
size_nodes() {
  local config
  # a typing error in a recipe or an override ends the job here
  config=$("${on_head[@]}" "${driver[@]}" --cfg job --resolve --package ray_kwargs.ray_init </dev/null)
  of_recipe() { sed -n "s/^$1: //p" <<<"$config" | grep -v null || true; }
  num_gpus=$(of_recipe num_gpus)
  num_gpus=${num_gpus:-${SLURM_GPUS_ON_NODE:-}}
  [[ -n $num_gpus ]] || die "the recipe needs GPUs, and the job has none; add --gpus-per-node=N"
  num_cpus=$(of_recipe num_cpus)
  dashboard=$(of_recipe include_dashboard)
}

# Address of this node, the head, as the others reach it.
own_address() {
  local candidates address
  if [[ -n $VAPO_INTERFACE ]]; then
    candidates=$(ip -4 -o addr show dev "$VAPO_INTERFACE" | awk '{ sub("/.*", "", $4); print $4 }')
  else
    candidates="$(getent ahostsv4 "$head" | awk '{ print $1 }') $(hostname -I)"
  fi
  for address in $candidates; do
    if [[ $address == *.*.*.* && $address != 127.* && " $(hostname -I) " == *" $address "* ]]; then
      echo "$address"
      return
    fi
  done
  die "no address of ${VAPO_INTERFACE:-$head} that other nodes reach; set VAPO_INTERFACE"
}

start_nodes() {
  local first_port=$((${VAPO_PORTS%-*} + SLURM_JOB_ID % (num_ports / 1000) * 1000)) address
  address=$(own_address)
  RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
  export RAY_ADDRESS=$address:$first_port RAY_AUTH_MODE=token RAY_AUTH_TOKEN
  export RAY_COLOR_PREFIX=0 # the output is a file
  say "Ray on ${#nodes[@]} nodes, head $head at $RAY_ADDRESS, logs in $VAPO_ATTEMPT_LOGS"
  srun "${steps[@]}" --job-name=ray --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" \
    --ntasks-per-node=1 --output="$VAPO_ATTEMPT_LOGS/%N.log" "${inside[@]}" \
    slurm/ray_node.sh "$head" "$address" "$first_port" "${dashboard:-true}" \
    --num-gpus="$num_gpus" --num-cpus="${num_cpus:-$SLURM_CPUS_ON_NODE}" </dev/null &
  cluster=$!
}

running() { kill -0 "$1" 2>/dev/null; }

show_node_logs() { tail -n 3 "$VAPO_ATTEMPT_LOGS"/*.log >&2 || true; }

# run_on_cluster COMMAND...: run it as a step on the head while Ray is up on all nodes; returns its exit code.
run_on_cluster() {
  local step code=0 signalled=
  "${on_head[@]}" "$@" </dev/null &
  step=$!
  while running "$step"; do
    if ! running "$cluster"; then
      say "Ray ended on a node before the run did" >&2
      show_node_logs
      return 1
    fi
    if [[ -n $stop_requested && -z $signalled ]]; then
      say "asked to stop by SIG$stop_requested"
      read_end_time
      kill -USR1 "$step" # srun passes it to the command only
      signalled=1
    fi
    if [[ -n $stop_requested ]] && out_of_time; then return "$EXIT_STOPPED"; fi
    sleep 1 &
    wait $! || true # ends at once on a signal
  done
  wait "$step" || code=$?
  # the signal came before the command could handle it
  if [[ -n $signalled ]] && ((code == 128 + $(kill -l USR1))); then code=$EXIT_STOPPED; fi
  return "$code"
}

# When Slurm ends the job. It may change: by scontrol update, or by a preemption's grace time.
read_end_time() {
  local answer
  answer=$(squeue -h -j "$SLURM_JOB_ID" -o %e) || return 0
  answer=$(date -d "${answer:-none}" +%s 2>/dev/null) || return 0 # none is no date
  ends_at=$answer
}

# If a checkpoint takes longer than the warning before the time limit, the job resumes from the last
# one. The remaining time is for stopping Ray, for removing containers, and for the requeue.
out_of_time() {
  local reserve=$((30 + VAPO_STOP_TIMEOUT_S))
  [[ $VAPO_CONTAINER != pyxis ]] || ((reserve += VAPO_NODE_TIMEOUT_S))
  [[ -n $ends_at ]] && (($(date +%s) > ends_at - reserve)) &&
    say "no checkpoint in time; allow more time for it: --signal=B:USR1@SECONDS" >&2
}

stop_cluster() {
  running "$cluster" || return 0
  local waited step=
  for ((waited = 0; waited < VAPO_STOP_TIMEOUT_S; waited++)); do
    if [[ -z $step ]]; then # tried again if slurmctld does not answer
      # not through srun, which turns SIGTERM into SIGKILL
      step=$(squeue -h --steps -j "$SLURM_JOB_ID" -o '%i %j' | awk '$2 == "ray" { print $1 }') || step=
      [[ -z $step ]] || scancel --signal=TERM "$step" || step=
    fi
    running "$cluster" || return 0
    sleep 1
  done
  say "Ray did not stop within $VAPO_STOP_TIMEOUT_S s (VAPO_STOP_TIMEOUT_S); Slurm ends it" >&2
}

# Names of the nodes that no longer answer to Slurm.
lost_nodes() {
  local node
  for node in "${nodes[@]}"; do
    timeout --kill-after=1 "$VAPO_NODE_TIMEOUT_S" srun --overlap --mpi=none --nodes=1 --ntasks=1 \
      --nodelist="$node" true </dev/null &>/dev/null || echo "$node" &
  done
  wait
}

# requeue REASON CODE: CODE is the job's exit code if it is not requeued, at the limit EXIT_STOPPED.
requeue() {
  local state
  state=$(again squeue -h -j "$SLURM_JOB_ID" -o %T) || state=
  # not after scancel, which also ends steps
  [[ ${state:-RUNNING} == RUNNING ]] || die "$1; the job is $state, and not requeued" "$2"
  ((restarts < VAPO_MAX_REQUEUES)) ||
    die "$1; VAPO_MAX_REQUEUES=$VAPO_MAX_REQUEUES is reached: submit again to go on" "$EXIT_STOPPED"
  say "$1: requeueing, restart $((restarts + 1)) of at most $VAPO_MAX_REQUEUES"
  again scontrol requeue "$SLURM_JOB_ID" || die "Slurm refuses to requeue: submit again to go on" "$2"
  exit "$2"
}

# pyxis may keep a named container in each node's image storage.
remove_containers() {
  trap - EXIT
  [[ $VAPO_CONTAINER != pyxis ]] ||
    on_all_nodes enroot remove --force "pyxis_vapo_$SLURM_JOB_ID" &>/dev/null || true
}

# finish CODE: stop all, then end the job with the driver's exit code or requeue it.
finish() {
  local code=$1 lost=()
  trap : USR1 TERM
  if ((code != 0 && code != 2 && code != EXIT_STOPPED)); then
    mapfile -t lost < <(lost_nodes)
  fi
  if ((${#lost[@]})); then
    # otherwise srun waits for the lost node, then cancels the next start's step of the same id
    kill -KILL "$cluster" 2>/dev/null || true
    trap - EXIT # a step on all nodes would wait for the lost one, too
  else
    stop_cluster
    remove_containers
  fi
  ((${#lost[@]} == 0)) || requeue "lost ${lost[*]}" "$code"
  ((code != EXIT_STOPPED)) || requeue "stopped" "$code"
  say "the run ended with exit code $code"
  exit "$code"
}

recipe=${1:?usage: ray_cluster.sh RECIPE [key=value ...]}
shift
: "${SLURM_JOB_ID:?runs in a job: sbatch slurm/smoke.sh}"
head=$SLURMD_NODENAME # a batch script runs on the first node of its job
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
cluster='' stop_requested='' ends_at=''
read_end_time

check_slurm
read_settings
((restarts <= VAPO_MAX_REQUEUES)) ||
  die "restarted $restarts times, VAPO_MAX_REQUEUES=$VAPO_MAX_REQUEUES; submit again to go on" "$EXIT_STOPPED"
choose_container
driver=("$VAPO_PYTHON" -u -m vapo_verl.main "+recipe=$recipe" "trainer.nnodes=${#nodes[@]}"
  "trainer.experiment_name=\"$SLURM_JOB_NAME\"" "trainer.default_local_dir=$VAPO_RUNS_DIR/$SLURM_JOB_NAME")
[[ -z ${SLURM_GPUS_ON_NODE:-} ]] || driver+=("trainer.n_gpus_per_node=$SLURM_GPUS_ON_NODE")
driver+=("$@")

trap remove_containers EXIT
trap 'stop_requested=USR1' USR1
trap 'stop_requested=TERM' TERM
size_nodes
start_nodes
code=0
run_on_cluster "$VAPO_PYTHON" slurm/wait_for_nodes.py "$VAPO_START_TIMEOUT_S" "${nodes[@]}" || code=$?
if ((code == 0)); then
  say "all nodes joined; starting the driver"
  run_on_cluster "${driver[@]}" || code=$?
elif running "$cluster"; then
  show_node_logs
fi
finish "$code"
