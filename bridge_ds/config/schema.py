"""Every setting of a run, typed, with its unit. Recipes are YAML of this shape; unknown keys are refused."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FusionConfig",
    "LoraConfig",
    "MappingConfig",
    "ModelConfig",
    "RunConfig",
    "TaskDataConfig",
    "TrackConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    output: str = "runs/default"
    """Run folder (path); made if absent. Holds config.yaml, metrics.jsonl, checkpoints/, plots/, evaluation.json."""
    seed: int = 0
    """Seed of the data order, the initial bridge and dropout (whole number, >= 0)."""
    resume: str = "auto"
    """`auto` continues from the newest valid checkpoint if there is one, `never` starts anew in an empty folder,
    `must` demands a checkpoint; or the path of one step folder."""
    start_from: str = ""
    """Run folder (its newest checkpoint) or step folder whose trained weights this run begins with, at step 0 and with
    a new optimizer, such as the stage before this one; empty = weights made from `seed`."""
    ds_config: str = "zero3.json"
    """DeepSpeed file (a path, or a name in ds_configs/)."""
    stop_signals: tuple[str, ...] = ("USR2", "TERM")
    """Signals that ask for a checkpoint and an early end with exit status 75 (USR1 | USR2 | TERM | HUP)."""
    deterministic: bool = False
    """On GPUs too, use only algorithms that give the same numbers each time, at some speed (yes/no); CPUs do anyway."""
    hang_seconds: float = 900.0
    """Seconds without progress in training after which the stuck rank is named and the job ended; 0 = never."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two base models, frozen unless `encoder` or `lora` say otherwise."""

    encoder: str = "testbed/encoder"
    """Multilingual encoder (hub id, local folder, or `testbed/encoder`); only its encoder half is loaded."""
    llm: str = "testbed/llm"
    """Causal language model (hub id, local folder, or `testbed/llm`)."""
    encoder_revision: str | None = None
    """Hub revision of the encoder (commit, tag or branch); none = the default branch."""
    llm_revision: str | None = None
    """Hub revision of the LLM; none = the default branch."""
    dtype: str = "bfloat16"
    """Number format of both base models: bfloat16 | float32 (float16 overflows in T5, transformers#9295). What is
    trained is float32 always."""
    activation_checkpointing: bool = False
    """Recompute the LLM's layers in the backward pass instead of keeping their activations (yes/no)."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model (yes/no)."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Whether the encoder is trained along with the bridge. Defaults beside `trainable` are LangBridge's (arXiv
    2401.10695 and its public code), except `dropout`."""

    trainable: bool = False
    """Train the encoder's weights too (yes/no). LangBridge advises it for LLMs trained on unlabelled text alone, and a
    frozen encoder for instruction-tuned ones. The weights are then float32 and computed on in model.dtype."""
    train_embeddings: bool = True
    """Train its token embeddings as well (yes/no). No = tokens of languages that the data does not hold stay exactly
    where they are, and mT5's largest tensor needs no gradient and no moments."""
    lr_scale: float = 0.03
    """Learning rate of the encoder's parameters, as a multiple of train.lr (LangBridge: 2e-5 beside 6e-4)."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay of the encoder's matrices, in place of train.weight_decay."""
    dropout: bool = False
    """The encoder's own dropout while it is trained (yes/no; LangBridge: yes). Without it the losses depend on neither
    ranks nor micro-batches; layers are never dropped."""
    activation_checkpointing: bool = False
    """Recompute the encoder's layers in the backward pass instead of keeping their activations (yes/no)."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the LLM's matrices (arXiv 2106.09685), through `peft`, trained along with the bridge."""

    rank: int = 0
    """Rank of each update; 0 = off, the LLM stays as it is."""
    alpha: int = 16
    """Each update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability on the input of each update (0 to below 1)."""
    targets: tuple[str, ...] = ()
    """Endings of the names of the linear layers that get an update, such as [q_proj, v_proj]; empty = all of them but
    the output head."""
    lr_scale: float = 1.0
    """Learning rate of the updates, as a multiple of train.lr."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the encoder's L layers become one."""

    name: str = "transformer_softmax"
    """last_layer (LangBridge) | global_softmax | transformer_softmax (arXiv 2508.09091)."""
    path: str = "auto"
    """Code path: auto (triton on a GPU, else torch) | reference (the full layer, slow) | torch | triton."""
    dropout: float = 0.1
    """Dropout probability inside transformer_softmax (0 to below 1); the other fusions have none."""
    heads: int = 1
    """Attention heads of transformer_softmax's layer (the paper has 1); must divide the encoder's width."""
    normalize: str = "none"
    """none | rms: divide each layer's state of each token by its root mean square before both softmax fusions."""
    include_embeddings: bool = False
    """Fuse the encoder's embedding output too, as layer 0 before its L layers (yes/no)."""
    feedforward: int = 2048
    """Hidden width of the MLP in transformer_softmax's layer (2048 in the paper, whatever the encoder's width)."""
    lr_scale: float = 1.0
    """Learning rate of the fusion's parameters, as a multiple of train.lr; below 1 the layer weights move more slowly
    than the mapping."""


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """From the encoder's width D to the LLM's width H."""

    kind: str = "linear"
    """linear (D->H, the paper) | mlp (D->2D->H with ReLU, MindMerger) | mlp_gelu (with GELU, LangBridge's ffn)."""
    calibrate: bool = True
    """Scale the initial mapping so that soft tokens start at the RMS of the LLM's token embeddings (yes/no)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The English shards and how samples become batches."""

    shards: str = "testbed/english"
    """Folder of webdataset tars with index.json (made by tools/pack_shards.py), the URL of one (https://, s3://,
    hf://), or `testbed/english`."""
    mixture: tuple[str, ...] = ()
    """Several data sets instead of `shards`: a list of FOLDER=WEIGHT, drawn from in the ratio of the weights (each at
    least 1/20,000 of their sum)."""
    shuffle_shards: int = 16
    """Shards whose samples are shuffled together (the shards are shuffled too); reading stays among these."""
    validation_percent: int = 0
    """Percent of the samples, chosen by the hash of their keys, that are kept out of training."""
    stage_dir: str = ""
    """Folder on each node's own disk to which all shards are copied before training (path); empty = no copy."""
    cache_dir: str = ""
    """Folder on each node for shards fetched from a URL (path); empty = ~/.cache/bridge_ds."""
    cache_gib: float = 50.0
    """Fetched shards kept on each node, for each data set (GiB); the least recently used go first."""
    objective: str = "task"
    """task: predict `target` from `source` | prefix_lm: split `text` in two and predict the rest (LangBridge)."""
    augment_prompt: bool = False
    """Also show the LLM the source text with its own embeddings, after the soft prompt (MindMerger; yes/no)."""
    max_source_tokens: int = 512
    """Encoder tokens per sample, end token included; longer sources are cut and counted."""
    max_prompt_tokens: int = 512
    """LLM prompt tokens per sample; longer prompts are cut and counted."""
    max_target_tokens: int = 128
    """Target tokens per sample, end token included; longer targets are cut and counted."""
    max_characters: int = 10_000_000
    """Characters of a text; a sample with a longer one is bad (a tokenizer would take seconds). 0 = any length."""
    max_bad_samples: int = 0
    """Bad samples that a run may leave out (each time one comes up) before it stops: malformed, a field missing, a text
    empty or longer than max_characters. Damaged shards always stop it."""
    tokens_per_micro_batch: int = 0
    """Tokens of a micro-batch, padding included, instead of train.micro_batch samples; estimated from characters, so
    leave some room. 0 = off."""
    length_window: int = 1
    """Optimizer steps whose samples are dealt to these steps by length (1 = a step has exactly its slice of the order).
    More means less padding; the samples of the window stay the same."""
    length_chunk: int = 8
    """Samples of like length that stay together where length_window is above 1; train.micro_batch is best."""
    workers: int = 2
    """DataLoader worker processes per rank (0 = in the main process)."""
    prefetch: int = 4
    """Steps that each worker prepares ahead."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    steps: int = 1000
    """Optimizer steps in the whole run."""
    global_batch: int = 128
    """Samples per optimizer step over all ranks; micro_batch x ranks must divide it."""
    micro_batch: int = 8
    """Samples per rank per forward pass; 0 = the rank's whole share of the global batch at once."""
    encode_once: bool = True
    """Let a frozen encoder read the micro-batches of a step together, as many as encode_once_gib allows (yes/no): under
    ZeRO-3 its layers are then gathered once for all of these, with the same losses. Under ZeRO-2 it changes nothing."""
    encode_once_gib: float = 4.0
    """Encoder states of a rank that may be there together (GiB; 0 = those of one micro-batch). A micro-batch counts as
    (layers + 1) x rows x data.max_source_tokens x width x 2 bytes (4 in float32), however short its texts are."""
    lr: float = 3e-5
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.8, 0.999)
    """AdamW's beta1 and beta2."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 3e-7
    """AdamW's decoupled weight decay (on matrices; vectors and scalars have none)."""
    warmup: float = 0.05
    """Share of `steps` with linear warm-up (0 to 1)."""
    schedule: str = "cosine"
    """Learning rate after warm-up: cosine (to 0) | linear (to 0) | constant."""
    tf32: bool = True
    """Multiply what is float32 beside bfloat16 models (mapping, fusion) in TF32 on GPUs that have it (yes/no)."""
    clip: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    max_bad_steps: int = 0
    """Steps in a row whose loss or gradient is not finite before the run stops; each one is skipped and shown."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: int = 500
    """Optimizer steps between checkpoints (one is always written at the end)."""
    keep: int = 2
    """Newest checkpoints kept; older ones are removed after a new one is valid. 0 keeps all."""
    keep_best: int = 1
    """Checkpoints kept besides these for the lowest loss (training loss, mean since the save before; 0 = none)."""
    max_failed_saves: int = 3
    """Saves in a row that may fail (full disk, lost folder) before the run ends; only the run's last one is retried."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What is recorded and shown."""

    uri: str = ""
    """MLflow tracking URI; empty = MLFLOW_TRACKING_URI, else sqlite:///<parent of run.output>/mlflow.db;
    `none` = metrics.jsonl only."""
    experiment: str = "bridge_ds"
    """MLflow experiment name."""
    name: str = ""
    """MLflow run name; empty = the name of the run folder."""
    every: int = 10
    """Optimizer steps between two lines on a console that is no terminal, and between two MLflow points."""


@dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """Where one benchmark's rows come from and how they are read, where that differs from the task's own."""

    source: str = ""
    """Hub id, or a local folder: LANGUAGE.jsonl (csv, tsv, parquet) for the test, train/en.jsonl to pack, or a copy of
    the hub's files; empty = the task's own hub id."""
    revision: str | None = None
    """Hub revision (commit, tag, branch; refs/convert/parquet where a repository has a loading script, which is never
    run); none = the task's own for its own id, else the default branch."""
    fields: dict[str, str] = field(default_factory=dict)
    """Field of the task -> column of the data, where the names differ, such as {premise: sentence1}."""
    prompt: str = ""
    """Prompt with the task's fields in braces, such as "Review: {text} Label:"; empty = the task's own."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The tasks scored after training, in every language they have."""

    tasks: tuple[str, ...] = ()
    """Names in bridge_ds.tasks.TASKS; empty = no evaluation at the end."""
    languages: tuple[str, ...] = ()
    """Language codes; empty = every language of each task."""
    limit: int = 0
    """Samples per task and language; 0 = all."""
    batch: int = 32
    """Samples per rank per forward pass."""
    calibrate: bool = False
    """Score each choice after a null source too (the prompt with its fields left empty), so that a label that is likely
    anyway can be told from one that the text makes likely (yes/no)."""
    max_new_tokens: int = 512
    """Most LLM tokens that are written as an answer, where a task asks for a number."""
    llm_from: str = ""
    """Another scored run: its answers of the LLM alone are taken where models, settings and samples are the same, and
    not made again (in a comparison of bridges on one LLM they are the same for every run)."""
    data: dict[str, TaskDataConfig] = field(default_factory=dict)
    """By task: other rows than the hub's, such as {xnli: {source: FOLDER, fields: {premise: sentence1}}}."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `bridge_ds/config/recipes/*.yaml` are named instances."""

    run: RunConfig = field(default_factory=RunConfig)
    """Folder, seed, resume."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder and LLM."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Training of the encoder."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Updates of the LLM."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Layers -> one."""
    mapping: MappingConfig = field(default_factory=MappingConfig)
    """D -> H."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards and batches."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Recording."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scoring."""
