"""Pipeline: texts to embeddings, by tokenizer, backbone and pooling; what a call asks for, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn import _arguments
from fastattn.models.inputs import gathered
from fastattn.models.packs import packs
from fastattn.models.precision import checked_precision, quantized
from fastattn.models.progress import Progress
from fastattn.models.tokens import checked_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from fastattn.models.backbone import Backbone
    from fastattn.models.modules import Modules
    from fastattn.models.pooling import Pooling
    from fastattn.models.tokens import Tokens

# How far a stream is read ahead: enough for several packs of texts of like length, and 128 MB in the tokenizer.
TEXTS_AHEAD = 1024
CHARACTERS_AHEAD = 1 << 18


class Options(NamedTuple):
    """What a call asks for."""

    prompt: str
    skipped: int  # number of tokens at the beginning of every text that are not pooled
    normalize: bool | None
    size: int  # of an embedding
    precision: str


class Tokenized(NamedTuple):
    """The token ids of texts, one after the other."""

    ids: NDArray
    starts: NDArray
    lengths: NDArray


class Pipeline:
    """The parts of a sentence encoder. It is immutable."""

    __slots__ = ("_modules", "_pooling", "backbone", "tokens")

    def __init__(self, modules: Modules, tokens: Tokens, backbone: Backbone, pooling: Pooling) -> None:
        self._modules, self._pooling = modules, pooling
        self.tokens, self.backbone = tokens, backbone

    @property
    def size(self) -> int:
        """The size of an embedding, by default."""
        return min(self._pooling.size, self._modules.truncate_dim or self._pooling.size)

    @property
    def similarity(self) -> str:
        """The name of the function that compares embeddings."""
        return self._modules.similarity

    def options(
        self,
        *,
        prompt: Any,
        prompt_name: Any,
        truncate_dim: Any,
        normalize: Any,
        precision: Any,
        otherwise: str | None = None,
        alone: bool = False,
    ) -> Options:
        """Check the arguments of a call.

        `otherwise` names the prompt of a call that asks for none; `alone` says that embeddings come one by one.
        """
        text = self._modules.prompts.chosen(prompt, prompt_name, otherwise)
        skipped = 0 if self._modules.pools_prompt else self.tokens.prompt_length(text)
        normalize = None if normalize is None else _arguments.flag("normalize", normalize)
        return Options(text, skipped, normalize, self._size(truncate_dim), checked_precision(precision, alone=alone))

    def tokenized(self, texts: list[str], options: Options) -> Tokenized:
        """The token ids of checked texts, behind the prompt."""
        ids, cu_seqlens = self.tokens(texts, options.prompt)
        return Tokenized(ids, cu_seqlens[:-1], np.diff(cu_seqlens))

    def hidden(self, texts: Tokenized, num_threads: int | None) -> tuple[NDArray, NDArray]:
        """Hidden states (tokens, H), and the cumulative lengths of the texts."""
        packed = gathered(self.backbone.configuration, *texts)
        return self.backbone(packed, num_threads), packed.cu_seqlens

    def pooled(self, hidden: NDArray, cu_seqlens: NDArray, options: Options) -> NDArray[np.float32]:
        """Embeddings in float32."""
        return self._pooling(
            hidden, cu_seqlens, skipped=options.skipped, normalize=options.normalize, size=options.size
        )

    def encode(
        self, texts: list[str], options: Options, most: int | None, show_progress: bool | None, num_threads: int | None
    ) -> NDArray:
        """Embeddings of checked texts, `most` of them at a time."""
        ids, starts, lengths = self.tokenized(texts, options)
        embeddings = np.empty((len(lengths), options.size), np.float32)
        order = np.argsort(-lengths, kind="stable")
        with Progress(len(lengths), show_progress) as progress:
            for pack in packs(order, lengths, most):
                states = self.hidden(Tokenized(ids, starts[pack], lengths[pack]), num_threads)
                embeddings[pack] = self.pooled(*states, options)
                progress.add(len(pack))
        return quantized(embeddings, options.precision)

    def stream(
        self, texts: Iterable[str], options: Options, most: int | None, num_threads: int | None
    ) -> Iterator[NDArray]:
        """Embeddings of texts in their order, some of them at a time."""
        for window in windows(texts, most):
            yield self.encode(window, options, most, False, num_threads)

    def _size(self, truncate_dim: Any) -> int:
        if truncate_dim is None:
            return self.size
        size = _arguments.at_least_one("truncate_dim", truncate_dim)
        if size > self._pooling.size:
            raise ValueError(f"truncate_dim must be at most {self._pooling.size}, the size of an embedding, got {size}")
        return size


def windows(texts: Iterable[str], most: int | None = None) -> Iterator[list[str]]:
    """Checked texts, at most so many at a time, fewer if they are long. No more are read than were yielded."""
    most = TEXTS_AHEAD if most is None else most
    window, characters = [], 0
    for i, text in enumerate(texts):
        window.append(checked_text(f"texts[{i}]", text))
        characters += len(text)
        if len(window) == most or characters >= CHARACTERS_AHEAD:
            yield window
            window, characters = [], 0
    if window:
        yield window
