"""Embeddings for LangChain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from fastattn.integrations._shared_models import Embedder

if TYPE_CHECKING:
    import os

__all__ = ["FastattnEmbeddings"]


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
