"""Embeddings for LlamaIndex."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from fastattn.integrations._shared import Shared
from fastattn.models import SentenceEncoder

if TYPE_CHECKING:
    from typing import Any

    from llama_index.core.base.embeddings.base import Embedding

__all__ = ["FastattnEmbedding"]

# Texts of a call. The encoder packs them by their tokens; LlamaIndex's own default, 10, leaves it too few to sort.
BATCH = 512


class FastattnEmbedding(BaseEmbedding):
    """Embeddings of a `SentenceEncoder`.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`, whose errors are raised here.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.
    embed_batch_size : int
        Maximum number of texts in a call of the encoder, which packs them by tokens.
    **kwargs
        Those of BaseEmbedding.

    Notes
    -----
    Asynchronous methods run the model in a thread. Several threads may use it at once. Objects with the same folder and
    dtype share one model.

    Examples
    --------
    >>> from fastattn.integrations.llama_index import FastattnEmbedding
    >>> len(FastattnEmbedding().get_query_embedding("a question"))
    384
    """

    folder: str | None = Field(default=None, description="The model's folder; all-MiniLM-L6-v2 by default.")
    dtype: str = Field(default="float32", description="Dtype of the layers' weights.")
    normalize: bool | None = Field(default=None, description="Scale embeddings to length 1.")

    _encoder: Shared[SentenceEncoder] = PrivateAttr()

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        normalize: bool | None = None,
        embed_batch_size: int = BATCH,
        **kwargs: Any,
    ) -> None:
        encoder = Shared(SentenceEncoder, folder, dtype)
        kwargs = {"model_name": encoder.folder or "all-MiniLM-L6-v2"} | kwargs
        super().__init__(
            folder=encoder.folder, dtype=dtype, normalize=normalize, embed_batch_size=embed_batch_size, **kwargs
        )
        self._encoder = encoder
        encoder.warm_up()

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in what LlamaIndex stores."""
        return "FastattnEmbedding"

    def _encode(self, texts: str | list[str]) -> Any:
        return self._encoder.model.encode(texts, normalize=self.normalize, show_progress=False).tolist()

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._encode(query)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._encode(text)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._encode(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
