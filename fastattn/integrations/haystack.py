"""Embedders and a ranker for Haystack."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from haystack import Document, component, default_from_dict, default_to_dict

from fastattn.integrations._shared_models import Embedder, Shared
from fastattn.models import CrossEncoder

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["FastattnDocumentEmbedder", "FastattnRanker", "FastattnTextEmbedder"]


class _Component:
    """What the components share: a model, and arguments that are attributes of the same names.

    `component` makes a new class of the one that it decorates, in which ``super()`` does not work.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.folder, self.dtype = shared.folder, shared.dtype

    def to_dict(self) -> dict[str, Any]:
        """Return the class and its arguments, as YAML can hold them."""
        return default_to_dict(
            self, **{name: getattr(self, name) for name in inspect.signature(self.__init__).parameters}
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> _Component:
        """Make a component from what `to_dict` returned."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Read the model; the errors are those of its class's ``from_pretrained``."""
        self._shared.warm_up()


@component
class FastattnTextEmbedder(_Component):
    """Embeds a text, such as a query, by a `SentenceEncoder`.

    ``run(text)`` returns ``{"embedding": list of float}``.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`.
    prefix : str, optional
        Text before the text. By default, the model's own prompt "query".
    suffix : str
        Text behind the text.
    truncate_dim : int, optional
        Keep so many numbers of the embedding.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.

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
        prefix: str | None = None,
        suffix: str = "",
        truncate_dim: int | None = None,
        normalize: bool | None = None,
    ) -> None:
        self._embedder = Embedder(folder, dtype, query_prompt=prefix, truncate_dim=truncate_dim, normalize=normalize)
        _Component.__init__(self, self._embedder.shared)
        self.prefix, self.suffix, self.truncate_dim, self.normalize = prefix, suffix, truncate_dim, normalize

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Compute the embedding of a text: ``{"embedding": list of float}``."""
        return {"embedding": self._embedder.queries(self._with_suffix(text)).tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`. Texts of calls that come at the same time are packed together."""
        return {"embedding": (await self._embedder.queries_async(self._with_suffix(text))).tolist()}

    def _with_suffix(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__} (FastattnDocumentEmbedder takes documents)")
        return text + self.suffix


@component
class FastattnDocumentEmbedder(_Component):
    """Embeds documents by a `SentenceEncoder`.

    ``run(documents)`` returns ``{"documents": list of Document}``, copies with their embeddings.

    Parameters
    ----------
    folder, dtype
        As in `SentenceEncoder.from_pretrained`.
    prefix : str, optional
        Text before each text. By default, the model's own prompt "document".
    suffix : str
        Text behind each text.
    truncate_dim : int, optional
        Keep so many numbers of each embedding.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.
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
        prefix: str | None = None,
        suffix: str = "",
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
    ) -> None:
        self._embedder = Embedder(folder, dtype, document_prompt=prefix, truncate_dim=truncate_dim, normalize=normalize)
        _Component.__init__(self, self._embedder.shared)
        self.prefix, self.suffix, self.truncate_dim, self.normalize = prefix, suffix, truncate_dim, normalize
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator
        self.progress_bar = progress_bar

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents with their embeddings: ``{"documents": list of Document}``."""
        return _embedded(documents, self._embedder.documents(self._texts(documents), self.progress_bar))

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`, without a progress bar. Texts of calls that come at the same time are packed together."""
        return _embedded(documents, await self._embedder.documents_async(self._texts(documents)))

    def _texts(self, documents: list[Document]) -> list[str]:
        texts = _texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        return [text + self.suffix for text in texts]


@component
class FastattnRanker(_Component):
    """Sorts documents by the score of a `CrossEncoder` and keeps the best.

    ``run(query, documents, top_k=None, score_threshold=None)`` returns ``{"documents": list of Document}``, copies with
    their scores, the highest first. The last two arguments replace those of the component.

    Parameters
    ----------
    folder, dtype
        As in `CrossEncoder.from_pretrained`.
    top_k : int, optional
        Keep so many documents; None for all.
    score_threshold : float, optional
        Keep documents with at least this score.
    query_prefix : str, optional
        Text before the query. By default, the model's own default prompt.
    meta_fields_to_embed : list of str, optional
        Fields of a document's metadata whose values stand before its content in the text that is scored.
    embedding_separator : str
        Stands between these values and the content.

    Notes
    -----
    The model is read by `warm_up`, else by the first run. Several threads may use it at once. Components with the same
    folder and dtype share one model.

    Examples
    --------
    >>> from haystack import Document
    >>> from fastattn.integrations.haystack import FastattnRanker
    >>> ranker = FastattnRanker("ms-marco-MiniLM-L6-v2", top_k=1)  # doctest: +SKIP
    >>> ranker.run("a question", [Document(content="a text"), Document(content="another")])  # doctest: +SKIP
    {'documents': [Document(id=..., content: 'another', score: 4.1)]}
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        dtype: str = "float32",
        *,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        query_prefix: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        _Component.__init__(self, Shared(CrossEncoder, folder, dtype))
        self.top_k, self.score_threshold, self.query_prefix = top_k, score_threshold, query_prefix
        self.meta_fields_to_embed, self.embedding_separator = meta_fields_to_embed or [], embedding_separator

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, Any]:
        """Score each document once, however often it is given, and return the best."""
        texts = _texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        by_id = {document.id: (document, text) for document, text in zip(documents, texts, strict=True)}
        documents, texts = [document for document, _ in by_id.values()], [text for _, text in by_id.values()]
        top_k = self.top_k if top_k is None else top_k
        least = self.score_threshold if score_threshold is None else score_threshold
        ranked = self._shared.model.rank(query, texts, top_k=top_k, prompt=self.query_prefix, show_progress=False)
        return {
            "documents": [
                replace(documents[row["corpus_id"]], score=row["score"])
                for row in ranked
                if least is None or row["score"] >= least
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None, score_threshold: float | None = None
    ) -> dict[str, Any]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k, score_threshold)


def _texts(documents: list[Document], fields: list[str], separator: str) -> list[str]:
    """The documents' contents behind the values of these fields of their metadata."""
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise TypeError(f"documents must be a list of Document, got {type(documents).__name__}")
    values = ([str(x.meta[field]) for field in fields if x.meta.get(field) is not None] for x in documents)
    return [separator.join([*of, x.content or ""]) for of, x in zip(values, documents, strict=True)]


def _embedded(documents: list[Document], embeddings: NDArray) -> dict[str, Any]:
    pairs = zip(documents, embeddings.tolist(), strict=True)
    return {"documents": [replace(document, embedding=embedding) for document, embedding in pairs]}
