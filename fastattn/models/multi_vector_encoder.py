"""MultiVectorEncoder: texts to a vector for each token, compared by MaxSim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn import _arguments
from fastattn.models import late_interaction
from fastattn.models.backbone import Backbone
from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import read_configuration
from fastattn.models.inputs import cumulated, gathered
from fastattn.models.multi_vector_files import read_files
from fastattn.models.packs import packs
from fastattn.models.pretrained import Pretrained
from fastattn.models.progress import Progress
from fastattn.models.tokens import Tokens, checked_texts
from fastattn.models.units import unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fastattn.models.inputs import Packed

QUERY, DOCUMENT = "query", "document"


class MultiVectorEncoder(Pretrained):
    """An encoder with a vector for each token (ColBERT), made by `from_pretrained`.

    It is immutable: several threads may use it at once. Letters: D size of a vector.

    Attributes
    ----------
    embedding_size : int
        Size of a vector, D.
    similarity_fn_name : {"maxsim", "meanmaxsim"}
        What `similarity` computes.
    query_length, document_length : int
        Maximum number of tokens of a query and of a document; longer ones are truncated.
    max_length : int
        Maximum number of tokens of a text that `encode` gets without a task.
    hidden_size : int
        Hidden size.
    num_layers, num_heads : int
        Number of layers, and of heads in each.
    dtype : str
        Dtype of the layers' weights.

    Notes
    -----
    Khattab and Zaharia, "ColBERT" (2020); Santhanam et al., "ColBERTv2" (2022). The class of the same name in
    sentence-transformers is the definition. Folders of sentence-transformers, PyLate and Stanford's ColBERT are read,
    and that of BGE-M3 if its head is stored as colbert_linear.safetensors.

    Queries may be filled up with mask tokens, which are scored like words; whether words attend to them is the folder's
    choice. Vectors of punctuation in documents may be dropped.

    Examples
    --------
    >>> from fastattn.models import MultiVectorEncoder
    >>> model = MultiVectorEncoder.from_pretrained("colbertv2.0")  # doctest: +SKIP
    >>> documents = model.encode_document(["Berlin has museums.", "3.7 million live there."])  # doctest: +SKIP
    >>> model.similarity(model.encode_query(["museums in Berlin"]), documents)  # doctest: +SKIP
    array([[28.1, 12.7]], dtype=float32)
    """

    __slots__ = ("_by_task", "_files", "_filler", "_skipped")

    def __init__(self, folder: Path, dtype: str, pack: bool) -> None:
        files = read_files(folder)
        configuration = read_configuration(files.transformer, files.sentences.configuration)
        checkpoint = Checkpoint(files.transformer)
        self._backbone = Backbone(configuration, checkpoint, dtype, pack)
        size = configuration.hidden
        for layer in files.dense:
            if layer.weight.shape[1] != size:
                raise ValueError(f"{folder}: in_features of a Dense must be {size}, got {layer.weight.shape[1]}")
            size = len(layer.weight)
        self._files = files
        self._tokens = Tokens(files, configuration, marks=files.marks)
        lengths, expansion = files.lengths, files.lengths.expansion
        query = expansion.length if expansion is not None and expansion.fixed else lengths.query
        self._by_task = {
            None: self._tokens,
            QUERY: self._tokens.limited(query),
            DOCUMENT: self._tokens.limited(lengths.document),
        }
        if expansion is not None and expansion.length > configuration.max_length:
            raise ValueError(
                f"{folder}: query_expansion.length must be at most {configuration.max_length}, the number of "
                f"positions, got {expansion.length}"
            )
        self._filler = None if expansion is None else self._tokens.filler(expansion.token)
        self._skipped = self._tokens.ids(files.skipped)
        checkpoint.forget_pages()

    def __repr__(self) -> str:
        return self._described(embedding_size=self.embedding_size)

    @property
    def embedding_size(self) -> int:  # noqa: D102 (described in the class's docstring)
        return len(self._files.dense[-1].weight) if self._files.dense else self.hidden_size

    @property
    def similarity_fn_name(self) -> str:  # noqa: D102 (described in the class's docstring)
        return "meanmaxsim" if self._files.mean else "maxsim"

    @property
    def query_length(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._by_task[QUERY].max_length

    @property
    def document_length(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._by_task[DOCUMENT].max_length

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> list[NDArray[np.float32]] | NDArray[np.float32]:
        """Compute vectors for texts that are neither queries nor documents; for those see the methods below.

        Parameters
        ----------
        texts : str or iterable of str
        prompt : str, optional
            Text before each text.
        prompt_name : str, optional
            The name of a prompt of the folder. By default, the folder's own default prompt, if it has one.
        normalize : bool
            Scale vectors to length 1, which most folders ask for anyway.
        batch_size : int, optional
            Maximum number of texts that go through the layers together. By default, as many as have 4096 tokens in
            total. Vectors do not depend on it.
        show_progress : bool, optional
            Show a progress bar on standard error. By default, only on a terminal, after two seconds.
        num_threads : int, optional
            Maximum number of threads for the model; see `fastattn.set_num_threads`.

        Returns
        -------
        list of ndarray, shape (tokens, D)
            float32, in the order of the texts; one array for a str.

        Raises
        ------
        TypeError
            `texts` is neither a str nor an iterable of str, or another argument is of the wrong type.
        ValueError
            `batch_size` is less than 1, there is no prompt of that name, a text is not valid Unicode, the tokenizer
            fails or gives a token that the model does not have, or a sum exceeds 65504 in float16.

        Examples
        --------
        >>> from fastattn.models import MultiVectorEncoder
        >>> model = MultiVectorEncoder.from_pretrained("colbertv2.0")  # doctest: +SKIP
        >>> model.encode_query("museums in Berlin").shape  # doctest: +SKIP
        (32, 128)
        """
        return self._encoded(None, texts, prompt, prompt_name, normalize, batch_size, show_progress, num_threads)

    def encode_query(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> list[NDArray[np.float32]] | NDArray[np.float32]:
        """Compute vectors for queries: with the prompt "query", truncated and filled up as the folder says.

        Parameters and results are those of `encode`.
        """
        return self._encoded(QUERY, texts, prompt, prompt_name, normalize, batch_size, show_progress, num_threads)

    def encode_document(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> list[NDArray[np.float32]] | NDArray[np.float32]:
        """Compute vectors for documents: with the prompt "document", truncated, without what the folder drops.

        Parameters and results are those of `encode`.
        """
        return self._encoded(DOCUMENT, texts, prompt, prompt_name, normalize, batch_size, show_progress, num_threads)

    def similarity(
        self, embeddings1: Sequence[NDArray], embeddings2: Sequence[NDArray], *, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """Compute the score of each query with each document.

        Parameters
        ----------
        embeddings1, embeddings2 : list of ndarray, shape (tokens, D)
            Of N queries and M documents; an array of two axes is one of them.
        num_threads : int, optional
            Maximum number of threads; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (N, M)
            For each vector of a query the largest scalar product with a vector of the document, summed over the query's
            vectors (or their mean, by `similarity_fn_name`). A document without vectors scores -1e9.

        Raises
        ------
        TypeError
            They are no lists of floating-point arrays.
        ValueError
            Their vectors are of different sizes.

        Examples
        --------
        >>> import numpy as np
        >>> from fastattn.models import MultiVectorEncoder
        >>> model = MultiVectorEncoder.from_pretrained("colbertv2.0")  # doctest: +SKIP
        >>> query, document = np.eye(4, 128, dtype=np.float32), np.eye(3, 128, dtype=np.float32)
        >>> model.similarity([query], [document])  # doctest: +SKIP
        array([[3.]], dtype=float32)
        """
        queries = late_interaction.checked("embeddings1", embeddings1)
        documents = late_interaction.checked("embeddings2", embeddings2)
        return late_interaction.maxsim(queries, documents, mean=self._files.mean, num_threads=num_threads)

    def similarity_pairwise(
        self, embeddings1: Sequence[NDArray], embeddings2: Sequence[NDArray], *, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """Compute the score of the i-th query with the i-th document, (N,), as `similarity` does.

        Raises
        ------
        TypeError
            They are no lists of floating-point arrays.
        ValueError
            They are not as many, or their vectors are of different sizes.
        """
        queries = late_interaction.checked("embeddings1", embeddings1)
        documents = late_interaction.checked("embeddings2", embeddings2)
        return late_interaction.maxsim_pairwise(queries, documents, mean=self._files.mean, num_threads=num_threads)

    def _encoded(
        self,
        task: str | None,
        texts: str | Iterable[str],
        prompt: str | None,
        prompt_name: str | None,
        normalize: bool,
        batch_size: int | None,
        show_progress: bool | None,
        num_threads: int | None,
    ) -> Any:
        most = None if batch_size is None else _arguments.at_least_one("batch_size", batch_size)
        normalize = _arguments.flag("normalize", normalize)
        chosen = self._files.prompts.chosen(prompt, prompt_name, task)
        ids, cu_seqlens = self._by_task[task](checked_texts(texts), chosen)
        lengths = attended = np.diff(cu_seqlens)
        if task == QUERY and self._filler is not None:
            ids, cu_seqlens = _filled(ids, cu_seqlens, self._files.lengths.expansion.length, self._filler)
            lengths = np.diff(cu_seqlens)
            attended = lengths if self._files.lengths.expansion.attended else attended
        vectors: list[Any] = [None] * len(lengths)
        with Progress(len(lengths), show_progress) as progress:
            for pack in packs(np.argsort(-lengths, kind="stable"), lengths, most):
                packed = gathered(self._backbone.configuration, ids, cu_seqlens[pack], lengths[pack])
                if attended is not lengths:
                    packed = packed._replace(attended=attended[pack])
                scored = self._scored(task, packed)
                x = self._projected(self._backbone(packed, num_threads)[scored], normalize)
                ends = np.concatenate([[0], np.cumsum(scored)])[packed.cu_seqlens[1:-1]]
                for i, rows in zip(pack.tolist(), np.split(x, ends), strict=True):
                    vectors[i] = rows
                progress.add(len(pack))
        return vectors[0] if isinstance(texts, str) else vectors

    def _scored(self, task: str | None, packed: Packed) -> NDArray:
        """Which tokens are compared."""
        ids, lengths = packed.ids, np.diff(packed.cu_seqlens)
        scored = np.arange(len(ids)) - np.repeat(packed.cu_seqlens[:-1], lengths) >= self._files.unscored
        if (task or DOCUMENT) in self._files.skipped_tasks:
            scored &= ~np.isin(ids, self._skipped)
        if task != QUERY and self._files.kept_ids:
            scored &= np.isin(ids, self._files.kept_ids)
        return scored

    def _projected(self, x: NDArray, normalize: bool) -> NDArray[np.float32]:
        """Vectors of hidden states."""
        for layer in self._files.dense:
            x = layer(x)
        if self._files.normalize or normalize:
            x = unit(x)
        return x


def _filled(ids: NDArray, cu_seqlens: NDArray, length: int, filler: int) -> tuple[NDArray, NDArray]:
    """Token ids and cumulative lengths of texts that are filled up to a length."""
    lengths = np.diff(cu_seqlens)
    filled = cumulated(np.maximum(lengths, length))
    more = np.full(filled[-1], filler)
    more[np.arange(len(ids)) + np.repeat(filled[:-1] - cu_seqlens[:-1], lengths)] = ids
    return more, filled
