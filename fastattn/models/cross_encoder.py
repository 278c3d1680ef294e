"""CrossEncoder: pairs of texts to scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn import _arguments
from fastattn.models.backbone import Backbone
from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import read_configuration
from fastattn.models.folders import read_json
from fastattn.models.heads import read_classifier
from fastattn.models.inputs import gathered
from fastattn.models.modules import listed_modules
from fastattn.models.packs import packs
from fastattn.models.pooling import sigmoid
from fastattn.models.pretrained import Pretrained
from fastattn.models.progress import Progress
from fastattn.models.prompts import Prompts, read_prompts
from fastattn.models.recognition import check_family, known_architecture
from fastattn.models.sentences import Sentences, read_sentences
from fastattn.models.tokens import Tokens, checked_pairs, checked_text, checked_texts
from fastattn.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Activations of logits, by the last part of PyTorch's names and by ours.
ACTIVATIONS: dict[str, Activation] = {
    "Identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": sigmoid,
    "Softmax": lambda x: softmax(x, axis=-1),
    "Tanh": np.tanh,
}
_BY_NAME = {name.lower(): function for name, function in ACTIVATIONS.items()}


class _Folder(NamedTuple):
    """The files of sentence-transformers in a cross-encoder's folder."""

    transformer: Path  # where config.json, model.safetensors and tokenizer.json are
    sentences: Sentences
    prompts: Prompts
    activation: tuple[Path, str] | None  # (the file that names one, the name)

    @property
    def prompt(self) -> str:
        """The default prompt."""
        return self.prompts.default


class CrossEncoder(Pretrained):
    """A model that reads a query and a document together and scores the pair, made by `from_pretrained`.

    It is immutable: several threads may use it at once. Letters: N pairs, L labels.

    Attributes
    ----------
    labels : tuple of str
        Names of the labels, by their numbers.
    num_labels : int
        Number of labels, L. A reranker has one.
    max_length : int
        Maximum number of tokens of a pair; the longer of its texts is truncated first.
    hidden_size : int
        Hidden size.
    num_layers, num_heads : int
        Number of layers, and of heads in each.
    dtype : str
        Dtype of the layers' weights.

    Notes
    -----
    Nogueira and Cho, "Passage Re-ranking with BERT" (2019). The class of the same name in sentence-transformers is the
    definition. Heads of transformers' ``...ForSequenceClassification`` for BERT, RoBERTa, XLM-RoBERTa, CamemBERT,
    DistilBERT, ELECTRA and ModernBERT are read.

    Each token of a pair attends to both texts, so that nothing that is computed for a query serves a second document.

    Examples
    --------
    >>> from fastattn.models import CrossEncoder
    >>> model = CrossEncoder.from_pretrained("ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
    >>> documents = ["Berlin has museums.", "3.7 million live there."]
    >>> model.rank("How many people live in Berlin?", documents)  # doctest: +SKIP
    [{'corpus_id': 1, 'score': 4.1}, {'corpus_id': 0, 'score': -5.3}]
    """

    __slots__ = ("_activation", "_classifier", "_prompts", "labels")

    def __init__(self, folder: Path, dtype: str, pack: bool) -> None:
        files = _read_folder(folder)
        config = files.transformer / "config.json"
        configuration = read_configuration(files.transformer, files.sentences.configuration)
        raw = read_json(config, dict) | files.sentences.configuration
        checkpoint = Checkpoint(files.transformer)
        self._backbone = Backbone(configuration, checkpoint, dtype, pack)
        self._classifier = read_classifier(config, raw, configuration, checkpoint)
        self._tokens = Tokens(files, configuration, pairs=True)
        self._prompts = files.prompts
        self.labels = _labels(config, raw, self._classifier.labels)
        self._activation = _default_activation(files, config, raw, self.num_labels)
        checkpoint.forget_pages()

    def __repr__(self) -> str:
        return self._described(num_labels=self.num_labels)

    @property
    def num_labels(self) -> int:  # noqa: D102 (described in the class's docstring)
        return len(self.labels)

    def predict(
        self,
        pairs: Iterable[tuple[str, str]] | tuple[str, str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        activation_fn: str | Activation | None = None,
        apply_softmax: bool = False,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32] | np.float32:
        """Score pairs of texts.

        Parameters
        ----------
        pairs : iterable of pairs of str, or one pair
            A list or tuple of two str is one pair.
        prompt : str, optional
            Text before the first text of each pair.
        prompt_name : str, optional
            The name of a prompt of the folder. By default, the folder's own default prompt, if it has one.
        batch_size : int, optional
            Maximum number of pairs that go through the layers together. By default, as many as have 4096 tokens in
            total. Scores do not depend on it.
        activation_fn : {"identity", "relu", "sigmoid", "softmax", "tanh"} or callable, optional
            Applied to the logits, (N, L) in float32; a function must return an array of that shape. By default, what
            the folder says; if it says nothing, "sigmoid" for one label and "identity" for several.
        apply_softmax : bool
            With several labels, apply the softmax over labels after that.
        show_progress : bool, optional
            Show a progress bar on standard error. By default, only on a terminal, after two seconds.
        num_threads : int, optional
            Maximum number of threads for the model; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (N,) or, with several labels, (N, L)
            float32, in the order of the pairs; without the first axis for one pair.

        Raises
        ------
        TypeError
            `pairs` are no pairs of str, or another argument is of the wrong type.
        ValueError
            A pair does not hold two texts, there is no prompt of that name, `batch_size` is less than 1, a text is not
            valid Unicode, the tokenizer fails or gives a token that the model does not have, or a sum exceeds 65504 in
            float16.

        Notes
        -----
        Pairs are sorted by their number of tokens, the longest first, and packed without padding.

        Examples
        --------
        >>> from fastattn.models import CrossEncoder
        >>> model = CrossEncoder.from_pretrained("ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
        >>> model.predict([("How many people live in Berlin?", "3.7 million live there.")]).shape  # doctest: +SKIP
        (1,)
        """
        most = None if batch_size is None else _arguments.at_least_one("batch_size", batch_size)
        activation = self._activation if activation_fn is None else _checked_activation(activation_fn)
        apply_softmax = _arguments.flag("apply_softmax", apply_softmax)
        chosen = self._prompts.chosen(prompt, prompt_name)
        single = _is_pair(pairs)
        logits = self._logits(checked_pairs([pairs] if single else pairs), chosen, most, show_progress, num_threads)
        scores = _activated(activation, logits)
        if self.num_labels == 1:
            scores = scores[:, 0]
        elif apply_softmax:
            scores = softmax(scores, axis=-1)
        return scores[0] if single else scores

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_size: int | None = None,
        activation_fn: str | Activation | None = None,
        show_progress: bool | None = None,
        num_threads: int | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents by their score with a query.

        Parameters
        ----------
        query : str
        documents : iterable of str
        top_k : int, optional
            Return only so many documents, those with the highest scores. By default, all.
        return_documents : bool
            Return the documents as well.
        prompt, prompt_name, batch_size, activation_fn, show_progress, num_threads
            As in `predict`.

        Returns
        -------
        list of dict
            Each holds "corpus_id", the number of the document from 0, "score" as a float, and with `return_documents`
            "text"; the highest score first, equal ones in the order of the documents.

        Raises
        ------
        TypeError
            `query` is not a str, or `documents` is not an iterable of str.
        ValueError
            The model has several labels, `top_k` is less than 1, or as in `predict`.

        Examples
        --------
        >>> from fastattn.models import CrossEncoder
        >>> model = CrossEncoder.from_pretrained("ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
        >>> documents = ["Berlin has museums.", "3.7 million live there."]
        >>> model.rank("How many people live in Berlin?", documents, top_k=1)  # doctest: +SKIP
        [{'corpus_id': 1, 'score': 4.1}]
        """
        if self.num_labels != 1:
            raise ValueError(f"rank must have a model with one label, got one with {self.num_labels}: use predict")
        count = None if top_k is None else _arguments.at_least_one("top_k", top_k)
        return_documents = _arguments.flag("return_documents", return_documents)
        query = checked_text("query", query)
        if isinstance(documents, str):
            raise TypeError("documents must be a list of str, got str")
        texts = checked_texts(documents, "documents")
        scores = self.predict(
            [(query, text) for text in texts], prompt=prompt, prompt_name=prompt_name, batch_size=batch_size,
            activation_fn=activation_fn, show_progress=show_progress, num_threads=num_threads,
        )  # fmt: skip
        order = np.argsort(-scores, kind="stable")[:count].tolist()
        more = {i: {"text": texts[i]} if return_documents else {} for i in order}
        return [{"corpus_id": i, "score": float(scores[i]), **more[i]} for i in order]

    def _logits(
        self,
        pairs: list[tuple[str, str]],
        prompt: str,
        most: int | None,
        show_progress: bool | None,
        num_threads: int | None,
    ) -> NDArray[np.float32]:
        """Logits (N, L) of pairs, in their order."""
        ids, types, cu_seqlens = self._tokens.pairs(pairs, prompt)
        lengths = np.diff(cu_seqlens)
        if not lengths.all():
            raise ValueError(f"pairs[{np.argmin(lengths)}] must have tokens, got none from the tokenizer: it adds none")
        logits = np.empty((len(lengths), self.num_labels), np.float32)
        order = np.argsort(-lengths, kind="stable")
        with Progress(len(lengths), show_progress) as progress:
            for pack in packs(order, lengths, most):
                packed = gathered(self._backbone.configuration, ids, cu_seqlens[pack], lengths[pack], types)
                logits[pack] = self._classifier(self._backbone(packed, num_threads), packed.cu_seqlens)
                progress.add(len(pack))
        return logits


def _read_folder(folder: Path) -> _Folder:
    """Read and check the files of sentence-transformers; without modules.json, the folder is that of transformers."""
    path, defaults = folder / "modules.json", folder / "config_sentence_transformers.json"
    rows = listed_modules(path, ("Transformer",))
    if len(rows) > 1:
        raise ValueError(f"{path}: type must be Transformer once, got {len(rows)} of them")
    saved = read_json(defaults, dict, default={}) if rows else {}
    check_family(folder, saved, "CrossEncoder")
    transformer = rows[0].folder if rows else folder
    config = transformer / "config.json"
    if config.exists():
        known_architecture(config, read_json(config, dict))
    sentences = read_sentences(transformer, "sequence-classification") if rows else Sentences(None, False, {}, {})
    name = saved.get("activation_fn")
    return _Folder(transformer, sentences, read_prompts(defaults, saved), None if name is None else (defaults, name))


def _default_activation(files: _Folder, config: Path, raw: dict[str, Any], labels: int) -> Activation:
    """What the folder's files say, else the sigmoid for one label and none for several."""
    newer = raw.get("sentence_transformers")
    if newer is not None and not isinstance(newer, dict):
        raise ValueError(f"{config}: sentence_transformers must be an object, got {newer!r:.80}")
    named = [files.activation] if files.activation else []
    named += [(config, name) for name in [(newer or {}).get("activation_fn")] if name is not None]
    # The field of versions before 4.
    named += [(config, name) for name in [raw.get("sbert_ce_default_activation_function")] if name is not None]
    default = ACTIVATIONS["Sigmoid" if labels == 1 else "Identity"]
    return _named_activation(*named[0], default) if named else default


def _named_activation(path: Path, name: Any, default: Activation) -> Activation:
    if not isinstance(name, str):
        raise ValueError(f"{path}: activation_fn must be the name of a class, got {name!r:.80}")
    if not name.startswith("torch."):
        return default  # a class of the folder's own code, which sentence-transformers does not trust, either
    if (last := name.rpartition(".")[2]) not in ACTIVATIONS:
        raise ValueError(f"{path}: activation_fn must be one of torch.nn's {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[last]


def _checked_activation(activation: Any) -> Activation:
    if isinstance(activation, str):
        if activation not in _BY_NAME:
            raise ValueError(f"activation_fn must be one of {', '.join(_BY_NAME)}, got {activation!r}")
        return _BY_NAME[activation]
    if not callable(activation):
        raise TypeError(f"activation_fn must be a str or a function, got {type(activation).__name__}")
    return activation


def _activated(activation: Activation, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    scores = np.asarray(activation(logits), np.float32)
    if scores.shape != logits.shape:
        raise ValueError(f"activation_fn must return an array of shape {logits.shape}, got shape {scores.shape}")
    return scores


def _labels(path: Path, raw: dict[str, Any], count: int) -> tuple[str, ...]:
    """The names of the labels; config.json lacks them if they are LABEL_0 and LABEL_1."""
    listed = raw.get("id2label")
    if listed is None:
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(listed, dict) or {*map(str, listed)} != {*map(str, range(count))}:
        raise ValueError(
            f"{path}: id2label must name {count} labels, one for each row of the classifier, got {listed!r:.80}"
        )
    return tuple(str(listed[str(i)]) for i in range(count))


def _is_pair(pairs: Any) -> bool:
    """Whether this is one pair rather than several: a sequence that begins with a str."""
    if isinstance(pairs, list | tuple):
        return len(pairs) > 0 and isinstance(pairs[0], str)
    return isinstance(pairs, np.ndarray) and pairs.ndim == 1 and pairs.size > 0 and isinstance(pairs[0], str)
