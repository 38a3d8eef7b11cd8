#!/usr/bin/env bash
# Everything that only a GPU can show, in one go (under ten minutes on an H100): tools/bench/bench_gpu.sh [FOLDER]
#   1. the kernels against the float64 reference, on the device
#   2. rows of tools/bench/bench_fusion.csv: mT5-small, large and XL at 1k, 4k and 16k tokens, and their share of the copy speed
#   3. rows of tools/bench/bench_step.csv: whole steps of mT5-small, large and XL with a 1B Llama, 1k, 4k and 16k tokens,
#      beside the paper's own
#   4. 20 steps of ZeRO-3 over NCCL on every GPU of this machine, memory beside the plan's
#   5. the same run twice with run.deterministic: losses equal to the last digit
# FOLDER (default: a temporary one) takes random models of 6 GB and the runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ ! -x .venv/bin/python ] || python=.venv/bin/python
gpus=$("$python" -c "import torch; print(torch.cuda.device_count())")
[ "$gpus" -gt 0 ] || { echo "error: no GPU is seen; expected at least one; see nvidia-smi and CUDA_VISIBLE_DEVICES." >&2; exit 2; }

folder=${1:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi

"$python" -m pytest -q -m gpu tests/fusion
"$python" tools/bench/bench_fusion.py
"$python" tools/bench/bench_step.py --sizes mt5-small+1b,mt5-large+1b,mt5-xl+1b --batch 2,8,32 --source 512 --target 64 --repeat 5 --against paper
"$python" tools/bench/rehearse.py --folder "$folder" --cuda --ranks "$gpus" --steps 20 --source 512 --target 64 --no-unsharded
for turn in 1 2; do
    "$python" -m deepspeed.launcher.runner --num_gpus "$gpus" bridge_ds/train.py --ds_config zero3.json \
        --set run.output="$folder/deterministic-$turn" --set run.deterministic=true --set train.steps=20 \
        --set train.global_batch=$((8 * gpus)) --set evaluation.tasks=[] --set track.uri=none --set model.dtype=bfloat16 >"$folder/deterministic-$turn.log"
done
"$python" - "$folder" <<'EOF'
import json
import sys
from pathlib import Path

runs = [Path(sys.argv[1]) / f"deterministic-{turn}" / "metrics.jsonl" for turn in (1, 2)]
first, second = ([json.loads(line) for line in run.read_text().splitlines() if '"loss"' in line] for run in runs)
same = [a["loss"] == b["loss"] and a["grad_norm"] == b["grad_norm"] for a, b in zip(first, second, strict=True)]
print(f"run.deterministic: {sum(same)} of {len(same)} steps are equal in loss and gradient norm to the last digit")
sys.exit(sum(same) != len(same))
EOF
