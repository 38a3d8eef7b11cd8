"""The model class that lm-evaluation-harness talks to; `--model_args` are the arguments of its constructor."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.api.model import LM
from tqdm import tqdm

from bridge_ds.config.build import one_of
from bridge_ds.config.text import expand
from bridge_ds.data.text.prompting import parse
from bridge_ds.data.text.truncate import LOST, side_of
from bridge_ds.engine.distributed import device_of, init_distributed
from bridge_ds.errors import ConfigError, brief
from bridge_ds.harness.answerer import Answerer
from bridge_ds.harness.ranks import Ranks
from bridge_ds.harness.requests import Asked, ScoringPlan, of_task, plan, plan_texts, windows
from bridge_ds.inference.bases import one_process
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.load import load_trained, open_run
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.world import World

__all__ = ["BridgeLM"]

AUTO_BATCH = 64
"""Contexts of a batch that `batch_size=auto` begins with; halved whenever the device's memory does not suffice."""
GENERATED = 256
"""Tokens to write where a task does not say (lm_eval's own default)."""


class BridgeLM(Ranks, LM):
    """A finished run as a model of lm_eval: contexts go through the encoder and the bridge, the LLM scores and writes.

    Under torchrun, `accelerate launch` or srun each rank holds both models whole and answers its share of the samples;
    with `device_map` one process splits them over several devices.
    """

    def __init__(
        self,
        run: str = "",
        *,
        checkpoint: str = "",
        bridge: bool = True,
        prompt: bool | None = None,
        end_token: bool | None = None,
        max_source_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        truncation_side: Literal["right", "left"] | None = None,
        window: int | None = None,
        language: str = "",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        device_map: Any = None,
        max_memory: Any = None,
        **unknown: Any,
    ) -> None:
        """Args:
        run: run folder; its newest valid checkpoint is loaded.
        checkpoint: `best`, or a folder in its checkpoints/, instead of the newest.
        bridge: False = the LLM alone, which reads the context itself: the baseline on the same samples.
        prompt: the LLM reads the context itself beside the soft prompt (default: the run's data.augment_prompt).
        end_token: an answer is scored with the end token after it (default: as data.target_end for objective `task`,
            which trains answers closed by it; no for `prefix_lm`, whose texts go on).
        max_source_tokens: encoder tokens of a context; longer ones are truncated (default: the run's).
        max_prompt_tokens: the same for what the LLM reads (default: the run's).
        truncation_side: where: right = the end | left = the beginning, so that a question at the end stays (default:
            the run's).
        window: LLM tokens that are scored after one context in loglikelihood_rolling (default: the longest target that
            the run trained on).
        language: of all contexts, if the encoder needs it (NLLB, M2M-100, mBART): its tag or an ISO 639 code
            (default: the end of a task's name, such as xnli_sw or belebele_sin_Sinh; else data.source_language).
        batch_size: contexts of a batch, or `auto`.
        max_batch_size: where `auto` begins.
        device: torch device (default: this rank's GPU; the CPU where there is none).
        device_map: as `--device-map` of bridge-ds evaluate: `auto`, or the name of a JSON file; `device` is
            then of no account.
        max_memory: with `auto` and the like; `;` between the sizes: `0=20GiB;cpu=60GiB`.

        Raises:
            ConfigError: no run folder, an unknown argument, a base model that cannot be loaded.
            CheckpointError: no valid checkpoint, or other base models than it was trained with.
        """
        super().__init__()
        self._refuse_unknown(run, unknown)
        world = self._join(device_map)
        device_map = _where(device, world) if device_map is None else device_map
        self.auto = str(batch_size).startswith("auto")
        self.batch_size = (max_batch_size or AUTO_BATCH) if self.auto else int(batch_size)
        self.run = Path(expand("run", run))  # no shell expands what stands behind a comma
        self.config, found = open_run(self.run, which=checkpoint, note=self._say)
        data = self.config.data
        side = truncation_side or side_of(data)
        one_of("truncation_side in --model_args", side, tuple(LOST))
        self.window = window or max(1, data.max_target_tokens - 1)
        model, self.tokenizers, self.checkpoint = load_trained(
            self.run, self.config, device_map, max_memory, found, self._say
        )
        read = dataclasses.replace(
            data, objective="task", truncation_side=side,
            max_source_tokens=max_source_tokens or data.max_source_tokens,
            max_prompt_tokens=max_prompt_tokens or data.max_prompt_tokens,
            augment_prompt=data.augment_prompt if prompt is None else prompt,
        )  # fmt: skip
        prompts = PromptBuilder.of(read, self.tokenizers, model.llm.positions, model.soft_prompt, bridge=bridge)
        self._set_language(language)
        with model.llm.without_adapters(not bridge):  # refused where the run trained the LLM itself
            self._device = model.device
        end_token = data.objective != "prefix_lm" and data.target_end if end_token is None else end_token
        self.answerer = Answerer(Generator(model, self.tokenizers, bridge=bridge), prompts, end_token)

    def _join(self, device_map: Any) -> World:
        world = World.detect()
        one_process(device_map, world)
        if world.size > 1:
            init_distributed(world)
        self._rank, self._world_size = world.rank, world.size
        return world

    @classmethod
    def _refuse_unknown(cls, run: str, unknown: dict[str, Any]) -> None:
        if unknown or not run:
            names = ", ".join(list(inspect.signature(cls.__init__).parameters)[1:-1])
            raise ConfigError(
                f"--model_args has {f'the unknown {sorted(unknown)[0]!r}' if unknown else 'no run'}; expected run=DIR, "
                f"and of these what you need: {names}."
            )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding writes it) of each continuation after its context."""
        asked = [
            Asked(
                context,
                continuation,
                None if request.doc_id is None else (request.task_name, request.doc_id),
                self._language_of(request),
            )
            for request in requests
            for context, continuation in [request.args]
        ]
        return self._answer("loglikelihood", requests, plan(asked, self._windows), disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability (nats) of each whole text, see :mod:`bridge_ds.harness.requests`."""
        languages = [self._language_of(request) for request in requests]
        made = plan_texts([request.args[0] for request in requests], self._windows, languages)
        answers = self._answer("loglikelihood_rolling", requests, made, disable_tqdm)
        return [score for score, _ in answers]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to one of its `until` strings, the end token or `max_gen_toks`."""
        from lm_eval.models.utils import normalize_gen_kwargs

        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
        texts = [""] * len(requests)
        with self._bar(len(requests), "generate_until", disable_tqdm) as bar:
            for numbers in groups.values():
                options = dict(normalize_gen_kwargs(requests[numbers[0]].args[1], GENERATED))
                stops, tokens = options.pop("until"), options.pop("max_gen_toks")
                contexts = [
                    dataclasses.replace(parse(requests[n].args[0]), language=self._language_of(requests[n]))
                    for n in numbers
                ]

                def write(rows: list[int], contexts: Any = contexts, of: Any = (tokens, stops, options)) -> list[str]:
                    return self.answerer.write([contexts[row] for row in rows], *of)

                for row, text in self._in_batches([len(c.source or "") for c in contexts], write):
                    texts[numbers[row]] = text
                    self.cache_hook.add_partial("generate_until", requests[numbers[row]].args, text)
                    bar.update(1)
        self._tell_truncated()
        return texts

    def _answer(self, kind: str, requests: list[Any], made: ScoringPlan, quiet: bool) -> list[tuple[float, bool]]:
        """Score a plan; each request's parts are added, and its answer goes to lm_eval's cache once all are there."""
        found: dict[int, list[tuple[float, bool]]] = {}
        waiting: dict[int, list[int]] = defaultdict(list)
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)  # of texts without a word
        for number, parts in enumerate(made.parts):
            for context in {context for context, _ in parts}:
                waiting[context].append(number)
        missing = [len({context for context, _ in parts}) for parts in made.parts]

        def score(rows: list[int]) -> list[list[tuple[float, bool]]]:
            return self.answerer.score([made.contexts[r] for r in rows], [made.continuations[r] for r in rows])

        with self._bar(len(made.contexts), kind, quiet) as bar:
            for row, scores in self._in_batches([len(context.source or "") for context in made.contexts], score):
                found[row] = scores
                bar.update(1)
                for number in waiting[row]:
                    missing[number] -= 1
                    if not missing[number]:
                        scored = [found[context][at] for context, at in made.parts[number]]
                        answers[number] = sum(value for value, _ in scored), all(greedy for _, greedy in scored)
                        answer = answers[number] if kind == "loglikelihood" else answers[number][0]
                        self.cache_hook.add_partial(kind, requests[number].args, answer)
        self._tell_truncated()
        return answers

    def _in_batches(
        self, lengths: Sequence[int], work: Callable[[list[int]], Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        """(number, result), longest first: running out of memory shows at once, and a batch has similar lengths."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        at = 0
        while at < len(order):
            part = order[at : at + self.batch_size]
            try:
                results = work(part)
            except torch.OutOfMemoryError:
                if not self.auto or len(part) == 1:
                    raise
                self.batch_size = len(part) // 2
                torch.cuda.empty_cache()
                self._say(f"out of device memory; batch_size is now {self.batch_size}")
                continue
            yield from zip(part, results, strict=True)
            at += len(part)

    def _set_language(self, language: str) -> None:
        self._language = language
        self._languages: dict[str, str] = {}
        if self.tokenizers.languages:
            self.tokenizers.languages.check("language in --model_args", language)

    def _language_of(self, request: Any) -> str:
        """Of a request's context; empty if the encoder does not need it."""
        known = self.tokenizers.languages
        if known is None or self._language:
            return self._language
        name = str(getattr(request, "task_name", None) or "")
        if name not in self._languages:
            found = of_task(name, known) or self.config.data.source_language
            self._languages[name] = found
            if found:
                self._say(f"task {name}: its contexts are given to the encoder as {known.tag(found)}")
        return self._languages[name]

    def _windows(self, text: str) -> list[tuple[str, str]]:
        return windows(text, self.answerer.count_tokens, self.window)

    def _bar(self, total: int, name: str, quiet: bool) -> Any:
        return tqdm(total=total, desc=f"bridge_ds {name}", disable=quiet or self.rank != 0, dynamic_ncols=True)

    def _tell_truncated(self) -> None:
        for line in self.answerer.prompts.truncation_lines():
            self._say(f"{line} Raise max_source_tokens or max_prompt_tokens if both models can read more.")
        self.answerer.prompts.truncated.clear()

    def _say(self, text: str) -> None:
        if self.rank == 0:
            tqdm.write(f"bridge_ds: {text}")

    @property
    def tokenizer_name(self) -> str:
        """For lm_eval's caches of requests: the models and the run's system prompt decide what a request becomes."""
        system = hashlib.sha256(self.config.data.system_prompt.encode()).hexdigest()[:12]
        return f"{self.config.model.encoder}__{self.config.model.llm}__{system}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The LLM's chat template; its name where it has several.

        Raises:
            ConfigError: a template is asked for and the LLM has none, or none of that name.
        """
        if not chat_template:
            return None
        named = chat_template if isinstance(chat_template, str) else None
        try:
            return self.tokenizers.llm.get_chat_template(named)
        except ValueError as error:
            raise ConfigError(
                f"--apply_chat_template needs a chat template of {self.config.model.llm} "
                f"({brief(error, 120)}); leave the option out, or choose an instruction-tuned LLM."
            ) from None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The LLM's chat template around ONE user turn, see :meth:`PromptBuilder.rendered`."""
        return self.answerer.prompts.rendered(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What goes into lm_eval's results beside the scores."""
        prompts, limits = self.answerer.prompts, self.answerer.prompts.limits
        return {
            "run": str(self.run),
            "checkpoint": self.checkpoint.folder.name,
            "fusion": self.config.fusion.name if prompts.bridge else "",
            "encoder": self.config.model.encoder,
            "llm": self.config.model.llm,
            "bridge": prompts.bridge,
            "prompt": prompts.prompt,
            "end_token": self.answerer.end_token,
            "max_source_tokens": limits.source,
            "max_prompt_tokens": limits.prompt,
            "truncation_side": limits.side,
            "frame": dataclasses.asdict(self.tokenizers.frame),
            "window": self.window,
        }


def _where(device: str | None, world: World) -> torch.device:
    """The device that is asked for, where it can be; lm_eval's own default is cuda:0, on every machine and rank."""
    usable = device and world.size == 1 and (torch.cuda.is_available() or not device.startswith("cuda"))
    return torch.device(device) if device and usable else device_of(world)
