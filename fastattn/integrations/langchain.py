"""Embeddings for LangChain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from fastattn.integrations._shared import Shared
from fastattn.models import SentenceEncoder

if TYPE_CHECKING:
    import os

__all__ = ["FastattnEmbeddings"]


class FastattnEmbeddings(Embeddings):
    """Embeddings of a `SentenceEncoder`.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`, whose errors are raised here.
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
        self, folder: str | os.PathLike | None = None, dtype: str = "float32", *, normalize: bool | None = None
    ) -> None:
        self._encoder = Shared(SentenceEncoder, folder, dtype)
        self._encoder.warm_up()
        self.normalize = normalize

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Compute the embeddings of documents."""
        return self._encode(list(texts))

    def embed_query(self, text: str) -> list[float]:
        """Compute the embedding of a query."""
        return self._encode(text)

    def _encode(self, texts: str | list[str]) -> list:
        return self._encoder.model.encode(texts, normalize=self.normalize, show_progress=False).tolist()
