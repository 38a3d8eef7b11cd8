#!/usr/bin/env bash
# Score a trained run, one array task a language; scores go to RUN/evaluation-LANGUAGE.json:
#   OUTPUT=runs/mt5xl_13b LANGUAGES="sw ur th hi" sbatch --array=0-3 slurm/evaluate.sh --tasks xnli
# Models that are too large for one GPU are split over all GPUs of a node, by one process:
#   OUTPUT=runs/mt5xl_70b LANGUAGES="sw ur" sbatch --array=0-1 --gpus-per-node=4 slurm/evaluate.sh --tasks xnli --device-map auto
#SBATCH --job-name=bridge_eval
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
# shellcheck source=slurm/env.sh
source "${BRIDGE_DS:-${SLURM_SUBMIT_DIR:-.}}/slurm/env.sh"
evaluate "$@"
