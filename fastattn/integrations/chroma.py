"""Embedding functions for Chroma. Importing this module registers FastattnEmbeddingFunction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chromadb.api.types import Documents, EmbeddingFunction
from chromadb.utils.embedding_functions import register_embedding_function

from fastattn.integrations._shared_models import Embedder

if TYPE_CHECKING:
    import os
    from typing import Any

    from chromadb.api.types import Embeddings, Space

__all__ = ["FastattnDefaultEmbeddingFunction", "FastattnEmbeddingFunction"]


@register_embedding_function
class FastattnEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeddings of a `SentenceEncoder`.

    Chroma stores the arguments with a collection. A program that has imported this module can open the collection
    without naming the embedding function.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`. The default folder holds Chroma's own default model, all-MiniLM-L6-v2.
    query_prompt, document_prompt : str, optional
        Text before each query and each document. By default, the model's own prompts "query" and "document".
    truncate_dim : int, optional
        Keep so many numbers of each embedding.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.

    Notes
    -----
    The model is read by the first call. Several threads may use it at once. Objects with the same folder and dtype
    share one model.

    Examples
    --------
    >>> from fastattn.integrations.chroma import FastattnEmbeddingFunction
    >>> [embedding] = FastattnEmbeddingFunction()(["A document."])
    >>> embedding.shape
    (384,)
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
        options = {
            "query_prompt": query_prompt,
            "document_prompt": document_prompt,
            "truncate_dim": truncate_dim,
            "normalize": normalize,
        }
        self._embedder = Embedder(folder, dtype, **options)
        self._config = {"folder": self._embedder.shared.folder, "dtype": dtype, **options}

    def __call__(self, input: Documents) -> Embeddings:
        """Compute the embeddings of documents."""
        return list(self._embedder.documents(list(input)))

    def embed_query(self, input: Documents) -> Embeddings:
        """Compute the embeddings of queries."""
        return list(self._embedder.queries(list(input)))

    @staticmethod
    def name() -> str:
        """Name under which Chroma stores it."""
        return "fastattn"

    def default_space(self) -> Space:
        """Distance in new collections that name none."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, as JSON can hold them."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> FastattnEmbeddingFunction:
        """Make one from these arguments."""
        return FastattnEmbeddingFunction(**config)


class FastattnDefaultEmbeddingFunction(FastattnEmbeddingFunction):
    """Embeddings of all-MiniLM-L6-v2 for collections that were made with Chroma's default embedding function.

    Chroma opens a collection only with an embedding function of the name that it was made with. This one has the name
    and the model of Chroma's default, so it continues its collections; those that it makes can be opened without
    fastattn.

    Parameters
    ----------
    dtype
        As in `SentenceEncoder.from_pretrained`.

    Examples
    --------
    >>> import chromadb
    >>> from fastattn.integrations.chroma import FastattnDefaultEmbeddingFunction
    >>> client = chromadb.EphemeralClient()
    >>> _ = client.get_or_create_collection("made-with-the-default")
    >>> fast = FastattnDefaultEmbeddingFunction()
    >>> collection = client.get_collection("made-with-the-default", embedding_function=fast)
    >>> collection.add(ids=["1"], documents=["A document."])
    """

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__(dtype=dtype)
        self._config = {}  # as Chroma's own

    @staticmethod
    def name() -> str:
        """Name of Chroma's default embedding function."""
        return "default"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> FastattnDefaultEmbeddingFunction:
        """Make one in float32."""
        return FastattnDefaultEmbeddingFunction()
