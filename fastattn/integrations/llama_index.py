"""Embeddings and a reranker for LlamaIndex."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore

from fastattn.integrations._shared_models import Embedder, Shared
from fastattn.models import CrossEncoder

if TYPE_CHECKING:
    from typing import Any

    from llama_index.core.base.embeddings.base import Embedding
    from llama_index.core.schema import QueryBundle

__all__ = ["FastattnEmbedding", "FastattnRerank"]

# Texts of a call. The encoder packs them by their tokens; LlamaIndex's own default, 10, leaves it too few to sort.
BATCH = 512


class FastattnEmbedding(BaseEmbedding):
    """Embeddings of a `SentenceEncoder`.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`, whose errors are raised here.
    query_instruction, text_instruction : str, optional
        Text before each query and each document. By default, the model's own prompts "query" and "document".
    truncate_dim : int, optional
        Keep so many numbers of each embedding.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.
    embed_batch_size : int
        Maximum number of texts in a call of the encoder, which packs them by tokens.
    **kwargs
        Those of BaseEmbedding.

    Notes
    -----
    Texts of asynchronous calls that come at the same time are packed together. Several threads may use it at once.
    Objects with the same folder and dtype share one model.

    Examples
    --------
    >>> from fastattn.integrations.llama_index import FastattnEmbedding
    >>> len(FastattnEmbedding().get_query_embedding("a question"))
    384
    """

    folder: str | None = Field(default=None, description="The model's folder; all-MiniLM-L6-v2 by default.")
    dtype: str = Field(default="float32", description="Dtype of the layers' weights.")
    query_instruction: str | None = Field(default=None, description="Text before each query.")
    text_instruction: str | None = Field(default=None, description="Text before each document.")
    truncate_dim: int | None = Field(default=None, description="Number of components that are kept.")
    normalize: bool | None = Field(default=None, description="Scale embeddings to length 1.")

    _embedder: Embedder = PrivateAttr()

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        query_instruction: str | None = None,
        text_instruction: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        embed_batch_size: int = BATCH,
        **kwargs: Any,
    ) -> None:
        folder = None if folder is None else os.fspath(folder)
        super().__init__(
            folder=folder,
            dtype=dtype,
            query_instruction=query_instruction,
            text_instruction=text_instruction,
            truncate_dim=truncate_dim,
            normalize=normalize,
            embed_batch_size=embed_batch_size,
            **{"model_name": folder or "all-MiniLM-L6-v2"} | kwargs,
        )
        self._embedder = Embedder(
            folder,
            dtype,
            query_prompt=query_instruction,
            document_prompt=text_instruction,
            truncate_dim=truncate_dim,
            normalize=normalize,
        )
        self._embedder.shared.warm_up()

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in what LlamaIndex stores."""
        return "FastattnEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embedder.queries(query).tolist()

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._embedder.queries_async(query)).tolist()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embedder.documents(text).tolist()

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._embedder.documents_async(text)).tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embedder.documents(texts).tolist()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return (await self._embedder.documents_async(texts)).tolist()


class FastattnRerank(BaseNodePostprocessor):
    """Keeps the nodes that a `CrossEncoder` scores highest.

    Parameters
    ----------
    folder, dtype
        As in `CrossEncoder.from_pretrained`, whose errors are raised here.
    top_n : int
        Keep so many nodes.
    **kwargs
        Those of BaseNodePostprocessor.

    Notes
    -----
    What is scored is a node's text with the metadata that is meant for embeddings. Asynchronous methods run the model
    in a thread. Several threads may use it at once. Objects with the same folder and dtype share one model.

    Examples
    --------
    >>> from fastattn.integrations.llama_index import FastattnRerank
    >>> reranker = FastattnRerank("ms-marco-MiniLM-L6-v2", top_n=3)  # doctest: +SKIP
    >>> engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[reranker])  # doctest: +SKIP
    """

    folder: str = Field(description="The model's folder.")
    dtype: str = Field(default="float32", description="Dtype of the layers' weights.")
    top_n: int = Field(default=2, description="Number of nodes that are kept.", gt=0)

    _shared: Shared[CrossEncoder] = PrivateAttr()

    def __init__(self, folder: str | os.PathLike, dtype: str = "float32", *, top_n: int = 2, **kwargs: Any) -> None:
        super().__init__(folder=os.fspath(folder), dtype=dtype, top_n=top_n, **kwargs)
        self._shared = Shared(CrossEncoder, folder, dtype)
        self._shared.warm_up()

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in what LlamaIndex stores."""
        return "FastattnRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("query_bundle or query_str must be given")
        query = query_bundle.query_str
        asked = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.folder,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=asked) as event:
            texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
            ranked = self._shared.model.rank(query, texts, top_k=self.top_n, show_progress=False)
            found = [NodeWithScore(node=nodes[row["corpus_id"]].node, score=row["score"]) for row in ranked]
            event.on_end(payload={EventPayload.NODES: found})
        return found
