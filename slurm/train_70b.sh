#!/usr/bin/env bash
# mT5-XL and a 70B LLM, four nodes of 8 GPUs: sbatch slurm/train_70b.sh [--set key=value ...]; another run: RECIPE=... OUTPUT=... sbatch ...
# What a site must change is at the top of slurm/env.sh.
#SBATCH --job-name=bridge_70b
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-gpu=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
: "${RECIPE:=mt5xl_70b}"
# shellcheck source=slurm/env.sh
source "${BRIDGE_DS:-${SLURM_SUBMIT_DIR:-.}}/slurm/env.sh"
train "$@"
