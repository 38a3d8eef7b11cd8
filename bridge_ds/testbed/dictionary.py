"""The dictionary of the testbed's words, for `data.mix_words`: ``python -m bridge_ds.testbed.dictionary``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridge_ds.disk import write_text
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError
from bridge_ds.partial import writing

from .languages import GRAMMARS, vocabulary
from .lexicon import LEXICON, conjugate, plural

__all__ = ["entries", "main"]

_HELP = """\
Write the testbed's dictionary: a line an entry, English, word and language with tabs between them.

examples:
  python -m bridge_ds.testbed.dictionary --output words.tsv
  python -m bridge_ds.testbed.dictionary --output words.tsv --language qaa --language qac
  bridge-ds train --recipe testbed --set data.mix_words=words.tsv --set data.mix_words_share=0.5"""


def entries(languages: Sequence[str] = tuple(GRAMMARS)) -> Iterator[tuple[str, str, str]]:
    """(English, word, language) of every content word, in number and tense; without case endings, as in a dictionary.

    Raises:
        ConfigError: a language that is none of the constructed ones.
    """
    for language in languages:
        if language not in GRAMMARS:
            raise ConfigError(f"language {language!r} is not one of the testbed's: {', '.join(GRAMMARS)}")
        words = vocabulary(language)
        for concept, part in LEXICON.items():
            if part == "noun":
                pairs = {concept: words.noun(concept, False, None), plural(concept): words.noun(concept, True, None)}
            elif part == "verb":
                third, past = conjugate(concept)
                now = words.verb(concept, past=False)
                pairs = {concept: now, third: now, past: words.verb(concept, past=True)}
            else:
                pairs = {concept: words.stems[concept]}
            for english, word in pairs.items():
                yield english, word, language


def main(argv: list[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_ds.testbed.dictionary",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write (TSV)")
    parser.add_argument("--language", action="append", help="one of its languages; repeatable (default: all)")
    options = parser.parse_args(argv)
    lines = ["\t".join(entry) for entry in entries(options.language or tuple(GRAMMARS))]
    with writing(options.output):
        write_text(options.output, "\n".join(lines) + "\n")
    print(f"{len(lines)} entries in {options.output}")
    return 0


if __name__ == "__main__":
    run_command(main)
