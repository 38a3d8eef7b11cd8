"""Fifty clients at the command, on the testbed with a bridge that was really trained, until a SIGTERM ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.tasks import find_tasks
from tests.launch import ROOT
from tests.serve.served import Client

SECONDS = 60 if os.environ.get("BRIDGE_DS_LONG") == "1" else 8
CLIENTS = 50


def sources() -> list[str]:
    """Of all three tasks, in all six languages."""
    tasks = find_tasks(["testbed_inference", "testbed_news", "testbed_reviews"])
    return [task.examples(code, 2)[1].source for task in tasks for code in task.languages]


def asked_for(prompts: list[str]) -> list[dict[str, Any]]:
    """Requests of several kinds: short and long answers, a stop, several texts, a seed."""
    asks: list[dict[str, Any]] = [{"prompt": text} for text in prompts]
    asks += [{"prompt": text, "max_tokens": 2} for text in prompts[::2]]
    asks += [{"prompt": prompts[k : k + 3], "max_tokens": 5} for k in range(0, len(prompts), 5)]
    asks += [{"prompt": text, "temperature": 1.5, "seed": 7} for text in prompts[::6]]
    return asks


def offline(answerer: Pipeline, ask: dict[str, Any]) -> list[str]:
    """What the command bridge_ds.generate answers to each text alone."""
    style = {key: ask[key] for key in ("temperature", "seed") if key in ask}
    alone = Pipeline(answerer.model, answerer.processor, GenerateOptions(max_new_tokens=ask.get("max_tokens"), **style))
    texts = ask["prompt"] if isinstance(ask["prompt"], list) else [ask["prompt"]]
    return [alone.write([alone.row(text)])[0] for text in texts]


class Crowd:
    """Clients that ask until the server refuses them, and count what they get."""

    def __init__(self, client: Client, asks: list[dict[str, Any]], expected: list[list[str]]) -> None:
        self.client, self.asks, self.expected = client, asks, expected
        self.counts: Counter[str] = Counter()
        self.ending = threading.Event()
        self._lock = threading.Lock()

    def visit(self, number: int) -> None:
        turn = number
        while self.one(turn):
            turn += 1

    def one(self, turn: int) -> bool:
        """Whether to go on."""
        ended = self.ending.is_set()
        if turn % 9 == 8:
            bad = ({"max_tokens": "many"}, 400) if turn % 2 else ({"model": "another"}, 404)
            return self._asked(turn, {"prompt": "a", **bad[0]}, bad[1], None, ended)
        at = turn % len(self.asks)
        return self._asked(turn, self.asks[at], 200, self.expected[at], ended)

    def _asked(self, turn: int, ask: dict[str, Any], wanted: int, answers: list[str] | None, ended: bool) -> bool:
        try:
            status, headers, body = self.client.complete(**ask)
        except ConnectionError:
            assert self.ending.is_set(), "only a server that ends may close a connection"
            self._count("refused")
            return False
        # What was asked before the signal and is answered after it was finished while draining.
        drained = not ended and self.ending.is_set()
        if status == 200:
            assert [choice["text"] for choice in body["choices"]] == answers, ask
            self._count("drained" if drained else "200")
        elif status == 429:
            assert wanted == 200 and int(headers["retry-after"]) >= 1
            self._count("429")
            time.sleep(0.05)
        elif status == 503:
            assert self.ending.is_set() and body["error"]["code"] == "draining"
            self._count("refused")
            return False
        else:
            assert status == wanted, body
            self._count(str(status))
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


@pytest.mark.slow
def test_fifty_clients_until_a_sigterm(trained_run: Path) -> None:
    """Each answer is the offline one or a 429, bad input is a 4xx, memory stays, and what was taken in is answered.
    BRIDGE_DS_LONG=1 makes it a minute."""
    answerer = Pipeline.load(str(trained_run), GenerateOptions())
    asks = asked_for(sources())
    expected = [offline(answerer, ask) for ask in asks]
    assert len({tuple(of) for of in expected}) > 8, "a server that mixed up answers would be noticed"
    command = [
        sys.executable, "-m", "bridge_ds.serve", "--run", str(trained_run), "--port", "0", "--name", "tiny",
        "--queue", "20", "--batch", "16",
    ]  # fmt: skip
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        found = None
        while not found:
            told = process.stderr.readline()
            assert told, "it has ended"
            found = re.search(r"serving tiny on http://127\.0\.0\.1:(\d+)/v1", told)
        crowd = Crowd(Client(int(found[1])), asks, expected)
        for ask in asks[:: len(asks) // 6]:
            assert crowd.client.complete(**ask)[0] == 200
        before = resident(process.pid)
        with ThreadPoolExecutor(CLIENTS) as pool:
            visits = [pool.submit(crowd.visit, number) for number in range(CLIENTS)]
            time.sleep(SECONDS)
            after = resident(process.pid)
            crowd.ending.set()
            process.send_signal(signal.SIGTERM)
            for visit in visits:
                visit.result(60)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    counts = crowd.counts
    print(f"{SECONDS} s: {dict(counts)}; resident {before / 1e6:.0f} MB, then {after / 1e6:.0f} MB")
    assert set(counts) == {"200", "429", "400", "404", "drained", "refused"}, counts
    assert counts["refused"] == CLIENTS
    assert after - before < 100e6


def resident(pid: int) -> float:
    """Bytes of memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
