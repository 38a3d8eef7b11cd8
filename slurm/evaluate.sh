#!/usr/bin/env bash
# Score a trained run, one array task a language; scores go to RUN/evaluation-LANGUAGE.json:
#   OUTPUT=runs/mt5xl_13b LANGUAGES="sw ur th hi" sbatch --array=0-3 slurm/evaluate.sh --tasks xnli
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
