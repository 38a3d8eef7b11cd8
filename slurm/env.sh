#!/usr/bin/env bash
# What all launchers share; sourced by the job script, never run. Functions: train, prepare, evaluate.
#
# Exit statuses of the trainer: 0 done; 75 preempted and saved; 74 another rank is gone; 2 a user error (config, data,
# disk); 70 a rank hung; 128 + n killed by signal n. This script alone decides what follows:
#   75, or the eviction signals before the trainer could catch them   -> requeue the job
#   a node of the job no longer answers                               -> requeue the job (Slurm does it too: --requeue)
#   74 or killed by a signal, and all nodes answer                    -> start again in this allocation
#   anything else                                                     -> the job ends with that status
# and always within MAX_RESTARTS, and only while each start leaves a newer checkpoint.
set -uo pipefail

# ---- What a site changes: here, in the environment (NAME=value sbatch slurm/...), or as options of sbatch. -----------
# Partition, account, QOS, time, nodes, GPUs: sbatch --partition=P --account=A --nodes=4 --gpus-per-node=4 slurm/...
# (or SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_TIMELIMIT, SBATCH_GPUS_PER_NODE, SBATCH_CPUS_PER_GPU).
: "${BRIDGE_DS:=${SLURM_SUBMIT_DIR:-$PWD}}"      # folder that holds slurm/; default: where you submit
: "${SITE_SETUP:=}"                              # a shell file sourced now: `module load ...`, activate an environment
: "${PYTHON:=}"                                  # interpreter; default .venv/bin/python of that folder, else python3
: "${CONTAINER:=}"                               # words before the interpreter, as: apptainer exec --nv image.sif
: "${RECIPE:=testbed}"                           # name of a shipped recipe (bridge-ds env), or a YAML file
: "${OUTPUT:=runs/$(basename "$RECIPE" .yaml)}"  # run folder, on a file system that all nodes share
: "${LOCAL_DISK:=}"                              # node-local folder; set with SHARDS: they are copied there first
: "${SHARDS:=}"                                  # folder of shards; default: the recipe's data.shards
: "${CPU_BIND:=cores}" "${MEM_BIND:=local}"      # srun's --cpu-bind and --mem-bind (cores and NUMA memory of a task)
: "${MAX_RESTARTS:=50}"                          # starts of one job after the first, in place and requeued together
: "${MAX_STALLS:=1}"                             # starts in a row that may end without a newer checkpoint
# NCCL over the right network: export NCCL_SOCKET_IFNAME=ib0 (or what your site's page says) in SITE_SETUP; gloo, over
# which ranks agree, follows it (or GLOO_SOCKET_IFNAME). PYTORCH_ALLOC_CONF set there wins over the trainer's own.
# ----------------------------------------------------------------------------------------------------------------------

set +u # a site's file may read what is not set, as ...:$LD_LIBRARY_PATH
# shellcheck source=/dev/null
[ -z "$SITE_SETUP" ] || source "$SITE_SETUP"
set -u
cd "$BRIDGE_DS" || exit 2
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=$BRIDGE_DS/.venv/bin/python
fi
read -ra container <<<"$CONTAINER"
python=("${container[@]}" "$PYTHON")

# Compute nodes are often offline; an unset variable would cost minutes of timeouts for each model and tokenizer.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-1} TRANSFORMERS_OFFLINE=${TRANSFORMERS_OFFLINE:-1}
export PYTHONPATH=$BRIDGE_DS${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
# NCCL's flight recorder: what each rank last did, written when a collective times out.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000} TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}

job=${SLURM_JOB_ID:-0}
# scontrol wants an array's task as ARRAY_TASK; its own SLURM_JOB_ID would do today, and not on every version.
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-1}} # one task a GPU; "a100:8" names a kind before the count
tasks_per_node=${gpus##*:}
cpus_per_task=$((${SLURM_CPUS_ON_NODE:-1} / tasks_per_node))
# Passed to srun below, which does not inherit --cpus-per-task since 22.05; both forms at once are refused.
unset SLURM_CPUS_PER_GPU SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
# The job script runs on the first node, which holds rank 0. Below the ephemeral ports (32768 and up).
export MASTER_ADDR=${MASTER_ADDR:-$(hostname)}
port_of_job=$((10000 + ${SLURM_JOB_ID:-0} % 2000 * 10))

say() { echo "[$(date '+%F %T')] $*"; }

# One task a node: for checks and copies.
each_node=(srun --nodes="${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 --ntasks="${SLURM_JOB_NUM_NODES:-1}"
    --gpus-per-node=0 --cpus-per-task=1 --kill-on-bad-exit=1 --quiet)
on_each_node() { "${each_node[@]}" "$@"; }

# Run a step in the background and wait: bash runs a trap only between commands, and the job script must outlive the
# signals that its tasks get.
run_step() {
    local pid code
    "$@" &
    pid=$!
    while :; do
        wait "$pid"
        code=$?
        kill -0 "$pid" 2>/dev/null || return "$code"
    done
}

on_each_gpu() {
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node="$tasks_per_node" \
        --ntasks="$((SLURM_JOB_NUM_NODES * tasks_per_node))" --cpus-per-task="$cpus_per_task" \
        --distribution=block:block --cpu-bind="$CPU_BIND" --mem-bind="$MEM_BIND" --kill-on-bad-exit=1 --wait=60 "$@"
}

# Of the newest checkpoint; before the first of them, where the LLM is taught first (llm.finetune), finetune:STEP.
newest_step() {
    local newest where digits="[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]" # not step-00000100.not-finite
    for where in "" finetune; do
        newest=$(compgen -G "$OUTPUT/${where:+$where/}checkpoints/step-$digits/manifest.json" | sort | tail -n 1)
        [ -z "$newest" ] || break
    done
    newest=${newest%/manifest.json}
    [ -z "$newest" ] || [ -z "$where" ] || printf "%s:" "$where"
    echo "$((10#0${newest##*step-}))"
}

# A line for each start of this job: the step it began at, and "taken" if Slurm itself ended it (which says nothing
# about the trainer).
starts() { echo "$OUTPUT/starts-$job.txt"; }

may_start_again() {
    local count stalled
    count=$(wc -l <"$(starts)")
    if [ "$count" -gt "$MAX_RESTARTS" ]; then
        say "error: started $count times; expected to finish within MAX_RESTARTS=$MAX_RESTARTS; submit again to go on."
        return 1
    fi
    # Starts, from the last one back, that began where the newest checkpoint still is.
    stalled=$(tac "$(starts)" | awk -v now="$(newest_step)" '$2 == "taken" {next} $1 != now {exit} {n++} END {print n + 0}')
    if [ "$stalled" -gt "$MAX_STALLS" ]; then
        say "error: $stalled starts in a row ended with no checkpoint after step $(newest_step); expected each to get" \
            "further; see what the trainer said above, give the job more time (--time), save more often" \
            "(--set checkpoint.every=N), or allow more such starts (MAX_STALLS)."
        return 1
    fi
}

# False once Slurm has taken the job away from this script (requeued by somebody else, or cancelled).
still_ours() {
    local shown
    shown=$(scontrol show job "$job" 2>/dev/null) || return 0
    [[ $shown == *"JobState=RUNNING"* && $shown == *"Restarts=${SLURM_RESTART_COUNT:-0} "* ]]
}

all_nodes_answer() { run_step timeout 60 "${probe[@]}" >/dev/null 2>&1; }
probe=(srun --nodes="${SLURM_JOB_NUM_NODES:-1}" --ntasks-per-node=1 --cpus-per-task=1 --gpus-per-node=0 --overlap true)

taken() {
    sed -i '$ s/$/ taken/' "$(starts)"
    say "$1; Slurm has the job already."
    exit 75
}

requeue() {
    still_ours || taken "$1"
    may_start_again || exit 1
    remove_copy
    say "$1; requeued (step $(newest_step))."
    scontrol requeue "$job" || { say "error: Slurm refused to requeue job $job; submit again to go on."; exit 1; }
    exit 75
}

# For a step before the training that has ended with status $1: a stop signal during it means the same as later. It
# counts as a start, or a job whose time limit is too short for its copies would be requeued for ever.
requeue_if_stopped() {
    case $1 in
        75 | 140 | 143)
            newest_step >>"$(starts)"
            requeue "preempted"
            ;;
    esac
    return "$1"
}

# Of the shards, before a requeue (the next start may be on other nodes) and at the end. A node that is gone does not
# hold it up for long.
remove_copy() {
    [ -z "$copied" ] || run_step timeout 60 "${each_node[@]}" rm -rf "$copied"
    copied=""
}
copied=""

stage_in() {
    [ -n "$LOCAL_DISK" ] && [ -n "$SHARDS" ] || return 0
    local place=$LOCAL_DISK/bridge_ds-$job
    copied=$place
    trap remove_copy EXIT
    say "copying $SHARDS to $place on each node"
    # shellcheck disable=SC2016
    run_step on_each_node bash -c 'mkdir -p "$2" && cp -r "$1"/. "$2"' copy "$SHARDS" "$place" ||
        requeue_if_stopped "$?" || exit 1
    SHARDS=$place
}

# train [--set key=value ...]: the whole life of one job.
train() {
    trap : TERM USR2 USR1
    mkdir -p "$OUTPUT" || exit 2
    local arguments=(--recipe "$RECIPE" "$@" --set "run.output=$OUTPUT") code last_words
    last_words=$OUTPUT/last_words-$job.txt
    local shards=()
    [ -z "$SHARDS" ] || shards=(--set "data.shards=$SHARDS")
    touch "$(starts)" || exit 2
    run_step "${python[@]}" -m bridge_ds preflight --ranks "$((SLURM_JOB_NUM_NODES * tasks_per_node))" \
        "${arguments[@]}" "${shards[@]}" || requeue_if_stopped "$?" || exit
    same_versions || exit
    stage_in
    [ -z "$SHARDS" ] || arguments+=(--set "data.shards=$SHARDS")
    while :; do
        may_start_again || exit 1
        newest_step >>"$(starts)"
        # A new port for each start: a rank that was left behind may still hold the last one.
        export MASTER_PORT=$((port_of_job + $(wc -l <"$(starts)") % 10)) BRIDGE_DS_LAST_WORDS=$last_words
        rm -f "$last_words"
        say "start $(wc -l <"$(starts)") of job $job on $SLURM_JOB_NODELIST, step $(newest_step)"
        run_step on_each_gpu "${python[@]}" -m bridge_ds.train "${arguments[@]}"
        code=$?
        # srun's status is the highest of all tasks, and it ends the others by signals once one has left. The trainer
        # writes its own to a file: status, then sentence.
        [ ! -s "$last_words" ] || read -r code <"$last_words"
        after "$code" || break
    done
    # srun's lines about tasks that it ended come after the trainer's: repeat its last sentence.
    [ ! -s "$last_words" ] || tail -n +2 "$last_words"
    exit "$code"
}

# What follows an exit status; true: start again in this allocation.
after() {
    case $1 in
        0) return 1 ;;
        1 | 2 | 70) [ ! -s "$last_words" ] || return 1 ;; # without that file the status is srun's: check the nodes
        75 | 140 | 143) requeue "preempted" ;;
    esac
    still_ours || taken "status $1"
    all_nodes_answer || requeue "a node does not answer"
    [ "$1" -eq 74 ] || [ "$1" -gt 128 ] || return 1
    say "status $1: a rank was lost, all nodes answer; starting again"
}

same_versions() {
    [ "$SLURM_JOB_NUM_NODES" -gt 1 ] || return 0
    local found
    found=$(on_each_node "${python[@]}" -m bridge_ds preflight --versions) || requeue_if_stopped "$?" || return 1
    found=$(sort <<<"$found" | uniq -c)
    [ "$(wc -l <<<"$found")" -eq 1 ] && return 0
    echo "$found"
    echo "error: the nodes have different versions (count and versions above); expected the same; install the same on all."
    return 2
}

# prepare ARGUMENTS: bridge-ds pack.
prepare() {
    srun --ntasks=1 --cpus-per-task="$cpus_per_task" "${python[@]}" -m bridge_ds pack "$@"
    exit
}

# evaluate [--tasks ... --limit ...]: one language of LANGUAGES for each array task, or all of them without an array.
evaluate() {
    local languages=() chosen output
    read -ra languages <<<"${LANGUAGES:-}"
    chosen=$(IFS=,; echo "${languages[*]}")
    output=$OUTPUT/evaluation.json
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        chosen=${languages[$SLURM_ARRAY_TASK_ID]:-}
        output=$OUTPUT/evaluation-$chosen.json
        if [ -z "$chosen" ]; then
            echo "error: array task $SLURM_ARRAY_TASK_ID has no language in LANGUAGES='${LANGUAGES:-}';" \
                "expected sbatch --array=0-$((${#languages[@]} - 1))." >&2
            exit 2
        fi
    fi
    local arguments=(--run "$OUTPUT" --output "$output" "$@")
    [ -z "$chosen" ] || arguments+=(--languages "$chosen")
    srun --ntasks=1 --cpus-per-task="$cpus_per_task" --cpu-bind="$CPU_BIND" --mem-bind="$MEM_BIND" \
        "${python[@]}" -m bridge_ds evaluate "${arguments[@]}"
    exit
}
