"""SparseEncoder: texts to a weight for each word of the vocabulary, most of them zero."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn import _arguments
from fastattn.models import sparse_vectors
from fastattn.models.bge_m3 import SPARSE, has_head
from fastattn.models.folders import read_json
from fastattn.models.pretrained import Pretrained
from fastattn.models.progress import Progress
from fastattn.models.prompts import read_prompts
from fastattn.models.recognition import check_family
from fastattn.models.sentences import limit
from fastattn.models.sparse_routes import DOCUMENT, QUERY, read_routes
from fastattn.models.tokens import checked_texts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_SIMILARITIES = ("dot", "cosine")


class SparseEncoder(Pretrained):
    """A sparse encoder (SPLADE), made by `from_pretrained`: a text becomes weights of words, most of them zero.

    It is immutable: several threads may use it at once. Letters: N texts, V size of the vocabulary.

    Attributes
    ----------
    embedding_size : int
        Size of the vocabulary, V.
    max_active_dims : int or None
        Maximum number of weights of a text, if the folder sets one.
    similarity_fn_name : {"dot", "cosine"}
        What `similarity` computes.
    max_length : int
        Maximum number of tokens; longer texts are truncated.
    hidden_size : int
        Hidden size.
    num_layers, num_heads : int
        Number of layers, and of heads in each.
    dtype : str
        Dtype of the weights of layers and head.

    Notes
    -----
    Formal et al., "SPLADE v2" (2021); Geng et al., "Towards Competitive Search Relevance For Inference-Free Learned
    Sparse Retrievers" (2024). The class of the same name in sentence-transformers is the definition. It reads the heads
    of transformers' ``...ForMaskedLM`` with a SpladePooling, and a Router whose queries have a SparseStaticEmbedding:
    weights of words that are looked up, without a model. It also reads BGE-M3's sparse head, if that is stored as
    sparse_linear.safetensors.

    The logits of a text, tokens × V, are computed and pooled in pieces of 1 MB.

    Examples
    --------
    >>> from fastattn.models import SparseEncoder
    >>> model = SparseEncoder.from_pretrained("splade-cocondenser-ensembledistil")  # doctest: +SKIP
    >>> documents = model.encode_document(["Berlin has museums.", "3.7 million live there."])  # doctest: +SKIP
    >>> model.similarity(model.encode_query("museums in Berlin"), documents)  # doctest: +SKIP
    array([[18.2,  1.5]], dtype=float32)
    """

    __slots__ = ("_prompts", "_routes", "max_active_dims", "similarity_fn_name")

    def __init__(self, folder: Path, dtype: str, pack: bool) -> None:
        path = folder / "config_sentence_transformers.json"
        saved = read_json(path, dict, default={}) if (folder / "modules.json").exists() else {}
        if not has_head(folder, SPARSE):  # else the files of sentence-transformers are those of its dense embeddings
            check_family(folder, saved, "SparseEncoder")
        self._prompts = read_prompts(path, saved)
        self.max_active_dims = limit(path, "max_active_dims", saved)
        function = None if has_head(folder, SPARSE) else saved.get("similarity_fn_name")
        self.similarity_fn_name = function or _SIMILARITIES[0]
        if self.similarity_fn_name not in _SIMILARITIES:
            known = " or ".join(_SIMILARITIES)
            raise ValueError(f"{path}: similarity_fn_name must be {known}, got {self.similarity_fn_name!r}")
        self._routes = read_routes(folder, dtype, pack)
        models = [route for route in self._routes.by_task.values() if route.backbone is not None]
        if not models:
            raise ValueError(f"{folder} must hold a Transformer for queries or documents, got none")
        self._backbone, self._tokens = models[-1].backbone, models[-1].tokens

    def __repr__(self) -> str:
        return self._described(embedding_size=self.embedding_size)

    @property
    def embedding_size(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._routes.default.size

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_active_dims: int | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Compute the weights of words for texts.

        Parameters
        ----------
        texts : str or iterable of str
        prompt : str, optional
            Text before each text.
        prompt_name : str, optional
            The name of a prompt of the folder. By default, the folder's own default prompt, if it has one.
        max_active_dims : int, optional
            Keep only so many weights of each text, the largest. By default, what the folder says, or all.
        batch_size : int, optional
            Maximum number of texts that go through the layers together. By default, as many as have 4096 tokens in
            total. Weights do not depend on it.
        show_progress : bool, optional
            Show a progress bar on standard error. By default, only on a terminal, after two seconds.
        num_threads : int, optional
            Maximum number of threads for the model; see `fastattn.set_num_threads`.

        Returns
        -------
        scipy.sparse.csr_array, shape (N, V), or SparseVectors
            float32, in the order of the texts, one row for a str; `SparseVectors` where SciPy is not installed.

        Raises
        ------
        TypeError
            `texts` is neither a str nor an iterable of str, or another argument is of the wrong type.
        ValueError
            `batch_size` or `max_active_dims` is less than 1, there is no prompt of that name, a text is not valid
            Unicode, the tokenizer fails or gives a token that the model does not have, or a sum exceeds 65504 in
            float16.

        Examples
        --------
        >>> from fastattn.models import SparseEncoder
        >>> model = SparseEncoder.from_pretrained("splade-cocondenser-ensembledistil")  # doctest: +SKIP
        >>> model.encode(["A sentence.", ""]).shape  # doctest: +SKIP
        (2, 30522)
        """
        return self._encoded(None, texts, prompt, prompt_name, max_active_dims, batch_size, show_progress, num_threads)

    def encode_query(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_active_dims: int | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Compute the weights of words for queries: `encode` with the prompt "query", by the route of queries.

        Parameters and results are those of `encode`.
        """
        return self._encoded(QUERY, texts, prompt, prompt_name, max_active_dims, batch_size, show_progress, num_threads)

    def encode_document(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_active_dims: int | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Compute the weights of words for documents: `encode` with the prompt "document", by the route of documents.

        Parameters and results are those of `encode`.
        """
        return self._encoded(
            DOCUMENT, texts, prompt, prompt_name, max_active_dims, batch_size, show_progress, num_threads
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Compute the similarity of each embedding of one collection to each of another.

        Parameters
        ----------
        embeddings1, embeddings2 : sparse array of shape (N, V) and (M, V)
            As `encode` returns them.

        Returns
        -------
        ndarray, shape (N, M)
            Scalar products, or cosines if the folder says so.

        Raises
        ------
        TypeError
            They are not sparse.
        ValueError
            Their sizes differ.
        """
        x, y = sparse_vectors.checked("embeddings1", embeddings1), sparse_vectors.checked("embeddings2", embeddings2)
        if self.similarity_fn_name == "cosine":
            x, y = sparse_vectors.unit(x), sparse_vectors.unit(y)
        return sparse_vectors.dot(x, y)

    def decode(self, embeddings: Any, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """Return the words of embeddings with their weights, the largest first.

        Parameters
        ----------
        embeddings : sparse array, shape (N, V)
            As `encode` returns it.
        top_k : int, optional
            Return only so many words of each.

        Returns
        -------
        list of list of (str, float)

        Raises
        ------
        TypeError
            `embeddings` are not sparse.
        ValueError
            They are not of the size of this vocabulary, or `top_k` is less than 1.
        """
        count = None if top_k is None else _arguments.at_least_one("top_k", top_k)
        x = sparse_vectors.checked("embeddings", embeddings)
        if x.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings must have shape (N, {self.embedding_size}), got shape {x.shape}")
        found = []
        for first, last in pairwise(x.indptr):
            order = first + np.argsort(-x.data[first:last], kind="stable")[:count]
            words = self._tokens.strings(x.indices[order])
            found.append(list(zip(words, x.data[order].tolist(), strict=True)))
        return found

    def _encoded(
        self,
        task: str | None,
        texts: str | Iterable[str],
        prompt: str | None,
        prompt_name: str | None,
        max_active_dims: int | None,
        batch_size: int | None,
        show_progress: bool | None,
        num_threads: int | None,
    ) -> Any:
        most = None if batch_size is None else _arguments.at_least_one("batch_size", batch_size)
        active = self.max_active_dims
        if max_active_dims is not None:
            active = _arguments.at_least_one("max_active_dims", max_active_dims)
        chosen = self._prompts.chosen(prompt, prompt_name, task)
        route = self._routes.default if task is None else self._routes.by_task.get(task)
        if route is None:
            raise ValueError(f"the model must have a route for a {task}, got {', '.join(self._routes.by_task)} alone")
        listed, parts, order = checked_texts(texts), [], [np.empty(0, np.int64)]
        with Progress(len(listed), show_progress) as progress:
            for numbers, rows in route(listed, chosen, most, active, num_threads):
                parts.append(rows)
                order.append(numbers)
                progress.add(len(numbers))
        return sparse_vectors.joined(parts, np.concatenate(order), route.size)
