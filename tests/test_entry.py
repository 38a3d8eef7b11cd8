"""Every command is in UTF-8 whatever the locale: what it is told, what it reads, what it prints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_ds.entry import exit_status
from bridge_ds.errors import DataError

ROOT = Path(__file__).parents[1]
BENGALI = "বিড়ালটি মাদুরে বসেছিল।"
ECHO = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from bridge_ds.entry import run_command

def main():
    print(sys.argv[1], sys.stdin.read(), Path(sys.argv[1]).read_text(), "half a letter \\udcff")
    print(ascii(sys.argv[1]), file=sys.stderr)
    sys.exit(sys.argv[1])  # Python prints it

if __name__ == "__main__":
    run_command(main)
"""


@pytest.fixture(scope="module", params=["C", "ISO-8859-1", "streams"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that is not UTF-8."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    if request.param == "C":
        return env | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if request.param == "streams":
        return env | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"}
    made = tmp_path_factory.mktemp("locale") / "en_US.ISO-8859-1"
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(made)]
    if not shutil.which("localedef") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("localedef cannot make an ISO-8859-1 locale here")
    return env | {"LOCPATH": str(made.parent), "LC_ALL": made.name}


def test_under_any_locale_arguments_names_files_and_streams_are_utf8(foreign: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO.format(root=str(ROOT)), encoding="utf-8")
    (tmp_path / BENGALI).write_text("naïve\n", encoding="utf-8")
    given = BENGALI.encode()
    for module in ([b"echo.py"], [b"-m", b"echo"]):
        done = subprocess.run(
            [sys.executable.encode(), *module, given], cwd=tmp_path, input=given, env=foreign, capture_output=True
        )
        assert done.stdout.decode() == f"{BENGALI} {BENGALI} naïve\n half a letter \\udcff\n", done.stderr
        assert done.stderr.decode() == f"{BENGALI!a}\n{BENGALI}\n" and done.returncode == 1


def test_under_any_locale_a_real_command_packs_and_refuses(foreign: dict[str, str], tmp_path: Path) -> None:
    import tarfile

    (tmp_path / f"{BENGALI}.tsv").write_text(f"source\ttarget\n{BENGALI}\tyes\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools" / "pack_shards.py"), "pack", "--input", f"{BENGALI}.tsv", "--output"]
    arguments = [part.encode() for part in command]
    done = subprocess.run([*arguments, "খ".encode()], cwd=tmp_path, env=foreign, capture_output=True)
    assert done.returncode == 0 and "packed 1 samples into 1 shards (0.0 MiB) in খ" in done.stdout.decode(), done.stderr
    with tarfile.open(next((tmp_path / "খ").glob("*.tar"))) as tar:
        member = tar.extractfile(tar.getmembers()[0])
        assert member and member.read().decode() == f'{{"source":"{BENGALI}","target":"yes"}}'
    refused = subprocess.run([*arguments, "খ".encode()], cwd=tmp_path, env=foreign, capture_output=True)
    assert refused.returncode == 2 and "error: the output folder খ is not empty" in refused.stderr.decode()


@pytest.mark.parametrize("command", ["--help", "slurm --help", "plan"])
def test_a_command_whose_reader_has_left_ends_without_a_traceback(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "bridge_ds", *command.split()]
    env = os.environ | {"PYTHONUNBUFFERED": ""}  # with it argparse itself passes over the error
    done = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, env=env, timeout=60)
    os.close(writer)
    assert done.stderr == b"" and done.returncode == 128 + signal.SIGPIPE


FULL = "error: standard output cannot be used (No space left on device); expected space"


@pytest.mark.parametrize("command", ["--help", "slurm --help", "plan", "train --dry-run", "--version"])
def test_a_result_on_a_full_disk_is_one_sentence(command: str) -> None:
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-m", "bridge_ds", *command.split()]
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        lost = subprocess.run(words, cwd=ROOT, stdout=full, stderr=full, timeout=60)
        assert done.returncode == lost.returncode == 2
        assert done.stderr.count("\n") == 1 and done.stderr.startswith(FULL)
        # A message may be lost: what was asked for is there.
        asked = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=full, timeout=60)
        assert asked.returncode == 0 and asked.stdout


def test_streams_that_are_closed_or_do_not_block() -> None:
    program = [sys.executable, "-m", "bridge_ds", "plan", "--recipe"]
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        for recipe, status in (("testbed", 0), ("nothing", 2)):
            done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *program, recipe], cwd=ROOT, timeout=60)
            assert done.returncode == status, (closed, recipe)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text = "from bridge_ds.entry import run_command\nrun_command(lambda: print('x' * 300_000))"
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=writer)
    os.close(writer)
    with open(reader) as pipe:
        assert len(pipe.read()) == 300_001 and process.wait(60) == 0


def test_a_broken_pipe_of_another_kind_is_an_error() -> None:
    program = "from bridge_ds.entry import run_command\ndef main():\n    raise BrokenPipeError\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"BrokenPipeError" in done.stderr


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        ("ConfigError('x is 1; expected 2.')", 2, "error: x is 1; expected 2.\n"),
        ("OSError(28, 'No space left on device', '/mnt/full')", 2, "error: /mnt/full cannot be used (No space left"),
        ("Preempted('checkpoint saved')", 75, "checkpoint saved; the same command continues.\n"),
        ("KeyboardInterrupt()", 130, "stopped by the user; the same command continues.\n"),
        ("SystemExit(3)", 3, ""),
        ("ValueError('a fault of ours')", 1, "Traceback (most recent call last):"),
    ],
)
def test_one_place_turns_errors_into_statuses(
    raised: str, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from bridge_ds import errors

    def main() -> None:
        raise eval(raised, vars(errors))  # texts of this file

    assert exit_status(main) == status
    said = capsys.readouterr()
    assert said.err.startswith(told) and said.out == "" and (status == 1) == ("Traceback" in said.err)


def test_the_traceback_of_a_user_error_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_DS_TRACEBACK", "1")

    def main() -> None:
        raise DataError("nothing there.")

    assert exit_status(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("error: nothing there.\n")
