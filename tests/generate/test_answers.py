"""`python -m bridge_ds.generate`: files that a kill cannot harm, single texts, a conversation on a terminal."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.entry import exit_status
from bridge_ds.generate.__main__ import main
from bridge_ds.generate.files import batches
from tests import tiny
from tests.hub.conftest import CHAT
from tests.made import make_run

TEXTS = ["the cat sat on the mat", "a dog", "", "猫 one river", "rain fell and it was wet", "two banks"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    encoder, llm = tiny.make_encoder("mt5", root / "mt5"), tiny.make_llm("llama", root / "llama")
    (llm / "chat_template.jinja").write_text(CHAT)
    return make_run(root / "run", [f"model.encoder={encoder}", f"model.llm={llm}", "data.max_source_tokens=60"])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"id": number, "source": text} for number, text in enumerate(TEXTS * 3)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    return path


def in_file(run: Path, questions: Path, output: Path, *more: str) -> int:
    return main(["--run", str(run), "--input", str(questions), "--output", str(output), "--batch", "4", *more])


@given(lengths=st.lists(st.integers(0, 50), max_size=60), size=st.integers(1, 9))
def test_batches_hold_every_text_once_in_order_of_length(lengths: list[int], size: int) -> None:
    plan = batches(lengths, size)
    flat = [place for batch in plan for place in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[place] for place in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in plan[:-1])


@given(
    lengths=st.lists(st.integers(1, 60), max_size=40), size=st.integers(1, 9), most=st.integers(1, 70),
    positions=st.sampled_from([0, 64, 120]),
)  # fmt: skip
def test_each_text_of_a_batch_can_write_as_much_as_alone(
    lengths: list[int], size: int, most: int, positions: int
) -> None:
    alone = [min(most, positions - length) if positions else most for length in lengths]
    plan = batches(lengths, size, (), list(zip(lengths, alone, strict=True)), positions)
    assert sorted(place for batch in plan for place in batch) == list(range(len(lengths)))
    for batch in plan:
        padded = max(lengths[place] for place in batch)
        assert len(batch) <= size
        assert all(not positions or alone[place] <= positions - padded for place in batch)
    if len(set(lengths)) <= 1 or not positions:
        assert all(len(batch) == size for batch in plan[:-1]), "texts of one length share all the same"


def test_texts_of_a_file_that_leave_few_positions_write_as_much_as_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [TEXTS[0], "a dog", "the cat sat on the mat and looked at the dog", TEXTS[0]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"source": text}) + "\n" for text in texts))
    in_file(run, tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--max-new-tokens", "125")
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        row = json.loads(line)
        capsys.readouterr()
        assert main(["--run", str(run), "--prompt", row["source"], "--max-new-tokens", "125"]) == 0
        assert capsys.readouterr().out == row["answer"] + "\n"


def test_a_file_is_answered_as_its_texts_are_alone(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_file(run, questions, tmp_path / "answers.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(row["id"], row["source"]) for row in rows] == list(enumerate(TEXTS * 3))
    assert not list(tmp_path.glob(".*.part"))
    for text, row in zip(TEXTS, rows, strict=False):
        capsys.readouterr()
        assert main(["--run", str(run), "--prompt", text]) == 0
        assert capsys.readouterr().out == row["answer"] + "\n"
    assert exit_status(lambda: in_file(run, questions, tmp_path / "answers.jsonl")) == 2
    assert "is there already" in capsys.readouterr().err


def test_killed_it_goes_on_and_the_bytes_are_the_same(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--temperature", "2.5", "--top-p", "0.9", "--batch", "1", "--max-new-tokens", "25")
    in_file(run, questions, tmp_path / "whole.jsonl", *more)
    output, part = tmp_path / "killed.jsonl", tmp_path / ".killed.jsonl.part"
    process = multiprocessing.get_context("fork").Process(target=in_file, args=(run, questions, output, *more))
    process.start()
    deadline = time.monotonic() + 60
    while not part.exists() or part.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not output.exists() and 3 <= part.read_bytes().count(b"\n") - 1 < len(TEXTS) * 3
    with part.open("a") as file:
        file.write('["torn off in the mid')
    capsys.readouterr()
    in_file(run, questions, output, *more)
    assert "resuming after" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not part.exists()
    # Unfinished work of other settings is not mixed in.
    part.write_text("0" * 64 + '\n["something else"]\n')
    output.unlink()
    in_file(run, questions, output, *more)
    assert "is started over" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_bad_input_is_one_sentence(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(told: str, *arguments: str) -> None:
        assert exit_status(lambda: main(["--run", str(run), *arguments])) == 2
        err = capsys.readouterr().err
        assert told in err and "Traceback" not in err

    fails("both --prompt and --input", "--prompt", "a", "--input", "b", "--output", "c")
    fails("belong together", "--input", str(questions))
    fails("argument --batch: 0 is not above 0", "--batch", "0")
    fails("expected a --temperature above 0", "--top-p", "0.5")
    fails("--stop is empty", "--stop", "")
    out = ("--output", str(tmp_path / "out.jsonl"))
    fails("has no 'text'", "--input", str(questions), *out, "--field", "text")
    fails("line 1: '0' is no text", "--input", str(questions), *out, "--field", "id")
    fails("cannot be read", "--input", str(tmp_path / "none"), *out)
    (tmp_path / "bad.jsonl").write_text('{"source": "a"}\n{"source": \n')
    fails("line 2 is not JSON", "--input", str(tmp_path / "bad.jsonl"), *out)
    (tmp_path / "bad.jsonl").write_text('{"source": "a", "answer": "b"}\n')
    fails("has an 'answer' already", "--input", str(tmp_path / "bad.jsonl"), *out)
    fails("cannot be written", "--input", str(questions), "--output", str(questions / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()
    assert in_file(run, questions, tmp_path / "new" / "folder" / "out.jsonl", "--max-new-tokens", "1") == 0
    assert len((tmp_path / "new" / "folder" / "out.jsonl").read_text().splitlines()) == len(TEXTS) * 3
    assert exit_status(lambda: main(["--run", str(tmp_path / "nowhere"), "--prompt", "a"])) == 2
    assert "give a run folder" in capsys.readouterr().err


def test_a_bengali_line_on_stdin_has_one_answer_whatever_the_locale_and_the_editor(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "বিড়ালটি মাদুরে বসেছিল।"
    main(["--run", str(run), "--prompt", line])
    answer = capsys.readouterr().out

    def piped(raw: bytes) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        main(["--run", str(run)])
        return capsys.readouterr().out

    assert piped(line.encode()) == piped(b"\xef\xbb\xbf" + f"{line}\r\n".encode()) == answer
    for raw, told in ((b"caf\xe9\n", "is not UTF-8"), (line.encode("utf-16"), "UTF-8"), (b"a cat\0\n", "zero byte")):
        assert exit_status(lambda raw=raw: piped(raw)) == 2
        assert told in capsys.readouterr().err
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "bridge_ds.generate", "--run", str(run)]
    done = subprocess.run(command, input=line.encode(), env=env, capture_output=True, cwd=Path(__file__).parents[2])
    assert done.stdout.decode() == answer, done.stderr[-2000:]


def test_stops_beams_and_chats(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(*more: str) -> str:
        capsys.readouterr()
        main(["--run", str(run), "--prompt", TEXTS[0], "--max-new-tokens", "14", *more])
        return capsys.readouterr().out.removesuffix("\n")

    whole = answer()
    assert len(whole) > 6
    stop = whole[4:6]
    assert answer("--stop", "never", "--stop", stop) == whole.split(stop)[0]
    assert len(answer("--beams", "3")) > 6 and stop not in answer("--beams", "3", "--stop", stop)
    assert answer("--temperature", "3") == answer("--temperature", "3") != answer("--temperature", "3", "--seed", "1")
    chat, system = answer("--chat"), answer("--system", "be brief")
    assert len({whole, chat, system}) == 3
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXTS[0]}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"source": messages}) + "\n" + json.dumps({"source": TEXTS[0]}))
    in_file(run, tmp_path / "chats.jsonl", tmp_path / "out.jsonl", "--chat", "--max-new-tokens", "14")
    rows = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [system, chat]


def test_one_text_that_is_truncated_is_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(run), "--prompt", TEXTS[0] * 9, "--max-new-tokens", "2"]) == 0
    assert "1 of 1 texts lost their end: at most 60 source tokens fit" in capsys.readouterr().err


def test_lines_of_a_pipe_are_answered_one_by_one(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{TEXTS[0]}\n\n{TEXTS[1]}\n".encode())))
    assert main(["--run", str(run)]) == 0
    together = capsys.readouterr().out
    for text in TEXTS[:2]:
        main(["--run", str(run), "--prompt", text])
    assert together == capsys.readouterr().out


def test_a_conversation_on_a_terminal(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--run", str(run), "--prompt", TEXTS[0]])
    answer = capfd.readouterr().out.strip()
    with capfd.disabled():
        child, terminal = pty.fork()
        if child == 0:
            status = 1
            try:
                sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in enumerate("rww"))
                status = main(["--run", str(run)])
            finally:
                os._exit(status)
        seen = _until(terminal, "> ")
        os.write(terminal, f"{TEXTS[0]}\n".encode())
        seen = _until(terminal, "\n> ")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(child, 0)
        os.close(terminal)
    assert answer in seen.replace("\r\n", "\n")
    assert os.waitstatus_to_exitcode(status) == 0


def _until(terminal: int, end: str) -> str:
    seen, deadline = b"", time.monotonic() + 60
    while not seen.decode(errors="replace").replace("\r\n", "\n").endswith(end):
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096)
    return seen.decode(errors="replace")


def test_halves_of_characters_and_what_else_no_answer_has(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def fails(told: str, line: str = "", *more: str) -> None:
        path.write_text('{"source": "a"}\n' + line)
        given = ("--input", str(path), "--output", str(out)) if line else ()
        assert exit_status(lambda: main(["--run", str(run), *given, "--max-new-tokens", "2", *more])) == 2
        err = capsys.readouterr().err
        assert told in err and "Traceback" not in err and not out.exists(), err

    half = r"in.jsonl line 2 cannot be used: a text in it holds \ud83d, half of a surrogate pair"
    fails(half, '{"source":"fine","note":"\\ud83d"}')
    fails(half, '{"source":"\\ud83d"}')
    fails(half, '{"source":[{"role":"user","content":[{"type":"text","text":"\\ud83d"}]}]}', "--chat")
    fails("line 2 cannot be used: its brackets are nested", '{"source":"a","x":' + "[" * 10**5 + "]" * 10**5 + "}")
    fails("line 2 cannot be used: it holds a number of thousands", '{"source":"a","x":' + "9" * 5000 + "}")
    fails("line 2 cannot be used: it holds NaN; expected a finite number", '{"source":"a","x":[NaN]}')
    fails("line 2 cannot be used: it holds -1e999; expected", '{"source":"a","x":-1e999}')
    fails("a message is", '{"source":[{"role":"user","content":[{"type":"text","text":null}]}]}', "--chat")
    fails(
        "has the role 'asistant'",
        '{"source":[{"role":"user","content":"a"},{"role":"asistant","content":"b"}]}',
        "--chat",
    )
    for option in ("--prompt", "--system", "--language", "--stop", "--field"):
        fails("an argument is '\\udce9', with a byte or a character that is not UTF-8", "", option, "\udce9")
    for value in ("nan", "inf", "1e-38"):
        fails("argument --temperature: ", "", "--prompt", "a", "--temperature", value)
    fails("argument --batch: 1000000000000 is more than 1,000,000", "", "--prompt", "a", "--batch", "1000000000000")
    # Lines before a broken one are answered, also where all come at once.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n\xff\n"), encoding="utf-8"))
    assert exit_status(lambda: main(["--run", str(run)])) == 2
    told = capsys.readouterr()
    assert told.out.strip() and "line 2 of the standard input is not UTF-8" in told.err


def test_a_damaged_part_file_gives_no_wrong_answer(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / ".again.jsonl.part"
    in_file(run, questions, whole)
    output = tmp_path / "again.jsonl"
    process = multiprocessing.get_context("fork").Process(target=in_file, args=(run, questions, output))
    process.start()
    while not part.exists() or part.read_bytes().count(b"\n") < 2:
        assert process.is_alive()
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    header, first = part.read_text().split("\n")[:2]
    for wrong in ('["one"]', "[1, 2, 3, 4]", '{"a": 1}', "[" * 99_999, '"abcd"'):
        part.write_text(f"{header}\n{first}\n{wrong}\n")
        in_file(run, questions, output)
        assert "resuming after 4 of" in capsys.readouterr().err
        assert output.read_bytes() == whole.read_bytes()
        output.unlink()


def test_the_llms_own_answers_need_no_deepspeed_config(capsys: pytest.CaptureFixture[str]) -> None:
    from bridge_ds.commands import answers

    given = ["--ds_config", "zero3.json", "--input", "a", "--output", "b"]
    assert exit_status(lambda: answers.main(given)) == 2
    assert "unrecognized arguments: --ds_config" in capsys.readouterr().err
