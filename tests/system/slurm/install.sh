#!/usr/bin/env bash
# What the tests of slurm/ need on Debian or Ubuntu, as root: Slurm's programs, without a cluster.
set -euo pipefail
apt-get update -qq
apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge iproute2 util-linux
