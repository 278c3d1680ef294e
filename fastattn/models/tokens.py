"""Texts to token ids, by the tokenizers library."""

from __future__ import annotations

import copy
import math
import os
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken
from tokenizers.normalizers import Lowercase, Sequence

from fastattn.models.inputs import cumulated
from fastattn.models.tokenizer_files import library_errors, read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Encoding
    from tokenizers.normalizers import Normalizer

    from fastattn.models.configuration import Configuration
    from fastattn.models.modules import Modules
    from fastattn.models.tokenizer_files import TokenizerFiles

# Texts per call of the library, which keeps 1 to 2 KB of strings and offsets for each token.
AT_ONCE = 8192

# The library's threads do not survive a fork. It knows, but deadlocks if TOKENIZERS_PARALLELISM asks for them.
_forked = False


def _fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)


class Tokens:
    """The tokenizer of a folder, which truncates texts to the model's maximum length.

    `pairs`: it is given pairs; `special`: it adds special tokens; `marks`: prompts that are one token if the vocabulary
    has it, as those of ColBERT.
    """

    __slots__ = (
        "_fields",
        "_path",
        "_positions",
        "_prompt",
        "_special",
        "_special_ids",
        "_token_types",
        "_tokenizer",
        "max_length",
    )

    def __init__(
        self,
        modules: Modules,
        configuration: Configuration,
        *,
        pairs: bool = False,
        special: bool = True,
        marks: tuple[str, ...] = (),
        files: TokenizerFiles | None = None,
    ) -> None:
        changes = modules.sentences.tokenizer
        if files is None:
            files = read_tokenizer(modules.transformer, configuration.tokenizer_class, changes)
        tokenizer, self._path, self._prompt = files.tokenizer, files.path, modules.prompt
        self._special_ids, self._token_types = files.special_ids, files.token_types
        side, limit = _truncation(files.config, files.fields)
        seq_length = None if changes.get("model_max_length") else modules.sentences.max_seq_length
        limits = {
            "max_position_embeddings": configuration.max_length,
            **({"max_seq_length": seq_length} if seq_length else {"model_max_length": limit}),
        }
        self._special = special
        least = tokenizer.num_special_tokens_to_add(pairs) * special + 1
        field = min(limits, key=limits.get)
        self.max_length = int(limits[field])
        if self.max_length < least:
            raise ValueError(
                f"{modules.transformer}: {field} must allow at least {least} tokens, one besides those that the "
                f"tokenizer adds to each {'pair' if pairs else 'text'}, got {self.max_length}"
            )
        tokenizer.enable_truncation(self.max_length, direction=side)
        tokenizer.no_padding()
        if modules.sentences.lower_case and not _lowers(tokenizer.normalizer):
            tokenizer.normalizer = Sequence([Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])])
        self._fields = files.fields
        self._positions = configuration.max_length
        self._tokenizer = tokenizer
        with library_errors(self._path):
            for mark in marks:
                self._join(mark)

    def __call__(self, texts: list[str], prompt: str | None = None) -> tuple[NDArray, NDArray]:
        """Tokenize texts behind a prompt, by default the folder's: (ids of all in a row, cumulative lengths)."""
        prompt = self._prompt if prompt is None else prompt
        ids, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(texts), AT_ONCE):
            encodings = self._encodings([prompt + text for text in texts[start : start + AT_ONCE]])
            lengths.append(np.fromiter(map(len, encodings), np.int64, len(encodings)))
            ids.append(_joined((encoding.ids for encoding in encodings), lengths[-1].sum()))
        return np.concatenate(ids), cumulated(np.concatenate(lengths))

    def pairs(self, pairs: list[tuple[str, str]], prompt: str) -> tuple[NDArray, NDArray | None, NDArray]:
        """Tokenize pairs, the prompt before each first text: (ids, token types or None, cumulative lengths).

        The longer text of a pair is truncated first.
        """
        ids, types, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(pairs), AT_ONCE):
            encodings = self._encodings([(prompt + a, b) for a, b in pairs[start : start + AT_ONCE]])
            lengths.append(np.fromiter(map(len, encodings), np.int64, len(encodings)))
            ids.append(_joined((encoding.ids for encoding in encodings), lengths[-1].sum()))
            if self._token_types:
                types.append(_joined((encoding.type_ids for encoding in encodings), lengths[-1].sum()))
        found = np.concatenate(types) if self._token_types else None
        return np.concatenate(ids), found, cumulated(np.concatenate(lengths))

    def prompt_length(self, prompt: str) -> int:
        """Number of tokens of a prompt and of the special tokens before it."""
        if not prompt:
            return 0
        [encoding] = self._encodings([prompt])
        return len(encoding) - any(token in self._special_ids for token in encoding.ids[-1:])

    def limited(self, length: int | None) -> Tokens:
        """The same tokenizer with another maximum length, but at most the number of positions; None: this one."""
        if length is None:
            return self
        other, direction = copy.copy(self), self._tokenizer.truncation["direction"]
        other.max_length = min(length, self._positions)
        other._tokenizer = copy.deepcopy(self._tokenizer)
        other._tokenizer.encode_special_tokens = self._tokenizer.encode_special_tokens  # which a copy does not keep
        with library_errors(self._path):
            other._tokenizer.enable_truncation(other.max_length, direction=direction)
        return other

    def ids(self, words: Iterable[str]) -> NDArray:
        """The ids of these words, without those that the vocabulary does not have."""
        found = map(self._tokenizer.token_to_id, words)
        return np.array([i for i in found if i is not None], np.int64)

    def special(self, *fields: str) -> NDArray:
        """The ids of the special tokens that these fields of tokenizer_config.json name, if they do."""
        return self.ids(name for name in map(self._fields.get, fields) if isinstance(name, str))

    def filler(self, token: str | None) -> int:
        """The id of a token that queries are filled up with, by default the mask token or the last one."""
        name = next((x for x in (token, *map(self._fields.get, ("mask_token", "eos_token"))) if x), None)
        found = None if name is None else self._tokenizer.token_to_id(name)
        if found is None:
            raise ValueError(f"{self._path} must have the token that query_expansion fills queries with, got {name!r}")
        return found

    def _join(self, mark: str) -> None:
        """Make a mark one token, with or without what follows its first blank, if the vocabulary has it."""
        vocabulary = self._tokenizer.get_vocab()
        for token in (mark, mark.split(None, 1)[0]):
            if token in vocabulary:
                if self._tokenizer.encode(token, add_special_tokens=False).tokens != [token]:
                    self._tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
                return

    def strings(self, ids: NDArray) -> list[str]:
        """The tokens as strings of the vocabulary."""
        return [self._tokenizer.id_to_token(i) or "" for i in ids.tolist()]

    def _encodings(self, texts: list[str] | list[tuple[str, str]]) -> list[Encoding]:
        with library_errors(self._path):
            if _forked and "TOKENIZERS_PARALLELISM" in os.environ:
                each = ((text,) if isinstance(text, str) else text for text in texts)
                return [self._tokenizer.encode(*text, add_special_tokens=self._special) for text in each]
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special)


def _joined(lists: Iterable[list[int]], total: int) -> NDArray:
    return np.fromiter(chain.from_iterable(lists), np.int64, total)


def _lowers(normalizer: Normalizer | None) -> bool:
    """Whether a normalizer lowercases already: sentence-transformers adds no second step then."""
    return any(isinstance(x, Lowercase) for x in (normalizer if isinstance(normalizer, Sequence) else [normalizer]))


def _truncation(path: Path, raw: dict) -> tuple[str, float]:
    """(truncation_side, model_max_length) of tokenizer_config.json."""
    side, limit = raw.get("truncation_side"), raw.get("model_max_length", raw.get("max_len"))
    side, limit = "right" if side is None else side, math.inf if limit is None else limit
    if side not in ("left", "right"):
        raise ValueError(f"{path}: truncation_side must be left or right, got {side!r}")
    if type(limit) not in (int, float) or not limit >= 1:
        raise ValueError(f"{path}: model_max_length must be a number of at least 1, got {limit!r}")
    return side, limit


def checked_texts(texts: object, name: str = "texts") -> list[str]:
    """Texts as a list; TypeError for anything but a str or an iterable of str."""
    if isinstance(texts, str):
        return [checked_text(name, texts)]
    if isinstance(texts, bytes | bytearray) or not hasattr(texts, "__iter__"):
        raise TypeError(f"{name} must be a str or a list of str, got {type(texts).__name__}")
    return [checked_text(f"{name}[{i}]", text) for i, text in enumerate(texts)]


def checked_pairs(pairs: object) -> list[tuple[str, str]]:
    """Pairs of texts as a list of tuples; TypeError or ValueError for anything else."""
    if isinstance(pairs, str | bytes | bytearray) or not hasattr(pairs, "__iter__"):
        raise TypeError(f"pairs must be a list of pairs of str, got {type(pairs).__name__}")
    return [_checked_pair(f"pairs[{i}]", pair) for i, pair in enumerate(pairs)]


def _checked_pair(name: str, pair: object) -> tuple[str, str]:
    if isinstance(pair, str | bytes | bytearray) or not hasattr(pair, "__iter__"):
        raise TypeError(f"{name} must be a pair of str, got {type(pair).__name__}")
    texts = list(pair)
    if len(texts) != 2:
        raise ValueError(f"{name} must be a pair of str, got {len(texts)} of them")
    return checked_text(f"{name}[0]", texts[0]), checked_text(f"{name}[1]", texts[1])


def checked_text(name: str, text: object) -> str:
    """A str that can be encoded: without lone surrogates."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be Unicode: {error}") from None
    return text
