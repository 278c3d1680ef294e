"""Texts to token ids, by the tokenizers library."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence

from fastattn.models.folders import existing, read_json
from fastattn.models.inputs import cumulated

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fastattn.models.configuration import Configuration
    from fastattn.models.modules import Modules

# Texts to a call of the library, which keeps 1 to 2 KB for each of their tokens' strings and offsets.
AT_ONCE = 8192


class Tokens:
    """The tokenizer of a folder, cutting texts off at the model's maximum length."""

    __slots__ = ("_prompt", "_tokenizer", "max_length")

    def __init__(self, modules: Modules, configuration: Configuration) -> None:
        path = existing(modules.transformer / "tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower one
            raise ValueError(f"{path} must be a tokenizer that the tokenizers library reads: {error}") from error
        path = modules.transformer / "tokenizer_config.json"
        side, limit = _truncation(path, read_json(path, dict, default={}))
        limits = {
            "max_position_embeddings": configuration.max_length,
            **({"max_seq_length": modules.max_seq_length} if modules.max_seq_length else {"model_max_length": limit}),
        }
        least = tokenizer.num_special_tokens_to_add(False) + 1
        field = min(limits, key=limits.get)
        self.max_length = int(limits[field])
        if self.max_length < least:
            raise ValueError(
                f"{modules.transformer}: {field} must allow at least {least} tokens, one beside those that the "
                f"tokenizer adds to each text, got {self.max_length}"
            )
        tokenizer.enable_truncation(self.max_length, direction=side)
        tokenizer.no_padding()
        if modules.lower_case:
            tokenizer.normalizer = Sequence([Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])])
        self._tokenizer, self._prompt = tokenizer, modules.prompt

    def __call__(self, texts: list[str]) -> tuple[NDArray, NDArray]:
        """(ids of all texts one behind the other, where each text begins and the last one ends)."""
        ids, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(texts), AT_ONCE):
            some = [self._prompt + text for text in texts[start : start + AT_ONCE]]
            encodings = self._tokenizer.encode_batch_fast(some)
            lengths.append(np.fromiter(map(len, encodings), np.int64, len(encodings)))
            flat = chain.from_iterable(encoding.ids for encoding in encodings)
            ids.append(np.fromiter(flat, np.int64, lengths[-1].sum()))
        return np.concatenate(ids), cumulated(np.concatenate(lengths))

    def strings(self, ids: NDArray) -> list[str]:
        """The tokens themselves, as the vocabulary has them."""
        return [self._tokenizer.id_to_token(i) or "" for i in ids.tolist()]


def _truncation(path: Path, raw: dict) -> tuple[str, float]:
    """(truncation_side, model_max_length) of tokenizer_config.json."""
    side, limit = (raw.get(field) for field in ("truncation_side", "model_max_length"))
    side, limit = "right" if side is None else side, math.inf if limit is None else limit
    if side not in ("left", "right"):
        raise ValueError(f"{path}: truncation_side must be left or right, got {side!r}")
    if type(limit) not in (int, float) or not limit >= 1:
        raise ValueError(f"{path}: model_max_length must be a number of at least 1, got {limit!r}")
    return side, limit


def judged_texts(texts: object) -> list[str]:
    """Texts as a list; TypeError for anything but a str or an iterable of str."""
    if isinstance(texts, str):
        return [judged_text("texts", texts)]
    if isinstance(texts, bytes | bytearray) or not hasattr(texts, "__iter__"):
        raise TypeError(f"texts must be a str or a list of str, got {type(texts).__name__}")
    return [judged_text(f"texts[{i}]", text) for i, text in enumerate(texts)]


def judged_text(name: str, text: object) -> str:
    """A str that can be encoded, which half of a surrogate pair cannot."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be Unicode: {error}") from None
    return text
