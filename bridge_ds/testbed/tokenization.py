"""Make the two tokenizers of the testbed: SentencePiece for the encoder, byte-fallback BPE for the language model.

Both have every word of their languages as one piece. That keeps the sequences short, and the testbed quick on a laptop.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from .languages import ENGLISH, LANGUAGES, word_list
from .tasks import LABELS, PROMPTS

__all__ = ["english_words", "make_encoder_tokenizer", "make_llm_tokenizer", "template_words"]

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def template_words() -> list[str]:
    """The words of the prompts around the sentences."""
    return list(dict.fromkeys(word for prompt in PROMPTS.values() for word in prompt.split() if "{" not in word))


def english_words() -> list[str]:
    """Every word that the language model reads or writes."""
    labels = [word for texts in LABELS.values() for text in texts for word in text.split()]
    return list(dict.fromkeys([*word_list(ENGLISH), *template_words(), *labels]))


def make_llm_tokenizer(folder: Path) -> Any:
    """Train the English tokenizer, save it to ``folder`` and return it (a ``PreTrainedTokenizerFast``).

    A word gives the same pieces alone as after a space, and text the same pieces with or without a space before it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = english_words()
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = spaces
    draft.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False, special_tokens=[PAD, BOS, EOS]),
    )
    model = json.loads(draft.to_str())["model"]
    vocabulary = model["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    wrapped.save_pretrained(folder)
    # Its model was pretrained on texts that begin with BOS; transformers 5 does not save this.
    path = folder / "tokenizer_config.json"
    settings = {"add_bos_token": True} | json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return wrapped


def make_encoder_tokenizer(folder: Path) -> Any:
    """Train the multilingual tokenizer, save ``spiece.model`` and what AutoTokenizer needs, and return it.

    A unigram model over all six languages gives the pieces for unknown words; then every known word is added as a piece
    of its own, so much likelier than the rest that it is never split.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import T5Tokenizer

    words = list(dict.fromkeys([*template_words(), *(word for code in LANGUAGES for word in word_list(code))]))
    draft = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=draft,
        model_type="unigram",
        vocab_size=1000,
        hard_vocab_limit=False,
        character_coverage=1.0,
        split_by_unicode_script=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    messages: Any = sentencepiece_model_pb2
    model = messages.ModelProto.FromString(draft.getvalue())
    for piece in model.pieces[3:]:
        piece.score -= 20.0
    known = {piece.piece: piece for piece in model.pieces}
    for word in words:
        text = f"▁{word}"
        if text not in known:
            known[text] = model.pieces.add(piece=text)
        known[text].score = -1.0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    tokenizer.save_pretrained(folder)
    return tokenizer
