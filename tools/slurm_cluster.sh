#!/usr/bin/env bash
# A real Slurm on one host, to try the launchers: munged, slurmctld and N slurmd on loopback.
#
#   eval "$(tools/slurm_cluster.sh up 2 | tail -n 1)"   # two nodes, n0 and n1, of 8 (counted, not real) GPUs each
#   sinfo; sbatch slurm/train_13b.sh ...
#   tools/slurm_cluster.sh kill n1                      # a node fails: its slurmd and all that it started get SIGKILL
#   tools/slurm_cluster.sh start n1                     # and comes back
#   tools/slurm_cluster.sh down
#
# Needs Debian's or Ubuntu's packages slurm-wlm and munge; root, or any user (then only that user can submit).
# All state lies in SLURM_CLUSTER_DIR (default: a folder of this user under /tmp). The system's own Slurm and munge, if
# any, are not touched. The last line that `up` prints is the export that Slurm's commands need.
set -euo pipefail

dir=${SLURM_CLUSTER_DIR:-/tmp/slurm_cluster-$(id -u)}
port=${SLURM_CLUSTER_PORT:-17000}
export SLURM_CONF=$dir/slurm.conf

fail() {
    echo "slurm_cluster: $*" >&2
    exit 2
}

need() {
    local tool
    for tool in munged slurmctld slurmd sinfo; do
        command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null ||
            fail "$tool is not installed; expected Debian's slurm-wlm and munge; apt-get install slurm-wlm munge."
    done
    PATH=$PATH:/usr/sbin
}

write_config() {
    local nodes=$1 user host memory
    user=$(id -un)
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    # CPUs and GPUs are only counted (config_overrides, task/none binds nothing), so that the
    # launchers' own sizes can be asked for on a laptop. The short timeouts let a test see a node fail; cred_expire is how
    # long a requeued job waits before it may start again (120 s by default).
    cat >"$SLURM_CONF" <<CONF
ClusterName=onehost
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=${SLURM_CLUSTER_NODE_TIMEOUT:-10}
InactiveLimit=0
KillWait=${SLURM_CLUSTER_KILL_WAIT:-15}
MinJobAge=3600
SchedulerParameters=sched_interval=2,bf_interval=2
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[0-$((nodes - 1))] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=64 RealMemory=$memory Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=2 PreemptMode=OFF
CONF
    [ "$nodes" -gt 1 ] || sed -i -e 's/n\[0-0\]/n0/' -e "s/\[$((port + 1))-$((port + 1))\]/$((port + 1))/" "$SLURM_CONF"
    # The gpu plugin wants a file a device; empty ones do.
    touch "$dir"/gpu{0..7}
    echo "Name=gpu File=$dir/gpu[0-7]" >"$dir/gres.conf"
}

start_node() {
    # A group of its own, so that `kill` finds all that the node runs.
    setsid slurmd -N "$1" </dev/null >/dev/null 2>&1 || fail "slurmd $1 did not start; see $dir/slurmd-$1.log."
}

up() {
    local nodes=$1 node ready _
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || fail "'$nodes' nodes asked for; expected 1 to 99; tools/slurm_cluster.sh up 2."
    need
    [ ! -e "$SLURM_CONF" ] || fail "a cluster is there already ($dir); take it down first: $0 down."
    (umask 022 && mkdir -p "$dir/state")
    write_config "$nodes"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    # --force: munged would refuse a parent folder that is not its own, such as /tmp.
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --num-threads=2 2>>"$dir/munged.log" ||
        fail "munged did not start; see $dir/munged.log."
    slurmctld -c </dev/null >/dev/null 2>&1 || fail "slurmctld did not start; see $dir/slurmctld.log."
    for ((node = 0; node < nodes; node++)); do start_node "n$node"; done
    for _ in $(seq 120); do
        ready=$(sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l) || ready=0
        [ "$ready" -lt "$nodes" ] || break
        sleep 0.5
    done
    [ "$ready" -eq "$nodes" ] || fail "only $ready of $nodes nodes are idle after 60 s; see $dir/*.log."
    echo "$nodes nodes are idle; state and logs are in $dir"
    echo "export SLURM_CONF=$SLURM_CONF"
}

# Every process of a node: its slurmd and slurmstepd by command line, and all that these have started.
kill_node() {
    local node=$1 pid
    [ -e "$dir/slurmd-$node.pid" ] || fail "no node $node in $dir; expected one of a running cluster; sinfo -N lists them."
    pid=$(cat "$dir/slurmd-$node.pid")
    kill -KILL "$pid"
    for pid in $(jobs_of "$node"); do kill_tree "$pid"; done
}

# slurmstepd of one node: they name no node, but hold its spool folder's sockets.
jobs_of() {
    local socket
    for socket in "$dir/spool-$1/$1"_*; do
        [ -S "$socket" ] || continue
        # NODE_JOB.STEP; slurmstepd shows [JOB.STEP], or [JOB.batch] and [JOB.extern] for the highest numbers.
        pids_of_socket "$socket"
    done
}

pids_of_socket() {
    local inode fd
    inode=$(awk -v path="$1" '$8 == path {print $7; exit}' /proc/net/unix)
    [ -n "$inode" ] || return 0
    for fd in /proc/[0-9]*/fd/*; do
        [ "$(readlink "$fd" 2>/dev/null)" = "socket:[$inode]" ] && echo "$fd" | cut -d/ -f3
    done | sort -u
}

kill_tree() {
    local child
    kill -STOP "$1" 2>/dev/null || return 0
    for child in $(ps -o pid= --ppid "$1"); do kill_tree "$child"; done
    kill -KILL "$1" 2>/dev/null || true
}

down() {
    local file pid _
    [ -e "$SLURM_CONF" ] || { echo "no cluster in $dir"; return; }
    scancel --me 2>/dev/null || true
    for _ in $(seq 40); do
        [ -n "$(squeue -h 2>/dev/null || true)" ] || break
        sleep 0.25
    done
    for file in "$dir"/slurmd-*.pid; do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        for stepd in $(jobs_of "$(basename "$file" .pid | cut -d- -f2)"); do kill_tree "$stepd"; done
        kill "$pid" 2>/dev/null || true
    done
    for file in "$dir"/slurmctld.pid "$dir"/munged.pid; do
        [ ! -e "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
    done
    for _ in $(seq 40); do
        compgen -G "$dir/*.pid" >/dev/null || break
        sleep 0.25
    done
    rm -rf "$dir"
    echo "the cluster of $dir is down"
}

case "${1:-} ${2:-}" in
    "up "?*) up "$2" ;;
    "down ") down ;;
    "kill "?*) need && kill_node "$2" ;;
    "start "?*) need && start_node "$2" ;;
    *) fail "expected: up N | down | kill NODE | start NODE." ;;
esac
