"""A file of texts answered batch by batch; a killed command resumes after its last whole batch.

`.OUTPUT.part` beside the output holds a line with the hash of texts and settings, then a line per batch. The batches
are fixed before the first is answered (texts of similar length together, the longest first), so kills change neither
what shares a batch nor the seed of its sampling, and the output is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bridge_ds.data.text.prompting import ContextIds
from bridge_ds.disk import locked, real, write_text
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.generate.own import OwnAnswers
from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.inference.generator import write_as_alone
from bridge_ds.partial import PartFile, writing
from bridge_ds.reading import NotText, decoded, json_value

__all__ = ["ANSWER", "answer_file", "batches"]

LANGUAGE = "language"
"""Field of the input that holds the text's language, for an encoder that is told it."""
PROMPT = "prompt"
"""Field of the input that holds what the LLM reads in place of the text, as in training."""
ANSWER = "answer"
"""Field of the output that holds the answer."""
ANSWERED_BY = "answered_by"
"""Field of the output that says who answered, `bridge` or `llm`, where choice.json is followed."""


def answer_file(pipeline: Pipeline | OwnAnswers, source: Path, output: Path, field: str, batch: int) -> None:
    """Answer each line of `source`; `output` gets the same objects in the same order, with `answer`.

    Args:
        pipeline: loaded.
        source: JSON lines.
        output: must not exist; written when all texts are answered.
        field: holds the text.
        batch: texts at a time.

    Raises:
        DataError: a line is no JSON object or has no text, names a language that the encoder does not have, or
            its prompt is no text.
        ConfigError: the output is there already, or another command is writing it.
        LaunchError: it cannot be written.
    """
    if output.exists():
        raise ConfigError(f"{output} is there already; expected none; remove it or choose another --output.")
    written = (ANSWER, ANSWERED_BY) if pipeline.choice else (ANSWER,)
    content, items = read_items(source, field, written)
    rows, ways = [], []
    for number, item in items:
        try:
            # `--field prompt` names the text itself.
            rows.append(pipeline.row(item[field], _language(item), None if field == PROMPT else item.get(PROMPT)))
            ways.append(pipeline.way(_language(item)))
        except DataError as error:
            raise DataError(f"{source} line {number}: {error}") from None
    lengths = [len(row.head) + len(row.source) + len(row.prompt) + len(row.tail) for row in rows]
    plan = batches(lengths, batch, ways, list(map(pipeline.needs, rows)), pipeline.positions)
    identity = hashlib.sha256(f"{pipeline.identity()}/{hashlib.sha256(content).hexdigest()}/{field}/{batch}".encode())
    part = PartFile(output.with_name(f".{output.name}.part"), identity.hexdigest())
    with _locked(part.path):
        answers = _answers(pipeline, rows, plan, ways, part)
        lines = (
            json.dumps(item | dict(zip(written, (answers[index], ways[index]), strict=False)), ensure_ascii=False)
            for index, (_, item) in enumerate(items)
        )
        with writing(output):
            write_text(output, "".join(line + "\n" for line in lines))
        part.path.unlink()
    print(f"{len(rows)} answers in {output}", file=sys.stderr)


def _answers(
    pipeline: Pipeline | OwnAnswers,
    rows: Sequence[ContextIds],
    plan: Sequence[Sequence[int]],
    ways: Sequence[str],
    part: PartFile,
) -> dict[int, str]:
    """Row -> its answer; those of an earlier start are in the part file."""
    expected = iter(plan)

    def batch_of(line: str) -> list[str]:
        texts = json_value(line)
        if not isinstance(texts, list) or len(texts) != len(next(expected, ())) or not all(map(_is_text, texts)):
            raise ValueError("no batch of answers")
        return texts

    done = part.resume(batch_of)
    if part.replaced:
        print(f"{part.path} is of other texts or settings and is started over", file=sys.stderr)
    answers: dict[int, str] = {}
    for indices, texts in zip(plan, done, strict=False):
        answers |= zip(indices, texts, strict=True)
    if answers:
        print(f"resuming after {len(answers)} of {len(rows)} texts", file=sys.stderr)
    with tqdm(total=len(rows), initial=len(answers), desc="answers", unit="text", disable=None) as bar:
        for number in range(len(done), len(plan)):
            texts = pipeline.write([rows[index] for index in plan[number]], number, ways[plan[number][0]])
            part.add(json.dumps(texts, ensure_ascii=False))
            answers |= zip(plan[number], texts, strict=True)
            bar.update(len(texts))
    return answers


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _language(item: dict[str, Any]) -> str:
    language = item.get(LANGUAGE) or ""
    if not isinstance(language, str):
        raise DataError(f"its {LANGUAGE!r} is {str(language)[:80]!r}; expected a text, such as 'si'.")
    return language


def batches(
    lengths: Sequence[int],
    size: int,
    ways: Sequence[str] = (),
    needs: Sequence[tuple[int, int]] = (),
    positions: int = 0,
) -> list[list[int]]:
    """Indices in batches, texts of similar length together. The longest first: they need the most memory.

    Args:
        lengths: of the texts, in tokens.
        size: most texts of a batch, which has fewer where one of them could not write as much as alone.
        ways: a batch has one of them; empty = all are alike.
        needs: of each text the LLM's positions that its prompt takes, and the most tokens of its answer alone.
        positions: of the LLM; 0 = unknown.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups = [[index for index in order if ways[index] == way] for way in sorted(set(ways))] if ways else [order]
    found: list[list[int]] = []
    for group in groups:
        longest = most = count = 0
        for index in group:
            used, limit = needs[index] if needs else (0, 0)
            longest, most = max(longest, used), max(most, limit)
            if count in (0, size) or not write_as_alone(longest, most, positions):
                found.append([])
                longest, most, count = used, limit, 0
            found[-1].append(index)
            count += 1
    return found


def read_items(
    source: Path, field: str, written: Sequence[str] = (ANSWER,)
) -> tuple[bytes, list[tuple[int, dict[str, Any]]]]:
    """The file's bytes, and (line number from 1, object) of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object with that field, or has a field of `written`.
    """
    try:
        if stat.S_ISDIR(mode := source.stat().st_mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise DataError(
                f"{source} is a {'folder' if stat.S_ISDIR(mode) else 'device'}; expected a file of JSON lines."
            )
        content = source.read_bytes()
        text = decoded(content)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}); expected a file of JSON lines.") from None
    except NotText as error:
        raise DataError(f"{source} {error}.") from None
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json_value(line, finite=True)  # it is written again
        except json.JSONDecodeError as error:
            raise DataError(
                f"{source} line {number} is not JSON ({error.msg} at character {error.pos + 1}); expected an object a "
                "line."
            ) from None
        except ValueError as error:
            raise DataError(f"{source} line {number} cannot be used: {error}.") from None
        if not isinstance(item, dict) or field not in item:
            raise DataError(
                f"{source} line {number} has no {field!r}; expected an object with it; name it with --field."
            )
        for name in written:
            if name in item:
                raise DataError(f"{source} line {number} has an {name!r} already; expected none; rename or remove it.")
        items.append((number, item))
    if not items:
        raise DataError(f"{source} holds no line; expected at least one.")
    return content, items


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While open, no other command writes the file. Folders above it are made."""
    with contextlib.ExitStack() as held:
        with writing(path):
            real(path.parent).mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(path, wait=False))
            except BlockingIOError:
                raise ConfigError(f"{path} is being written by another command; expected none; wait for it.") from None
        yield
