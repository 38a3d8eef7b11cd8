"""From a peer's checkpoint to a run folder: read, match with our modules, compare, write.

OUTPUT/
  config.yaml                    what load_trained, the evaluation, the harness and the doctor read
  checkpoints/step-00000000/     the bridge; step 0 (not trained here), without optimizer state
  encoder/, llm/                 only if the checkpoint's own differ from those that were named
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bridge_ds import __version__
from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.checkpoint.save import Snapshot, write
from bridge_ds.checkpoint.state import trained
from bridge_ds.config.load import build_config, save_config, to_dict
from bridge_ds.config.schema import Config
from bridge_ds.convert.bases import Base, match, refuse_other_tokens, write_tokenizer, write_weights
from bridge_ds.convert.layout import ConvertSource, SourceLayout
from bridge_ds.convert.stored import Stored, read_checkpoint
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.convention import settled
from bridge_ds.disk import atomic_folder, missing_or_empty, real
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.setup import base_identities, build_model
from bridge_ds.errors import CheckpointError, ConfigError, brief
from bridge_ds.llm.frozen import load_llm

__all__ = ["Conversion", "prepare", "refuse_used"]

_log = logging.getLogger(__name__)


@dataclass
class Conversion:
    """A checkpoint that was read and fits; nothing is written yet."""

    source: ConvertSource
    checkpoint: Path
    stored: Mapping[str, Stored]
    layout: SourceLayout
    config: Config
    model: BridgeModel
    tokenizers: Tokenizers
    bases: Mapping[str, Base]
    """`encoder` and `llm`."""
    added_tokens: Sequence[str]
    """Tokens that the encoder's tokenizer lacks and gets."""

    def lines(self) -> Iterator[str]:
        """What becomes of every key, and of both models."""
        shapes = {name: tuple(tensor.shape) for name, tensor in trained_tensors(self.model).items()}
        for ours, theirs in sorted(self.layout.bridge.items()):
            yield f"{theirs} {self.stored[theirs].shape} -> {ours} {shapes[ours]}"
        for part, base in self.bases.items():
            for key, ours in sorted(base.pairs.items()):
                yield f"{key} {self.stored[key].shape} -> {part} {ours}{' (differs)' if key in base.differing else ''}"
            for key in base.unread:
                yield f"{key} {self.stored[key].shape} -> not read: computed, or not used here"
        yield from self.summary()

    def summary(self) -> Iterator[str]:
        """A line each for bridge, encoder and LLM."""
        fusion, mapping = self.config.fusion.name, self.config.mapping.kind
        yield f"bridge: fusion {fusion}, mapping {mapping}, {len(self.layout.bridge)} tensors"
        for part, base in self.bases.items():
            name = getattr(self.config.model, part)
            held = f"{len(base.pairs)} weights in the checkpoint" if base.pairs else "not in the checkpoint"
            if base.differing:
                held += f", {len(base.differing)} of them differ from {name}: written to {part}/ and used"
            elif base.pairs:
                held += f", all equal to {name}"
            else:
                held += f"; {name} is used"
            if part == "encoder" and self.added_tokens:
                held += f"; its tokenizer gets {len(self.added_tokens)} tokens: written to {part}/ with it"
            yield f"{part}: {held}"

    def write(self, output: Path) -> None:
        """Make the run folder: complete, or not at all.

        Raises:
            ConfigError: `output` holds something already, or cannot be written.
            CheckpointError: a model or tokenizer is not the same after it was written.
        """
        refuse_used(output)
        try:
            with atomic_folder(output) as temporary:
                written = self._write_bases(temporary)
                config = _with_folders(self.config, written, real(output))
                config = replace(config, run=replace(config.run, output=str(output)))
                self._write_checkpoint(temporary, config, written)
                save_config(config, temporary / "config.yaml")
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{output} cannot be written ({brief(error)}); expected a disk with room for "
                "complete models; choose another --output."
            ) from error

    def _write_bases(self, root: Path) -> list[str]:
        """Folders of the models that are not simply the named ones; returns which."""
        written = []
        for part, base in self.bases.items():
            added = self.added_tokens if part == "encoder" else ()
            if base.differing or added:
                of = self.config.model
                name, revision = getattr(of, part), getattr(of, f"{part}_revision")
                write_weights(getattr(self.model, part).model, base, self.stored, root / part)
                write_tokenizer(name, revision, added, root / part, of.trust_remote_code)
                written.append(part)
        return written

    def _write_checkpoint(self, root: Path, config: Config, written: Sequence[str]) -> None:
        """The bridge, and the identities of the models as they are now on disk: `written` are under `root` until all
        is renamed."""
        here = _with_folders(config, written, root)
        tokenizers = self.tokenizers
        if written:
            tokenizers = load_tokenizers(here.model, data=here.data)
            refuse_other_tokens(self.tokenizers, tokenizers, self.added_tokens)
        if "encoder" in written:
            self.model.encoder = load_encoder(here.model)
        if "llm" in written:
            self.model.llm = load_llm(here.model)
        tensors = {name: tensor.detach().clone() for name, tensor in trained_tensors(self.model).items()}
        came = f"converted from {self.source.title}"
        write(
            Snapshot(tensors, {}, 0),
            root / "checkpoints",
            # It cannot be resumed; these values make the error say why.
            state={"step": 0, "consumed": 0, "seed": config.run.seed, "global_batch": came},
            manifest={
                "base": base_identities(here, self.model, tokenizers),
                "config": to_dict(config),
                "versions": {"bridge_ds": __version__},
                "converted": {"source": self.source.title, "checkpoint": str(self.checkpoint)},
            },
        )


def prepare(
    source: ConvertSource, checkpoint: Path, *, encoder: str = "", llm: str = "", overrides: Sequence[str] = (),
    add_tokens: bool = True,
) -> Conversion:  # fmt: skip
    """Read a checkpoint, load both frozen models, and check that everything fits.

    Args:
        source: of which project.
        checkpoint: its file or folder.
        encoder: the encoder that it was trained with (hub id or folder); empty = the one that it names.
        llm: the same for the LLM.
        overrides: `key=value` over the run's config.
        add_tokens: give the encoder's tokenizer the tokens that the project adds.

    Raises:
        CheckpointError: unreadable, of another project, a key missing, unexpected or of another shape.
        ConfigError: a model is not named or not there, or an override is wrong.
    """
    stored = read_checkpoint(checkpoint)
    layout = source.read(stored)
    stored = {key: each for key, each in stored.items() if key not in layout.used} | dict(layout.made)
    _refuse_other_keys(layout, stored)
    config = _config(source, layout, _named(source, checkpoint, encoder, llm), overrides)
    tokenizers = load_tokenizers(config.model, data=config.data)
    config = replace(config, data=settled(config.data, tokenizers))
    model = build_model(config, tokenizers.bos_id)
    _refuse_other_shapes(layout, stored, model)
    _load(layout, stored, model)
    bases = {
        part: match(part, getattr(config.model, part), getattr(model, part).model, getattr(layout, part), stored)
        for part in ("encoder", "llm")
    }
    added = _added(source, config, tokenizers, model) if add_tokens else []
    return Conversion(source, checkpoint, stored, layout, config, model, tokenizers, bases, added)


def refuse_used(output: Path) -> None:
    """Raises ConfigError if a new run folder cannot be made there."""
    if not missing_or_empty(output):
        raise ConfigError(f"{output} exists and is not empty; expected a new folder; choose another one.")


def _named(source: ConvertSource, checkpoint: Path, encoder: str, llm: str) -> dict[str, str]:
    names = {}
    for part, given, own in zip(("encoder", "llm"), (encoder, llm), source.bases(checkpoint), strict=True):
        if not given and not own:
            raise ConfigError(f"the checkpoint does not name its {part}; give it with --{part}, a hub id or a folder.")
        if not given:
            _log.info(f"{part}: {own}, as the checkpoint's config.json says")
        names[part] = given or str(own)
    return names


def _config(source: ConvertSource, layout: SourceLayout, names: Mapping[str, str], overrides: Sequence[str]) -> Config:
    """Defaults, then the project's settings, then the user's; those of the layout cannot be changed."""
    values: dict[str, Any] = {"model": dict(names), "mapping": {"match_embedding_rms": False}}
    fixed = dict(layout.settings)
    for key, value in (dict(source.settings) | fixed).items():
        part, name = key.split(".")
        values.setdefault(part, {})[name] = value
    config = build_config(values, overrides)
    for key, value in fixed.items():
        part, name = key.split(".")
        found = getattr(getattr(config, part), name)
        if found != value:
            raise ConfigError(f"--set {key}={found}, but the checkpoint is {value}; leave {key} out.")
    return config


def _with_folders(config: Config, parts: Sequence[str], root: Path) -> Config:
    """The config with the models in `parts` taken from their folders under `root`."""
    changed: dict[str, Any] = {part: str(root / part) for part in parts}
    changed |= {f"{part}_revision": None for part in parts}
    return replace(config, model=replace(config.model, **changed))


def _added(source: ConvertSource, config: Config, tokenizers: Tokenizers, model: BridgeModel) -> list[str]:
    """Tokens that the source adds and the encoder's tokenizer lacks; the embedding must have rows for them."""
    known = tokenizers.encoder.get_vocab()
    added = [token for token in source.added_tokens if token not in known]
    needed, rows = max(known.values()) + 1 + len(added), model.encoder.vocab_size
    if added and needed > rows:
        raise ConfigError(
            f"{source.title} adds {len(added)} tokens to the encoder's tokenizer, {needed} in all, and the embedding "
            f"of {config.model.encoder!r} has {rows} rows; if the checkpoint was trained without: --no-added-tokens."
        )
    return added


def _refuse_other_keys(layout: SourceLayout, stored: Mapping[str, Stored]) -> None:
    for ours, theirs in layout.bridge.items():
        if theirs not in stored:
            raise CheckpointError(
                f"the checkpoint lacks {theirs}, which becomes {ours}; expected it beside "
                f"{min(key for key in layout.bridge.values() if key in stored)}; copy the complete checkpoint."
            )
    known = {*layout.bridge.values(), *layout.encoder, *layout.llm}
    odd = sorted(set(stored) - known)
    if odd:
        raise CheckpointError(
            f"the checkpoint has {len(odd)} unexpected keys, such as {odd[0]} of shape {stored[odd[0]].shape}; a "
            "part of the model would be lost without them, so it is not converted."
        )


def _refuse_other_shapes(layout: SourceLayout, stored: Mapping[str, Stored], model: BridgeModel) -> None:
    """Axes of length one do not count: the peers hold the end vector as 1 x 1 x H."""
    targets = dict(trained(model))
    if odd := sorted(set(targets) ^ set(layout.bridge)):
        raise ConfigError(
            f"the settings make a model that trains {odd[0]}{' and others' if odd[1:] else ''}, which the checkpoint "
            "does not hold; expected its own parts alone; leave out --set of lora, llm, encoder, injection, fusion and "
            "mapping."
        )
    widths = f"encoder width {model.encoder.width}, {model.encoder.num_layers} layers, LLM width {model.llm.width}"
    for ours, theirs in layout.bridge.items():
        found, wanted = stored[theirs].shape, tuple(targets[ours].shape)
        if [n for n in found if n != 1] != [n for n in wanted if n != 1]:
            raise CheckpointError(
                f"{theirs} has shape {found}; expected {wanted} for {ours} ({widths}); give the models that the "
                "checkpoint was trained with (--encoder, --llm)."
            )


def _load(layout: SourceLayout, stored: Mapping[str, Stored], model: BridgeModel) -> None:
    targets = dict(trained(model))
    with torch.no_grad():
        for ours, theirs in layout.bridge.items():
            value = stored[theirs].read()
            if not value.is_floating_point() or not torch.isfinite(value).all():
                raise CheckpointError(
                    f"{theirs} holds values that are no finite numbers ({value.dtype}); expected trained weights; the "
                    "checkpoint is damaged, or its training had failed."
                )
            targets[ours].copy_(value.reshape(targets[ours].shape))
