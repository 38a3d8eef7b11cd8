"""Serve a trained bridge over HTTP, as OpenAI's API: `bridge-ds serve --run DIR`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bridge_ds.cli import Parser, positive
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError
from bridge_ds.generate.__main__ import add_loading, loading

if TYPE_CHECKING:
    from bridge_ds.serve.app import Service

KEY = "BRIDGE_DS_API_KEY"
"""Environment variable with the key that requests must bring."""
_HELP = """\
Serve a trained bridge over HTTP with the paths of OpenAI's API: /v1/completions, /v1/chat/completions (if the LLM's
tokenizer has a chat template), /v1/models; also /health and /metrics (Prometheus). Waiting requests are answered in
batches; each answer is the one that bridge-ds generate gives. Greedy unless a request sets temperature.

examples:
  bridge-ds serve --run runs/mine                          (on http://127.0.0.1:8000)
  bridge-ds serve --run runs/mine --device-map auto        (over all GPUs of this machine)
  BRIDGE_DS_API_KEY=... bridge-ds serve --run runs/mine --host 0.0.0.0 --port 9000
  bridge-ds serve --run runs/mine --choose                 (the LLM alone where it was better; see choice.json)
  vllm serve LLM --enable-prompt-embeds --port 8001                  (elsewhere; the LLM that the bridge names)
  bridge-ds serve --run runs/mine --vllm http://127.0.0.1:8001

  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
      -d '{"model": "mine", "prompt": "a text in any language", "max_tokens": 64}'

When the queue is full requests get 429 with Retry-After. After a SIGTERM the requests that wait and run are finished,
new ones get 503; after a second one only those that run are finished, after a third one none. An address other than
loopback needs an API key, in the environment variable BRIDGE_DS_API_KEY."""


def main(argv: list[str] | None = None) -> int:
    """Parse, bind, load, serve."""
    options = _parse(argv)
    key = os.environ.get(KEY, "")
    _check(options, key)
    from bridge_ds.serve.server import allow_connections, bind, serve

    # Before the models: a port in use should not be found after minutes of loading.
    connections = 2 * (options.queue + options.at_once) + 64
    allow_connections(connections)
    listening = bind(options.host, options.port)
    service = _load(options, key)
    serve(service, listening, connections)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="bridge-ds serve", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder, checkpoint, exported folder, or hub id of a bridge")
    parser.add_argument("--name", help="the model's name in requests (default: the last part of --run)")
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    port = positive(int, zero=True, most=65535)
    where.add_argument("--port", type=port, default=8000, help="port; 0 = any that is free (default: 8000)")
    load = parser.add_argument_group("how much")
    for name, default, most, what in (
        ("--batch", 16, 10_000, "most texts of a batch"),
        ("--queue", 128, 100_000, "most texts that wait; more get 429"),
        ("--max-tokens", 1024, 1_000_000, "highest max_tokens of a request"),
        ("--max-body", 1 << 20, 1 << 30, "bytes of a request"),
    ):
        load.add_argument(name, type=positive(int, most=most), default=default, help=f"{what} (default: {default})")
    parser.add_argument(
        "--choose", action="store_true",
        help="let the LLM alone answer requests whose field `language` names a language in which it was better beyond "
        "doubt (choice.json, which bridge-ds evaluate --choose writes); the header X-Bridge-Answered-By says who did",
    )  # fmt: skip
    other = parser.add_argument_group("the LLM elsewhere")
    other.add_argument("--vllm", metavar="URL", help="a vLLM server with --enable-prompt-embeds that runs the LLM")
    at_once = positive(int, most=10_000)
    other.add_argument("--at-once", type=at_once, default=64, help="requests to it at a time (default: 64)")
    add_loading(parser)
    return parser.parse_args(argv)


def _check(options: argparse.Namespace, key: str) -> None:
    for package in ("starlette", "uvicorn", "prometheus_client", "httpx", "pydantic"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"serving needs {package}, which is not installed; pip install 'bridge_ds[serve]'.")
    from bridge_ds.serve.access import check_key, is_loopback

    check_key(KEY, key)
    if not key and not is_loopback(options.host):
        raise ConfigError(
            f"--host is {options.host}, which others can reach, and {KEY} is not set; expected a key: set that "
            "environment variable, or leave --host out."
        )


def _load(options: argparse.Namespace, key: str) -> Service:
    from bridge_ds.data.text.chat import has_template
    from bridge_ds.engine.setup import quiet_transformers
    from bridge_ds.hub.model import BridgeForCausalLM
    from bridge_ds.inference.choice import CHOICE, expected
    from bridge_ds.serve.app import Service
    from bridge_ds.serve.backends import LocalBackend, ServedModel
    from bridge_ds.serve.batching import Backend, RequestQueue, Scheduler
    from bridge_ds.serve.protocol import ServerLimits
    from bridge_ds.serve.vllm import VllmBackend, VllmClient

    quiet_transformers()
    loaded = BridgeForCausalLM.from_pretrained(options.run, **loading(options))
    choice = expected(loaded.choice, options.run) if options.choose else None
    model = ServedModel(loaded, choice)
    if choice and not choice.of_chats and has_template(model.tokenizers.llm):
        print(f"note: {CHOICE} was measured without the chat template: the bridge answers every chat.", file=sys.stderr)
    model.default_tokens = min(model.default_tokens, options.max_tokens)
    backend: Backend = LocalBackend(model)
    concurrency = 1
    if options.vllm:
        concurrency = options.at_once
        backend = VllmBackend(model, VllmClient(options.vllm), concurrency)
    queue = RequestQueue(options.queue, options.batch, model.positions, concurrency)
    limits = ServerLimits(options.max_tokens, texts=min(options.batch, options.queue), body=options.max_body)
    name = options.name or Path(options.run).name or options.run
    return Service(name, model, Scheduler(queue, backend), limits, key)


if __name__ == "__main__":
    run_command(main)
