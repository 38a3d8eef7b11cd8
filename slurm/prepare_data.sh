#!/usr/bin/env bash
# Pack English samples into shards on a CPU node: the arguments are those of bridge-ds pack, such as
#   sbatch slurm/prepare_data.sh pack --input train.jsonl --output data/english --map source=question --map target=answer
#   sbatch slurm/prepare_data.sh verify data/english
#SBATCH --job-name=bridge_data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Reading a data set of the hub needs the network: run it on a node that has it, with HF_HUB_OFFLINE=0.
# shellcheck source=slurm/env.sh
source "${BRIDGE_DS:-${SLURM_SUBMIT_DIR:-.}}/slurm/env.sh"
prepare "$@"
