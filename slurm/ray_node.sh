#!/usr/bin/env bash
# Ray on one node of a job: started by ray_cluster.sh, stopped by SIGTERM, leaves no process.
# usage: ray_node.sh HEAD_NODE HEAD_IP FIRST_PORT DASHBOARD RAY_START_OPTION...
set -euo pipefail
head_node=$1 head_ip=$2 port=$3 dashboard=$4
shift 4

export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # there is no Ray Serve to drain
export RAY_raylet_start_wait_time_s=120        # on a loaded node

mark=VAPO_RAY_NODE=$SLURM_JOB_ID.$SLURM_STEP_ID # in the environment of all processes of Ray here
temp=$VAPO_NODE_TMP/ray_$SLURM_JOB_ID ray=
rm -rf "$temp"
mkdir -p "$VAPO_NODE_TMP"
mkdir -m 700 "$temp"

clean_up() {
  trap '' TERM
  if [[ -n $ray ]]; then
    kill "$ray" 2>/dev/null || true
    for ((waited = 0; waited < 15; waited++)); do # Slurm kills what takes longer than 30 s
      kill -0 "$ray" 2>/dev/null || break
      sleep 1
    done
    marked | xargs -r kill -KILL 2>/dev/null || true
  fi
  cp -r "$temp"/ray/session_2*/logs "$VAPO_ATTEMPT_LOGS/ray-$SLURMD_NODENAME" 2>/dev/null || true
  rm -rf "$temp"
}
trap clean_up EXIT
trap 'exit 0' TERM

marked() { grep -lsz "^$mark$" /proc/[0-9]*/environ | tr -dc '0-9\n'; }
head_answers() { (: <"/dev/tcp/$head_ip/$port") 2>/dev/null; }

if [[ $SLURMD_NODENAME == "$head_node" ]]; then
  export AUTOSCALER_METRIC_PORT=$((port + 9)) DASHBOARD_METRIC_PORT=$((port + 10))
  role=(--head --port="$port" --node-ip-address="$head_ip"
    --include-dashboard="$dashboard" --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)))
  # for users who attach: only this file, readable by its owner, has the token
  (umask 077 && printf 'export RAY_ADDRESS=%q RAY_AUTH_MODE=token RAY_AUTH_TOKEN=%q\n' \
    "$RAY_ADDRESS" "$RAY_AUTH_TOKEN" >"$temp/cluster.env")
else
  role=(--address="$head_ip:$port")
  until head_answers; do sleep 1; done
fi

env "$mark" "$VAPO_PYTHON" -m ray.scripts.scripts start "${role[@]}" --block \
  --disable-usage-stats --log-color=false --node-name="$SLURMD_NODENAME" --temp-dir="$temp/ray" \
  --node-manager-port=$((port + 3)) --object-manager-port=$((port + 4)) \
  --runtime-env-agent-port=$((port + 5)) --dashboard-agent-grpc-port=$((port + 6)) \
  --dashboard-agent-listen-port=$((port + 7)) --metrics-export-port=$((port + 8)) \
  --min-worker-port=$((port + 20)) --max-worker-port=$((port + 999)) "$@" &
ray=$!
wait "$ray"
