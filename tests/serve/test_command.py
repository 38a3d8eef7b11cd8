"""`python -m bridge_ds.serve` as a command: its errors, and a SIGTERM while it answers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge_ds.entry import exit_status
from bridge_ds.serve.__main__ import KEY, main
from tests.launch import ROOT
from tests.serve.served import Client


def test_bad_options_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY, raising=False)

    def fails(told: str, *arguments: str) -> None:
        assert exit_status(lambda: main(["--run", str(run), *arguments])) == 2
        err = capsys.readouterr().err
        assert told in err and "Traceback" not in err

    fails("--batch: 0 is not above 0", "--batch", "0")
    fails("--port: 70000 is more than 65,535", "--port", "70000")
    fails(f"{KEY} is not set", "--host", "0.0.0.0")
    fails("no vLLM server answers", "--port", "0", "--vllm", "http://127.0.0.1:9")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        fails("cannot be listened on", "--port", str(taken.getsockname()[1]))
    fails("open files, and the limit is", "--queue", "1000000000")
    monkeypatch.setenv(KEY, "sesame\n")
    fails(f"{KEY} holds a space, a line end", "--port", "0")
    monkeypatch.setenv(KEY, "sesame")
    for host in ("no-such-host.invalid", "a..b", "192.0.2.1"):
        fails(f"{host}:0 cannot be listened on", "--port", "0", "--host", host)


@pytest.mark.slow
def test_after_a_second_sigterm_what_runs_is_finished(run: Path, offline: Callable[..., str]) -> None:
    """After one, what waits, too: test_load."""
    env = os.environ | {KEY: "sesame", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bridge_ds.serve", "--run", str(run), "--port", "0", "--name", "tiny"]
    command += ["--batch", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        told = ""
        while "serving" not in told:
            told = process.stderr.readline()
            assert told, "it has ended"
        found = re.search(r"serving tiny on http://127\.0\.0\.1:(\d+)/v1", told)
        assert found
        client, key = Client(int(found[1])), {"Authorization": "Bearer sesame"}
        body = {"model": "tiny", "prompt": "a dog", "max_tokens": 60, "stream": True}
        connection, answer = client.open("POST", "/v1/completions", body, key)
        first = answer.readline()
        with ThreadPoolExecutor(4) as pool:
            waiting = [
                pool.submit(client.ask, "POST", "/v1/completions", body | {"stream": False}, key) for _ in "four"
            ]
            while "bridge_waiting_rows 4.0" not in client.ask("GET", "/metrics", None, key)[2]:
                assert not any(each.done() for each in waiting[1:]), "a row that runs is faster than this test"
            process.send_signal(signal.SIGTERM)
            while client.ask("GET", "/health")[0] == 200:  # two signals at once are one
                pass
            process.send_signal(signal.SIGTERM)
            rest = answer.read()
            connection.close()
            assert 503 in [each.result(60)[0] for each in waiting]
        assert rest.endswith(b"data: [DONE]\n\n"), "what runs is finished"
        while process.poll() is None:  # nothing is left to finish
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert process.returncode == 0
        lines = [line for line in (first + rest).decode().split("\n\n") if line and "[DONE]" not in line]
        text = "".join(json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines)
        assert text == offline("a dog", max_new_tokens=60)
    finally:
        process.kill()
        process.wait()
