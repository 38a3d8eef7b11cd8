"""A bridge as a folder, and that folder on the hub."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.finite import fault_in
from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.disk import real
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.hub.card import HERE
from bridge_ds.hub.source import CARD

__all__ = ["upload", "write_folder"]


def write_folder(model: Any, folder: Path, card: str | None = None) -> None:
    """Write config.json, generation_config.json, README.md, and the files of what was trained, as a checkpoint's.

    Args:
        model: a :class:`bridge_ds.hub.model.BridgeForCausalLM`.
        folder: made if absent.
        card: instead of the model's own.

    Raises:
        CheckpointError: what was trained holds NaN or infinities.
        ConfigError: a file of that name, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    fault = fault_in(trained_tensors(model.bridge).items())
    if fault:
        raise CheckpointError(f"{fault}; expected finite numbers; nothing was written: export another checkpoint.")

    files: dict[str, dict[str, torch.Tensor]] = {}
    trained = trained_tensors(model.bridge)
    file_of = layout.files_of(trained)
    for name, tensor in trained.items():
        assert tensor.dtype == torch.float32, name
        files.setdefault(file_of[name], {})[name] = tensor.detach().cpu().contiguous()
    try:
        real(folder).mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            save_file(tensors, folder / name, metadata={"format": "pt"})
        config = copy.deepcopy(model.config)
        config.files = {name: layout.entry_of(folder / name) for name in sorted(files)}
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        (folder / CARD).write_text(model.card if card is None else card, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); expected a folder that you may write; choose "
            "another."
        ) from None


def upload(
    model: Any,
    repo_id: str,
    *,
    commit_message: str = "Upload bridge",
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: Any = None,
    tags: Any = None,
) -> str:
    """Make the repository if there is none, and commit the folder of :func:`write_folder` to it.

    Args:
        model: as above.
        repo_id: `name` or `organisation/name`.
        commit_message: of the one commit; likewise `commit_description`.
        commit_description: see `commit_message`.
        private: of a repository that is made.
        token: to write with (default: the one of `hf auth login`).
        revision: branch.
        create_pr: as a pull request.
        max_shard_size: nothing here is large enough for it.
        tags: nothing; the card has its own.

    Returns:
        the commit's URL.

    Raises:
        ConfigError: a base model is named by a folder of this machine.
    """
    from huggingface_hub import HfApi

    for part in ("encoder", "llm"):
        name = getattr(model.config, part)
        if Path(name).is_dir():
            raise ConfigError(
                f"the {part} is named by a folder of this machine ({name}); expected a hub id, for others to load it; "
                f"load the bridge again with {part}=HUB_ID, which is proven by its hash."
            )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, Path(folder), model.card.replace(f'"{HERE}"', f'"{repo_id}"'))
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return str(done.commit_url)
