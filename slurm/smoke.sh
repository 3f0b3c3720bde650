#!/usr/bin/env bash
# The smoke recipe on two nodes without GPUs: a test of this cluster that takes minutes.
#SBATCH --job-name=smoke
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=12G
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --dependency=singleton
#SBATCH --output=%x-%j.out
set -euo pipefail
# Slurm runs a copy of this file; the project is the folder it was submitted from.
job=$(scontrol show job "${SLURM_JOB_ID:?submit this file: sbatch slurm/smoke.sh}")
home=${VAPO_HOME:-$(sed -n 's|^ *Command=\(.*\)/slurm/smoke.sh.*|\1|p' <<<"$job")}
if [[ ! -x $home/slurm/ray_cluster.sh ]]; then
  echo "no project in '$home'; set VAPO_HOME to the folder that holds slurm/" >&2
  exit 2
fi
exec "$home/slurm/ray_cluster.sh" smoke "$@"
