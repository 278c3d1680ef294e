"""Embedders for Haystack."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from haystack import Document, component, default_from_dict, default_to_dict

from fastattn.integrations._shared import Shared
from fastattn.models import SentenceEncoder

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["FastattnDocumentEmbedder", "FastattnTextEmbedder"]


class _Component:
    """What the components share: a model, and arguments that are attributes of the same names.

    `component` makes a new class of the one that it decorates, in which ``super()`` does not work.
    """

    def __init__(self, kind: type, folder: str | os.PathLike | None, dtype: str) -> None:
        self._shared = Shared(kind, folder, dtype)
        self.folder, self.dtype = self._shared.folder, dtype

    def to_dict(self) -> dict[str, Any]:
        """Return the class and its arguments, as YAML can hold them."""
        return default_to_dict(self, **{name: getattr(self, name) for name in inspect.signature(self.__init__).parameters})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> _Component:
        """Make a component from what `to_dict` returned."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Read the model; the errors are those of its class's ``from_pretrained``."""
        self._shared.warm_up()


class _Embedder(_Component):
    def __init__(
        self, folder: str | os.PathLike | None, dtype: str, normalize: bool | None, prefix: str, suffix: str
    ) -> None:
        super().__init__(SentenceEncoder, folder, dtype)
        self.normalize, self.prefix, self.suffix = normalize, prefix, suffix

    def _encode(self, texts: list[str], show_progress: bool) -> NDArray:
        texts = [f"{self.prefix}{text}{self.suffix}" for text in texts]
        return self._shared.model.encode(texts, normalize=self.normalize, show_progress=show_progress)


@component
class FastattnTextEmbedder(_Embedder):
    """Embeds a text, such as a query, by a `SentenceEncoder`.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.
    prefix, suffix : str
        Put before and behind the text.

    Notes
    -----
    The model is read by `warm_up`, else by the first run. Several threads may use it at once. Components with the same
    folder and dtype share one model.

    Examples
    --------
    >>> from fastattn.integrations.haystack import FastattnTextEmbedder
    >>> len(FastattnTextEmbedder().run("a question")["embedding"])
    384
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        normalize: bool | None = None,
        prefix: str = "",
        suffix: str = "",
    ) -> None:
        _Embedder.__init__(self, folder, dtype, normalize, prefix, suffix)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Compute the embedding of a text: ``{"embedding": list of float}``."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__} (FastattnDocumentEmbedder takes documents)")
        return {"embedding": self._encode([text], show_progress=False)[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class FastattnDocumentEmbedder(_Embedder):
    """Embeds documents by a `SentenceEncoder`.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.
    prefix, suffix : str
        Put before and behind each text.
    meta_fields_to_embed : list of str, optional
        Fields of a document's metadata whose values stand before its content in the text that is embedded.
    embedding_separator : str
        Stands between these values and the content.
    progress_bar : bool
        Show a progress bar on standard error.

    Notes
    -----
    The model is read by `warm_up`, else by the first run. Several threads may use it at once. Components with the same
    folder and dtype share one model.

    Examples
    --------
    >>> from haystack import Document
    >>> from fastattn.integrations.haystack import FastattnDocumentEmbedder
    >>> [document] = FastattnDocumentEmbedder().run([Document(content="Some text.")])["documents"]
    >>> len(document.embedding)
    384
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        normalize: bool | None = None,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
    ) -> None:
        _Embedder.__init__(self, folder, dtype, normalize, prefix, suffix)
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator
        self.progress_bar = progress_bar

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents with their embeddings: ``{"documents": list of Document}``."""
        texts = _texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        embeddings = self._encode(texts, self.progress_bar).tolist()
        return {"documents": [replace(document, embedding=x) for document, x in zip(documents, embeddings, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)


def _texts(documents: list[Document], fields: list[str], separator: str) -> list[str]:
    """The documents' contents behind the values of these fields of their metadata."""
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise TypeError(f"documents must be a list of Document, got {type(documents).__name__}")
    return [
        separator.join(
            [*(str(x.meta[field]) for field in fields if x.meta.get(field) is not None), x.content or ""]
        )
        for x in documents
    ]
