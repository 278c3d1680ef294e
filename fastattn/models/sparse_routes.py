"""How a sparse encoder encodes: by a masked language model, or by a weight for each word. One route or two, by task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.linear import linear
from fastattn.models.backbone import Backbone
from fastattn.models.bge_m3 import SPARSE, has_head, read_head
from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import read_configuration
from fastattn.models.folders import inside, read_json
from fastattn.models.heads import read_vocabulary
from fastattn.models.inputs import gathered
from fastattn.models.modules import Module, listed_modules, module_of
from fastattn.models.packs import packs
from fastattn.models.recognition import known_architecture
from fastattn.models.sentences import Sentences, check_fields, read_sentences
from fastattn.models.sparse_vectors import Rows, rows_of
from fastattn.models.splade import Splade
from fastattn.models.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Texts whose weights are dense at a time: 8 MB for a vocabulary of 30,000.
TEXTS_AT_ONCE = 64

# Modules of modules.json, and of a Router. MLMTransformer is the former name of a Transformer with that head.
_TRANSFORMERS = ("Transformer", "MLMTransformer")
_KINDS = (*_TRANSFORMERS, "SpladePooling", "SparseStaticEmbedding")
_POOLING_FIELDS = {"pooling_strategy": ("max", "sum"), "activation_function": ("relu", "log1p_relu")}
_POOLING_DEFAULTS = {"pooling_strategy": "max", "activation_function": "relu"}

QUERY, DOCUMENT = "query", "document"


class _Files(NamedTuple):
    """What the tokenizer reads."""

    transformer: Path
    sentences: Sentences
    prompt: str = ""


class _AnyLength(NamedTuple):
    """What the tokenizer needs of a configuration, for a module without positions."""

    tokenizer_class: str
    max_length: int = 2**31 - 1


class SpladeRoute:
    """A masked language model, whose logits are pooled."""

    __slots__ = ("_splade", "backbone", "tokens")

    def __init__(self, transformer: Path, sentences: Sentences, pooling: Path | None, dtype: str, pack: bool) -> None:
        config = transformer / "config.json"
        if config.exists():
            known_architecture(config, read_json(config, dict))
        configuration = read_configuration(transformer, sentences.configuration)
        raw = read_json(config, dict) | sentences.configuration
        checkpoint = Checkpoint(transformer)
        self.backbone = Backbone(configuration, checkpoint, dtype, pack)
        head = read_vocabulary(config, raw, configuration, checkpoint)
        fields = _POOLING_DEFAULTS | ({} if pooling is None else _pooling(pooling / "config.json"))
        self._splade = Splade(
            head,
            dtype,
            pack,
            sums=fields["pooling_strategy"] == "sum",
            twice=fields["activation_function"] == "log1p_relu",
        )
        self.tokens = Tokens(_Files(transformer, sentences), configuration)
        checkpoint.forget_pages()

    @property
    def size(self) -> int:
        """Size of the vocabulary."""
        return self._splade.size

    def __call__(
        self, texts: list[str], prompt: str, most: int | None, active: int | None, num_threads: int | None
    ) -> Iterator[tuple[NDArray, Rows]]:
        """(numbers of some texts, their weights), until all are done; at most `active` weights for each."""
        ids, cu_seqlens = self.tokens(texts, prompt)
        lengths = np.diff(cu_seqlens)
        for pack in packs(np.argsort(-lengths, kind="stable"), lengths, most):
            packed = gathered(self.backbone.configuration, ids, cu_seqlens[pack], lengths[pack])
            hidden, bounds = self.backbone(packed, num_threads), packed.cu_seqlens
            for first in range(0, len(pack), TEXTS_AT_ONCE):
                some = bounds[first : first + TEXTS_AT_ONCE + 1]
                weights = self._splade(hidden[some[0] : some[-1]], some - some[0], num_threads)
                yield pack[first : first + TEXTS_AT_ONCE], rows_of(weights, active)


class TokenRoute:
    """A weight for each token of a text, by BGE-M3's head: a word's is the largest of its tokens'."""

    __slots__ = ("_head", "_unweighted", "backbone", "size", "tokens")

    def __init__(self, folder: Path, dtype: str, pack: bool) -> None:
        config = folder / "config.json"
        known_architecture(config, read_json(config, dict))
        sentences = read_sentences(folder)
        configuration = read_configuration(folder, sentences.configuration)
        self._head = read_head(folder, SPARSE, configuration.hidden)
        checkpoint = Checkpoint(folder)
        self.backbone = Backbone(configuration, checkpoint, dtype, pack)
        self.tokens, self.size = Tokens(_Files(folder, sentences), configuration), configuration.vocabulary
        self._unweighted = self.tokens.special("cls_token", "eos_token", "pad_token", "unk_token")
        checkpoint.forget_pages()

    def __call__(
        self, texts: list[str], prompt: str, most: int | None, active: int | None, num_threads: int | None
    ) -> Iterator[tuple[NDArray, Rows]]:
        """(numbers of some texts, their weights), until all are done; at most `active` weights for each."""
        ids, cu_seqlens = self.tokens(texts, prompt)
        lengths = np.diff(cu_seqlens)
        for pack in packs(np.argsort(-lengths, kind="stable"), lengths, most):
            packed = gathered(self.backbone.configuration, ids, cu_seqlens[pack], lengths[pack])
            hidden, bounds = self.backbone(packed, num_threads), packed.cu_seqlens
            of_tokens = linear(hidden, self._head.weight, self._head.bias, activation="relu", num_threads=num_threads)[
                :, 0
            ]
            of_tokens[np.isin(packed.ids, self._unweighted)] = 0
            for first in range(0, len(pack), TEXTS_AT_ONCE):
                numbers = pack[first : first + TEXTS_AT_ONCE]
                weights = np.zeros((len(numbers), self.size), np.float32)
                for i, row in enumerate(weights, first):
                    words = slice(bounds[i], bounds[i + 1])
                    np.maximum.at(row, packed.ids[words], of_tokens[words])
                yield numbers, rows_of(weights, active)


class StaticRoute:
    """A weight for each word of the vocabulary, given to the words of a text: no model is run."""

    __slots__ = ("_weight", "tokens")

    backbone = None

    def __init__(self, folder: Path, tokenizer_class: str) -> None:
        config = folder / "config.json"
        check_fields(config, {"path": (None,)}, read_json(config, dict, default={}))
        checkpoint = Checkpoint(folder)
        self._weight = checkpoint.take("weight", checkpoint.shape("weight", 1)).astype(np.float32)
        checkpoint.check_rest("")
        files = _Files(folder, Sentences(None, False, {}, {}))
        self.tokens = Tokens(files, _AnyLength(tokenizer_class), special=False)

    @property
    def size(self) -> int:
        """Size of the vocabulary."""
        return len(self._weight)

    def __call__(
        self, texts: list[str], prompt: str, most: int | None, active: int | None, num_threads: int | None
    ) -> Iterator[tuple[NDArray, Rows]]:
        """(numbers of some texts, their weights), until all are done; at most `active` weights for each."""
        ids, cu_seqlens = self.tokens(texts, prompt)
        if ids.size and ids.max() >= self.size:
            raise ValueError(
                f"the ids of tokenizer.json's tokens must be below {self.size}, the number of weights, got {ids.max()}"
            )
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            numbers = np.arange(first, min(first + TEXTS_AT_ONCE, len(texts)))
            weights = np.zeros((len(numbers), self.size), np.float32)
            for row, i in zip(weights, numbers, strict=True):
                words = ids[cu_seqlens[i] : cu_seqlens[i + 1]]
                row[words] = self._weight[words]
            yield numbers, rows_of(weights, active)


Route = SpladeRoute | TokenRoute | StaticRoute


class Routes(NamedTuple):
    """The routes of a model, and the one of calls without a task."""

    by_task: dict[str, Route]
    default: Route


def read_routes(folder: Path, dtype: str, pack: bool) -> Routes:
    """The routes that modules.json lists; without it, the pooling of a masked language model is the maximum."""
    if has_head(folder, SPARSE):
        token_route = TokenRoute(folder, dtype, pack)
        return Routes({QUERY: token_route, DOCUMENT: token_route}, token_route)
    path = folder / "modules.json"
    rows = listed_modules(path, (*_KINDS, "Router"))
    if not rows:
        route = SpladeRoute(folder, Sentences(None, False, {}, {}), None, dtype, pack)
        return Routes({QUERY: route, DOCUMENT: route}, route)
    if [row.kind for row in rows] == ["Router"]:
        return _routed(rows[0].folder, dtype, pack)
    route = _route(path, rows, "BertTokenizer", dtype, pack)
    return Routes({QUERY: route, DOCUMENT: route}, route)


def _route(path: Path, rows: list[Module], tokenizer_class: str, dtype: str, pack: bool) -> Route:
    kinds = [row.kind for row in rows]
    if kinds == ["SparseStaticEmbedding"]:
        return StaticRoute(rows[0].folder, tokenizer_class)
    if len(kinds) != 2 or kinds[0] not in _TRANSFORMERS or kinds[1] != "SpladePooling":
        raise ValueError(
            f"{path}: type must be Transformer, then SpladePooling, or SparseStaticEmbedding alone, "
            f"got {', '.join(kinds) or 'none'}"
        )
    legacy = "fill-mask" if kinds[0] == "MLMTransformer" else "feature-extraction"
    sentences = read_sentences(rows[0].folder, "fill-mask", default_task=legacy)
    return SpladeRoute(rows[0].folder, sentences, rows[1].folder, dtype, pack)


def _routed(folder: Path, dtype: str, pack: bool) -> Routes:
    path = folder / "router_config.json"
    raw = read_json(path, dict)
    types, structure, parameters = (_object(path, raw, name) for name in ("types", "structure", "parameters"))
    check_fields(path, {"route_mappings": ({}, None)}, parameters)
    if not structure or not structure.keys() <= {QUERY, DOCUMENT}:
        raise ValueError(f"{path}: structure must have the routes query and document, got {', '.join(structure)}")
    routes: dict[str, Route] = {}
    known: dict[tuple[str, ...], Route] = {}  # a module of both routes is read once
    for task, names in structure.items():
        if not isinstance(names, list) or not all(isinstance(name, str) and name in types for name in names):
            raise ValueError(f"{path}: structure must list modules of types for {task}, got {names!r:.80}")
        rows = [
            module_of(path, {"type": types[name], "path": name}, _KINDS)._replace(
                folder=inside(str(path), folder, name)
            )
            for name in names
        ]
        if tuple(names) not in known:
            known[tuple(names)] = _route(path, rows, "BertTokenizer", dtype, pack)
        routes[task] = known[tuple(names)]
    name = parameters.get("default_route") or next(iter(routes))
    if name not in routes:
        raise ValueError(f"{path}: default_route must be one of {', '.join(routes)}, got {name!r}")
    sizes = {route.size for route in routes.values()}
    if len(sizes) > 1:
        raise ValueError(f"{path}: the routes must have one vocabulary, got sizes {', '.join(map(str, sorted(sizes)))}")
    return Routes(routes, routes[name])


def _object(path: Path, raw: dict[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {name} must be an object, got {found!r:.80}")
    return found


def _pooling(path: Path) -> dict[str, str]:
    raw = _POOLING_DEFAULTS | read_json(path, dict)
    check_fields(path, _POOLING_FIELDS, raw)
    return raw
