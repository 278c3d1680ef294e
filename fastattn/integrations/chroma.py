"""Embedding functions for Chroma. Importing this module registers the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chromadb.api.types import Documents, EmbeddingFunction
from chromadb.utils.embedding_functions import register_embedding_function

from fastattn.integrations._shared import Shared
from fastattn.models import SentenceEncoder

if TYPE_CHECKING:
    import os
    from typing import Any

    from chromadb.api.types import Embeddings, Space

__all__ = ["FastattnDefaultEmbeddingFunction", "FastattnEmbeddingFunction"]


@register_embedding_function
class FastattnEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeddings of a `SentenceEncoder`.

    The model is read when it is first used. Chroma stores the arguments with a collection, so that ``get_collection``
    needs none in a program that has imported this module.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`. By default, the model is Chroma's own default, all-MiniLM-L6-v2.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.

    Notes
    -----
    Several threads may use it at once. Objects with the same folder and dtype share one model.

    Examples
    --------
    >>> from fastattn.integrations.chroma import FastattnEmbeddingFunction
    >>> [embedding] = FastattnEmbeddingFunction()(["A document."])
    >>> embedding.shape
    (384,)
    """

    def __init__(
        self, folder: str | os.PathLike | None = None, dtype: str = "float32", *, normalize: bool | None = None
    ) -> None:
        self._encoder = Shared(SentenceEncoder, folder, dtype)
        self.normalize = normalize

    def __call__(self, input: Documents) -> Embeddings:
        """Compute the embeddings of documents."""
        return list(self._encoder.model.encode(list(input), normalize=self.normalize, show_progress=False))

    @staticmethod
    def name() -> str:
        """Name under which Chroma stores it."""
        return "fastattn"

    def default_space(self) -> Space:
        """Distance of new collections that name none."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, as JSON can hold them."""
        return {"folder": self._encoder.folder, "dtype": self._encoder.dtype, "normalize": self.normalize}

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
    >>> made = client.create_collection("made-with-the-default")
    >>> collection = client.get_collection(
    ...     "made-with-the-default", embedding_function=FastattnDefaultEmbeddingFunction()
    ... )
    >>> collection.add(ids=["1"], documents=["A document."])
    """

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__(dtype=dtype, normalize=True)

    @staticmethod
    def name() -> str:
        """Name of Chroma's default embedding function."""
        return "default"

    def get_config(self) -> dict[str, Any]:
        """Return nothing, as Chroma's default embedding function."""
        return {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> FastattnDefaultEmbeddingFunction:
        """Make one, in float32."""
        return FastattnDefaultEmbeddingFunction()
