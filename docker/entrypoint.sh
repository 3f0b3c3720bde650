#!/usr/bin/env bash
# head | worker | train: the role of this container, see docs/docker.md.
# Any other command is run unchanged.
set -euo pipefail

[[ -n ${RAY_AUTH_TOKEN:-} ]] || unset RAY_AUTH_TOKEN # set but empty, it would hide the token file

# Without RAY_AUTH_TOKEN the head makes the cluster's secret, and a shared volume carries it.
make_token() {
  [[ -n ${RAY_AUTH_TOKEN:-} || -s $RAY_AUTH_TOKEN_PATH ]] ||
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
}

# On CPU the GPUs are slots with no device behind them.
node_resources=(--num-gpus="${VAPO_GPUS_PER_NODE:-8}" ${VAPO_CPUS_PER_NODE:+--num-cpus="$VAPO_CPUS_PER_NODE"})
read -ra ray_args <<<"${VAPO_RAY_ARGS:-}"

case ${1:-} in
  head)
    make_token
    exec ray start --head --port=6379 --dashboard-host="${VAPO_DASHBOARD_HOST:-0.0.0.0}" \
      "${node_resources[@]}" "${ray_args[@]}" --block
    ;;
  worker)
    exec ray start --address="$RAY_ADDRESS" "${node_resources[@]}" "${ray_args[@]}" --block
    ;;
  train)
    # The driver needs a local Ray node; this one offers no resources, so that only the driver runs here.
    ray start --address="$RAY_ADDRESS" --num-gpus=0 --num-cpus=0 "${ray_args[@]}"
    exec python /opt/vapo_verl/docker/train.py
    ;;
  *) exec "$@" ;;
esac
