#!/usr/bin/env bash
# Everything that only a GPU can show, in one go (some five minutes on an H100): tools/bench/bench_gpu.sh [FOLDER]
#   1. the kernels against the float64 reference, on the device
#   2. rows of tools/bench/bench_fusion.csv: mT5-small, large and XL at 1k, 4k and 16k tokens, and their share of the copy speed
#   3. rows of tools/bench/bench_step.csv: whole steps of mT5-small, large and XL with a 1B Llama, 1k, 4k and 16k tokens,
#      beside the paper's own; ragged short rows beside the paper's; and ours with compiled layers
#   4. 20 steps of ZeRO-3 over NCCL on every GPU of this machine, memory beside the plan's
#   5. a run whose micro-batches are watched for waits of the host
#   6. the same run twice with run.deterministic: losses equal to the last digit; and once more, stopped and resumed
#   7. the README's first command, with evaluation
# Each part goes on where another failed; what failed is said at the end. FOLDER (default: a temporary one) takes random
# models of 6 GB, the runs and their logs. ROWS (default: tools/bench) is where the rows are appended. PARTS chooses among
# kernels, fusion, step, ragged, compile, waits, deterministic, memory and main (default: all); PORT is that of DeepSpeed's launcher.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
[ ! -x .venv/bin/python ] || python=.venv/bin/python
gpus=$("$python" -c "import torch; print(torch.cuda.device_count())")
[ "$gpus" -gt 0 ] || { echo "error: no GPU is seen; expected at least one; see nvidia-smi and CUDA_VISIBLE_DEVICES." >&2; exit 2; }

folder=${1:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"
rows=${ROWS:-tools/bench}
small=(--set evaluation.tasks='[]' --set track.uri=none --set model.dtype=bfloat16 --set train.global_batch=$((8 * gpus)))
failed=()

part() { # NAME COMMAND...: its output goes to FOLDER/NAME.log, and the last lines of it are shown
    local name=$1 began=$SECONDS status=0
    shift
    [[ " ${PARTS:-$name} " == *" $name "* ]] || return 0
    "$@" >"$folder/$name.log" 2>&1 || status=$?
    echo "== $name: status $status, $((SECONDS - began)) s"
    tail -n "${LINES_SHOWN:-12}" "$folder/$name.log"
    [ "$status" = 0 ] || { failed+=("$name"); return "$status"; }
}

train() { # OUTPUT SETTINGS...
    local output=$1
    shift
    # Not the launcher itself, which would take the first GPUs of the node, whatever CUDA_VISIBLE_DEVICES says.
    "$python" -m bridge_ds train --num_gpus "$gpus" --ds_config zero3.json --set run.output="$output" "$@" \
        -- --master_port "${PORT:-29500}"
}

deterministic() { # the same twice; then stopped after 10 steps, and resumed
    local same=("${small[@]}" --set run.deterministic=true --set train.steps=20 --set checkpoint.every=10)
    train "$folder/deterministic-1" "${same[@]}" &&
        cp -r "$folder/deterministic-1" "$folder/deterministic-3" &&
        rm -rf "$folder"/deterministic-3/checkpoints/{step-00000020,best} &&
        train "$folder/deterministic-2" "${same[@]}" &&
        train "$folder/deterministic-3" "${same[@]}" &&
        "$python" - "$folder" <<'EOF'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
runs = [
    [json.loads(line) for line in (folder / f"deterministic-{n}" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    for n in (1, 2, 3)
]
for name, run in (("repeated", runs[1]), ("resumed at step 10", runs[2])):
    same = sum(a["loss"] == b["loss"] and a["grad_norm"] == b["grad_norm"] for a, b in zip(runs[0], run, strict=True))
    print(f"run.deterministic, {name}: {same} of {len(run)} steps are equal in loss and gradient norm to the last digit")
    if same != 20:
        sys.exit(1)
last = [(folder / f"deterministic-{n}/checkpoints/step-00000020/bridge.safetensors").read_bytes() for n in (1, 2, 3)]
print("the bridges are the same, byte for byte" if last[0] == last[1] == last[2] else "the bridges differ")
sys.exit(last[0] != last[1] or last[0] != last[2])
EOF
}

waits() { # one rank: torch counts the waits of each
    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 \
        "$python" tests/programs/watch_waits.py "$folder/waits.json" --ds_config zero3.json --set run.output="$folder/waits" \
        "${small[@]}" --set train.steps=8 --set train.micro_batch=2 &&
        "$python" - "$folder/waits.json.0" <<'EOF'
import json
import sys

seen = json.load(open(sys.argv[1], encoding="utf-8"))
ours = {place: count for place, count in seen["waits"].items() if "/deepspeed/" not in place}
theirs = sum(seen["waits"].values()) - sum(ours.values())
print(f"waits of the host inside {seen['forward']} micro-batches: {sum(ours.values())}; {theirs} more are DeepSpeed's own")
for place, count in seen["waits"].items():
    print(f"  {count} at {place}")
sys.exit(bool(ours))
EOF
}

part kernels "$python" -m pytest -q -m gpu tests/fusion ${XDIST:+-n "$XDIST"}
part fusion "$python" tools/bench/bench_fusion.py --output "$rows/bench_fusion.csv"
step=("$python" tools/bench/bench_step.py --output "$rows/bench_step.csv" --fusions "last_layer,global_softmax,transformer_softmax")
LINES_SHOWN=70 part step "${step[@]}" --sizes mt5-small+1b,mt5-large+1b,mt5-xl+1b --batch 2,8,32 --source 512 --target 64 \
    --repeat 5 --against paper
LINES_SHOWN=14 part ragged "${step[@]}" --sizes mt5-base6+106m --batch 16 --source 9-59 --target 2 --vocabulary 32000,128256 \
    --repeat 9 --against paper
part compile "${step[@]}" --sizes mt5-large+1b --batch 8 --source 512 --target 64 --repeat 5 --compile
part waits waits
part deterministic deterministic
part memory "$python" tools/bench/rehearse.py --folder "$folder" --cuda --ranks "$gpus" --steps 20 --source 512 --target 64 \
    --no-unsharded
LINES_SHOWN=30 part main train "$folder/testbed" --set track.uri=none
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}; the logs are in $folder" >&2; exit 1; }
