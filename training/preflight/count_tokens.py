"""Counts the tokens of prompts with the tokenizer of a base model, in a process of its own: a tokenizer is a file of a stranger.

``python -m training.preflight.count_tokens`` reads a request from its standard input and writes the numbers to its standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from environments.limited_process import MEMORY_EXIT, Limits, ProcessFailed, answer_of, apply_limits
from trainer_engine.contract.files import read_small_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODULE = "training.preflight.count_tokens"
LIMITS = Limits(cpu_seconds=60, memory_bytes=2 << 30, wall_seconds=60.0, waiting_seconds=5.0)
SLOTS = threading.BoundedSemaphore(2)
TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
LARGEST_VOCABULARY = 16 << 20
CLIP_MARK = "</w>"
"""What the last letter of a word has in the vocabulary of CLIP."""
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""The words of CLIP's tokenizer (Radford et al., 2021; openai/CLIP, ``simple_tokenizer.py``)."""
CLIP_UNKNOWN = "<|endoftext|>"
CLIP_ENDS = 2
"""Tokens that CLIP puts around a prompt."""
PIECES, SETTINGS = "tokenizer.model", "tokenizer_config.json"
GLM, GLM_BEGINNING = "ChatGLMTokenizer", 2
"""A tokenizer of diffusers that has a vocabulary of SentencePiece alone, and the tokens that it puts before a prompt."""


def count_tokens(folder: Path, texts: Sequence[str], limits: Limits = LIMITS) -> list[int] | None:
    """The least number of tokens that the tokenizer in a folder makes of each text, with those that it puts around a prompt.

    None if it cannot be read.
    """
    request = json.dumps({"folder": str(folder), "texts": list(texts)}).encode("ascii")
    try:
        found = json.loads(answer_of(MODULE, request, limits, SLOTS))
    except (ProcessFailed, ValueError):
        return None
    is_right = isinstance(found, list) and len(found) == len(texts) and all(type(one) is int for one in found)
    return found if is_right else None


def tokens_in(folder: Path, texts: Sequence[str]) -> list[int] | None:
    """As ``count_tokens``, in this process."""
    from tokenizers import Tokenizer

    ends = 0
    plain = [" ".join(text.split()) for text in texts]  # most tokenizers take all white space for one space
    if (folder / TOKENIZER).is_file():
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        words = read_small_json(folder / VOCABULARY, LARGEST_VOCABULARY)
        if not any(word.endswith(CLIP_MARK) for word in words):
            return None
        tokenizer, ends = _clip(folder), CLIP_ENDS
    elif (folder / PIECES).is_file() and (folder / SETTINGS).is_file():
        settings = read_small_json(folder / SETTINGS)
        is_known = isinstance(settings, dict) and settings.get("tokenizer_class") == GLM
        return _pieces(folder, plain) if is_known else None
    else:
        return None
    return [len(found.ids) + ends for found in tokenizer.encode_batch(plain)]


def _pieces(folder: Path, texts: Sequence[str]) -> list[int]:
    """The tokens that ``GLM`` makes of each text."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(folder / PIECES))
    return [len(ids) + GLM_BEGINNING for ids in processor.encode(list(texts))]


def _clip(folder: Path) -> Tokenizer:
    """The tokenizer of CLIP from the two files that older repositories have."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    files = str(folder / VOCABULARY), str(folder / MERGES)
    model = models.BPE.from_file(*files, end_of_word_suffix=CLIP_MARK, unk_token=CLIP_UNKNOWN)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def main() -> None:
    """Answers one request."""
    apply_limits(sys.argv[1:])
    folder = Path()

    def name_folder(kind: type[BaseException], error: BaseException, trace: object) -> None:
        """In a line: the server's terminal shows it, and a traceback would look like a fault of the server."""
        print(f"The tokenizer in {str(folder)!r:.1000} cannot be read: {error!r:.300}", file=sys.stderr)

    sys.excepthook = name_folder
    try:
        request = json.load(sys.stdin)
        folder = Path(request["folder"])
        with os.fdopen(os.dup(1), "w", encoding="ascii") as stream:
            os.dup2(2, 1)  # what the library prints is no part of the answer
            json.dump(tokens_in(folder, request["texts"]), stream)
    except MemoryError:
        os._exit(MEMORY_EXIT)


if __name__ == "__main__":
    main()
