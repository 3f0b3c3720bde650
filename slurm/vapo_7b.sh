#!/usr/bin/env bash
# VAPO on Qwen2.5-VL-7B, 8 GPUs of 80 GB. Two nodes: sbatch --nodes=2 slurm/vapo_7b.sh
#SBATCH --job-name=vapo_7b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --dependency=singleton
#SBATCH --output=%x-%j.out
set -euo pipefail
# Slurm runs a copy of this file; the project is the folder it was submitted from.
job=$(scontrol show job "${SLURM_JOB_ID:?submit this file: sbatch slurm/vapo_7b.sh}")
home=${VAPO_HOME:-$(sed -n 's|^ *Command=\(.*\)/slurm/vapo_7b.sh.*|\1|p' <<<"$job")}
if [[ ! -x $home/slurm/ray_cluster.sh ]]; then
  echo "no project in '$home'; set VAPO_HOME to the folder that holds slurm/" >&2
  exit 2
fi
exec "$home/slurm/ray_cluster.sh" vapo "$@"
