"""Embeddings and a reranker for LangChain."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from langchain_core.documents import BaseDocumentCompressor
from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, PrivateAttr

from fastattn.integrations._shared_models import Embedder, Shared
from fastattn.models import CrossEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.documents import Document

__all__ = ["FastattnEmbeddings", "FastattnRerank"]


class FastattnEmbeddings(Embeddings):
    """Embeddings of a `SentenceEncoder`.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`, whose errors are raised here.
    query_prompt, document_prompt : str, optional
        Text before each query and each document. By default, the model's own prompts "query" and "document".
    truncate_dim : int, optional
        Keep so many numbers of each embedding.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.

    Notes
    -----
    Several threads may use it at once. Objects with the same folder and dtype share one model.

    Examples
    --------
    >>> from fastattn.integrations.langchain import FastattnEmbeddings
    >>> len(FastattnEmbeddings().embed_query("a question"))
    384
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
    ) -> None:
        self._embedder = Embedder(
            folder,
            dtype,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            truncate_dim=truncate_dim,
            normalize=normalize,
        )
        self._embedder.shared.warm_up()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Compute the embeddings of documents."""
        return self._embedder.documents(list(texts)).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Compute the embedding of a query."""
        return self._embedder.queries(text).tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`. Texts of calls that come at the same time are packed together."""
        return (await self._embedder.documents_async(list(texts))).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`. Texts of calls that come at the same time are packed together."""
        return (await self._embedder.queries_async(text)).tolist()


class FastattnRerank(BaseDocumentCompressor):
    """Keeps the documents that a `CrossEncoder` scores highest, for a ContextualCompressionRetriever, say.

    Parameters
    ----------
    folder, dtype
        As in `CrossEncoder.from_pretrained`, whose errors are raised here.
    top_n : int, optional
        Keep so many documents; None for all.

    Notes
    -----
    Documents are returned as copies, the highest score first, with it as "relevance_score" in their metadata. Several
    threads may use it at once. Objects with the same folder and dtype share one model.

    Examples
    --------
    >>> from langchain_core.documents import Document
    >>> from fastattn.integrations.langchain import FastattnRerank
    >>> reranker = FastattnRerank("ms-marco-MiniLM-L6-v2", top_n=1)  # doctest: +SKIP
    >>> reranker.compress_documents([Document("a text"), Document("another")], "a question")  # doctest: +SKIP
    [Document(metadata={'relevance_score': 4.1}, page_content='another')]
    """

    model_config = ConfigDict(extra="forbid")

    folder: str
    dtype: str = "float32"
    top_n: int | None = 3

    _shared: Shared[CrossEncoder] = PrivateAttr()

    def __init__(self, folder: str | os.PathLike, dtype: str = "float32", *, top_n: int | None = 3) -> None:
        super().__init__(folder=os.fspath(folder), dtype=dtype, top_n=top_n)
        self._shared = Shared(CrossEncoder, folder, dtype)
        self._shared.warm_up()

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> list[Document]:
        """Return the documents with the highest scores."""
        texts = [document.page_content for document in documents]
        ranked = self._shared.model.rank(query, texts, top_k=self.top_n, show_progress=False)
        return [_scored(documents[row["corpus_id"]], row["score"]) for row in ranked]


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
