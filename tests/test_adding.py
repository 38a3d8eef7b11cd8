"""What docs/how_to_add.md says a new part touches, done in a copy of the package: then it configures, is planned and
trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_ds.config.load import RECIPES
from bridge_ds.fusion import FUSIONS
from bridge_ds.mapping import MAPPINGS
from tests import tiny

ROOT = Path(__file__).parents[1]
FUSION = {
    "bridge_ds/fusion/gated_mean/__init__.py": """
from bridge_ds.fusion.spec import FusionSpec

SPEC = FusionSpec(
    module="bridge_ds.fusion.gated_mean.module:GatedMean",
    summary="the mean of the layers times a learnt gate",
    options=("backend", "state_norm"),
    parameters=lambda layers, width, config: width,
)
""",
    "bridge_ds/fusion/gated_mean/module.py": """
import torch

from bridge_ds.fusion.base import Fusion
from bridge_ds.fusion.kernels import fuse_by_layer


class GatedMean(Fusion):
    def __init__(self, num_layers, width, *, backend="auto", state_norm="none"):
        super().__init__(num_layers, width, backend=backend, state_norm=state_norm)
        self.gate = torch.nn.Parameter(torch.ones(width))

    def forward(self, states, mask, rows=None):
        self._check(states)
        self._mean_weights_L = states[0].new_full((self.num_layers,), 1 / self.num_layers, dtype=torch.float32)
        fused = fuse_by_layer(self.backend, states, mask, self._mean_weights_L, rms=self.rms, rows=rows)
        return fused * self.gate.to(fused)
""",
}
RECIPE = """
base: testbed
fusion:
  name: gated_mean
mapping:
  kind: linear_without_bias
train:
  steps: 2
  global_batch: 4
evaluation:
  tasks: []
"""
LINES = {  # file -> (line before, the new one)
    "bridge_ds/fusion/__init__.py": ('        "layer_attention",\n', '        "gated_mean",\n'),
    "bridge_ds/mapping/__init__.py": (
        "MAPPINGS: dict[str, MappingSpec] = {\n",
        '    "linear_without_bias": MappingSpec("bridge_ds.mapping.plain:plain", "D -> H", lambda d, h, of: d * h),\n',
    ),
    "bridge_ds/encoder/families.py": (
        '    "deberta-v2": Family("DebertaV2Model", extra=_deberta),\n',
        '    "bart": Family("BartEncoder", "transformers.models.bart.modeling_bart", _NLLB_KEYS, extra=lambda config: '
        '(config["max_position_embeddings"] + 2) * config["d_model"]),\n',
    ),
}
FILES = FUSION | {
    "bridge_ds/mapping/plain.py": "import torch\n\n\ndef plain(d, h):\n    return torch.nn.Linear(d, h, bias=False)\n",
    "bridge_ds/config/recipes/mine.yaml": RECIPE,
}
PLAN = """
import json, sys
from bridge_ds.config.load import load_config
from bridge_ds.plan.job import bridge_parameters, planned
from bridge_ds.plan.memory import memory
job = planned(load_config("mine", sys.argv[1:]), 1, 1)
print(json.dumps([bridge_parameters(job), job.encoder.parameters, memory(job)["total"], "torch" in sys.modules]))
"""


def make_bart(folder: Path) -> Path:
    """A whole encoder-decoder, as the hub has it."""
    import transformers as tf

    tiny.make_encoder("m2m_100", folder)  # its tokenizer
    sizes = {"d_model": 24, "vocab_size": 340, "max_position_embeddings": 80, "pad_token_id": 0, "eos_token_id": 1}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 2, f"{half}_attention_heads": 2, f"{half}_ffn_dim": 32}
    config = tf.BartConfig(**sizes, bos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None)
    tf.BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_new_fusion_mapping_encoder_family_and_recipe_touch_a_file_and_a_line_each(tmp_path: Path) -> None:
    package = tmp_path / "bridge_ds"
    shutil.copytree(ROOT / "bridge_ds", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "ds_configs", tmp_path / "ds_configs")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, (before, new) in LINES.items():
        text = (tmp_path / name).read_text()
        assert text.count(before) == 1 and new.count("\n") == 1
        (tmp_path / name).write_text(text.replace(before, before + new))
    encoder = make_bart(tmp_path / "bart")
    env = os.environ | {
        "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    settings = [f"model.encoder={encoder}", "run.output=run", "track.uri=none"]
    trained, frozen, gib, torch = json.loads(run("-c", PLAN, *settings))
    overrides = [part for setting in settings for part in ("--set", setting)]
    run("bridge_ds/train.py", "--recipe", "mine", "--ds_config", "zero2.json", *overrides)

    from safetensors import safe_open

    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-00000002")
    with safe_open(checkpoint / "bridge.safetensors", framework="pt") as file:
        sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert sizes["fusion.gate"] == [24] and "mapping.project.bias" not in sizes
    llm = sizes["mapping.end"][0]
    assert trained == 24 + 24 * llm + llm and gib > 0 and not torch
    from transformers import BartModel

    assert frozen == sum(p.numel() for p in BartModel.from_pretrained(encoder).encoder.parameters())


@pytest.mark.parametrize(("part", "table"), [("fusion", FUSIONS), ("mapping", MAPPINGS)])
def test_the_docs_table_is_the_table(part: str, table: dict[str, object]) -> None:
    row = f"| {part} | " + "; ".join(f"`{name}`: {spec.summary}" for name, spec in table.items()) + " |"  # type: ignore[attr-defined]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(row in page.read_text() for page in pages), f"README.md or a page of docs/ should have: {row}"


def test_every_recipe_is_in_the_docs() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert all(f"`{recipe.stem}`" in pages for recipe in RECIPES.glob("*.yaml"))
