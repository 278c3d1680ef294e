"""The files of a multi-vector encoder: sentence-transformers' modules, those of PyLate, and Stanford's ColBERT."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.bge_m3 import VECTORS, has_head, read_head
from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import read_configuration
from fastattn.models.fields import counted
from fastattn.models.folders import read_json
from fastattn.models.modules import Module, listed_modules
from fastattn.models.pooling import ACTIVATIONS, Dense
from fastattn.models.prompts import Prompts, read_prompts
from fastattn.models.recognition import check_family, known_architecture
from fastattn.models.sentences import Sentences, check_fields, limit, read_sentences

if TYPE_CHECKING:
    from pathlib import Path

_KINDS = ("Transformer", "Dense", "MultiVectorMask", "Normalize", "Dropout")
_SIMILARITIES = ("maxsim", "meanmaxsim")
_OF_TOKENS = "token_embeddings"

# Fields of config_sentence_transformers.json that only PyLate writes.
_OF_PYLATE = (
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "do_query_expansion",
    "document_length",
    "document_prefix",
    "query_expansion",
    "query_length",
    "query_prefix",
    "skiplist_words",
)


# The largest number of tokens that a query is filled up to, which takes memory for each: ColBERT's is 32.
_LONGEST_EXPANSION = 1 << 16


class Expansion(NamedTuple):
    """How queries are filled up with a token, which is scored like theirs."""

    length: int  # tokens of a query, at least
    fixed: bool  # and at most
    attended: bool  # whether other tokens attend to those that were added
    token: str | None  # None: the mask token


class Lengths(NamedTuple):
    """Maximum numbers of tokens by task, or None."""

    query: int | None
    document: int | None
    expansion: Expansion | None


class MultiVectorFiles(NamedTuple):
    """The content of the files."""

    transformer: Path
    sentences: Sentences
    prompts: Prompts
    lengths: Lengths
    marks: tuple[str, ...]  # prompts that are one token of the vocabulary
    dense: tuple[Dense, ...]
    skipped: tuple[str, ...]  # words whose vectors are dropped
    skipped_tasks: tuple[str, ...]
    kept_ids: tuple[int, ...]  # if any: only vectors of these tokens are kept in documents
    normalize: bool
    mean: bool  # scores are divided by the query's number of vectors
    unscored: int = 0  # number of tokens at the beginning of every text without a vector

    @property
    def prompt(self) -> str:
        """The default prompt."""
        return self.prompts.default


def read_files(folder: Path) -> MultiVectorFiles:
    """Read and check the files of a folder."""
    path = folder / "modules.json"
    kinds = (*_KINDS, "Pooling") if has_head(folder, VECTORS) else _KINDS
    rows = listed_modules(path, kinds, packages=("sentence_transformers", "pylate"))
    transformer = rows[0].folder if rows and rows[0].kind == "Transformer" else folder
    config = transformer / "config.json"
    raw = read_json(config, dict)
    known_architecture(config, raw)
    if has_head(folder, VECTORS):
        return _bge_m3(folder)
    if rows:
        return _listed(folder, path, rows)
    if raw.get("architectures") == ["HF_ColBERT"]:
        return _stanford(folder)
    raise ValueError(
        f"{folder} must hold modules.json, or architectures in config.json must be HF_ColBERT, "
        f"got {raw.get('architectures')!r:.80} and no modules.json: its hidden states were not trained to be compared"
    )


def _listed(folder: Path, path: Path, rows: list[Module]) -> MultiVectorFiles:
    defaults = folder / "config_sentence_transformers.json"
    saved = read_json(defaults, dict, default={})
    pylate = saved.get("model_type") == "ColBERT"
    if not pylate:
        check_family(folder, saved, "MultiVectorEncoder", default="SentenceTransformer")
    kinds = [row.kind for row in rows if row.kind != "Dropout"]
    count = kinds.count("Dense")
    needed = ["Transformer", *["Dense"] * count]
    ends = (["MultiVectorMask"], ["MultiVectorMask", "Normalize"], ["Normalize", "MultiVectorMask"])
    if kinds not in ([needed] if pylate else [needed + end for end in ends]):
        raise ValueError(
            f"{path}: type must be Transformer, then any number of Dense, MultiVectorMask and at most one Normalize, "
            f"got {', '.join(kinds)}"
        )
    of_kind = {row.kind: row.folder for row in rows}
    mask = {} if pylate else _mask(of_kind["MultiVectorMask"] / "config.json")
    if "Normalize" in of_kind:
        config = of_kind["Normalize"] / "config.json"
        names = {"module_input_name": (_OF_TOKENS,), "module_output_name": (_OF_TOKENS, None)}
        check_fields(config, names, read_json(config, dict))
    sentences = read_sentences(rows[0].folder, expands=True)
    if pylate:
        words = saved.get("skiplist_words")
        mask = {"skiplist_words": list(string.punctuation) if words is None else words}
    prompts, marks = _prompts(defaults, saved)
    function = saved.get("similarity_fn_name")
    if not pylate and function is not None and function not in _SIMILARITIES:
        raise ValueError(f"{defaults}: similarity_fn_name must be {' or '.join(_SIMILARITIES)}, got {function!r}")
    return MultiVectorFiles(
        rows[0].folder,
        sentences,
        prompts,
        _lengths(rows[0].folder, sentences, defaults, saved),
        marks,
        dense=tuple(_dense(row.folder) for row in rows if row.kind == "Dense"),
        skipped=_strings(defaults, "skiplist_words", mask.get("skiplist_words") or []),
        skipped_tasks=_strings(defaults, "skiplist_tasks", mask.get("skiplist_tasks") or ["document"]),
        kept_ids=tuple(mask.get("keep_only_token_ids") or ()),
        normalize=pylate or "Normalize" in of_kind,
        mean=function == "meanmaxsim",
    )


def _mask(path: Path) -> dict[str, Any]:
    raw = read_json(path, dict)
    kept = raw.get("keep_only_token_ids")
    if kept is not None and (not isinstance(kept, list) or not all(type(i) is int and i >= 0 for i in kept)):
        raise ValueError(f"{path}: keep_only_token_ids must be a list of ids, got {kept!r:.80}")
    tasks = raw.get("skiplist_tasks")
    return raw | {"skiplist_tasks": [tasks] if isinstance(tasks, str) else tasks}


def _strings(path: Path, name: str, found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise ValueError(f"{path}: {name} must be a list of strings, got {found!r:.80}")
    return tuple(found)


def _dense(folder: Path) -> Dense:
    """A dense layer of each token's row; what PyLate and old versions wrote does not name its input."""
    path = folder / "config.json"
    raw: dict[str, Any] = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    raw |= read_json(path, dict)
    names = {"module_input_name": (_OF_TOKENS, None), "module_output_name": (_OF_TOKENS, None)}
    known = {"bias": (True, False), "activation_function": tuple(ACTIVATIONS), "use_residual": (False, None)}
    check_fields(path, names | known, raw)
    rows, columns = (counted(f"{path}: {name}", raw.get(name)) for name in ("out_features", "in_features"))
    checkpoint = Checkpoint(folder)
    weight = checkpoint.take("linear.weight", (rows, columns)).astype(np.float32)
    bias = checkpoint.take("linear.bias", (rows,)).astype(np.float32) if raw["bias"] else None
    checkpoint.check_rest("")
    return Dense(weight, bias, ACTIVATIONS[raw["activation_function"]])


def _prompts(path: Path, saved: dict[str, Any]) -> tuple[Prompts, tuple[str, ...]]:
    """The prompts, and those that PyLate inserts as a token before the text and its prompt."""
    prompts, marks = dict(read_prompts(path, saved).named), []
    for task in ("query", "document"):
        field = f"{task}_prefix"
        if field in saved:
            mark = saved[field] or ""
            if not isinstance(mark, str):
                raise ValueError(f"{path}: {field} must be a string, got {mark!r:.80}")
            marks.append(mark)
            prompts[task] = mark + prompts[task].removeprefix(mark)
    return read_prompts(path, saved | {"prompts": prompts}), tuple(mark for mark in marks if mark.split())


def _lengths(transformer: Path, sentences: Sentences, path: Path, saved: dict[str, Any]) -> Lengths:
    """The lengths of sentence_bert_config.json or, if it has none, those that PyLate keeps beside it."""
    source = transformer / "sentence_bert_config.json"
    query, document = (limit(source, name, sentences.of_tasks) for name in ("query_length", "document_length"))
    document = limit(path, "document_length", saved) if document is None else document
    expansion = sentences.of_tasks.get("query_expansion")
    if expansion is None and any(field in saved for field in _OF_PYLATE):
        length = limit(path, "query_length", saved)
        if saved.get("query_expansion") is not None:
            expansion, source = saved["query_expansion"], path
            query = length if query is None else query
        elif saved.get("do_query_expansion") is False or "query_expansion" in saved:
            query = length if query is None else query
        else:
            attend = saved.get("attend_to_expansion_tokens", saved.get("attend_to_mask_tokens"))
            expansion, source = {"strategy": "fixed", "attend": bool(attend), "length": length or 32}, path
    return Lengths(query, document, None if expansion is None else _expansion(source, expansion, query))


def _expansion(path: Path, raw: Any, query: int | None) -> Expansion:
    """query_expansion, checked as in sentence-transformers."""
    if not isinstance(raw, dict) or not raw.keys() <= {"strategy", "attend", "token", "length"}:
        raise ValueError(f"{path}: query_expansion must hold strategy, attend, token and length, got {raw!r:.80}")
    if raw.get("strategy") not in ("fixed", "min"):
        raise ValueError(f"{path}: query_expansion.strategy must be fixed or min, got {raw.get('strategy')!r}")
    attended, token = raw.get("attend", False), raw.get("token")
    if type(attended) is not bool or not isinstance(token, str | None):
        raise ValueError(f"{path}: query_expansion must have a bool attend and a token or null, got {raw!r:.80}")
    length = counted(f"{path}: query_expansion.length", raw.get("length"), most=_LONGEST_EXPANSION)
    if query is not None and query < length:
        raise ValueError(f"{path}: query_length must be at least query_expansion.length, {length}, got {query}")
    return Expansion(length, raw["strategy"] == "fixed", attended, token)


def _bge_m3(folder: Path) -> MultiVectorFiles:
    """A folder of BGE-M3, whose modules.json describes its dense embeddings."""
    sentences = read_sentences(folder)
    head = read_head(folder, VECTORS, read_configuration(folder, sentences.configuration).hidden)
    return MultiVectorFiles(
        folder,
        sentences,
        Prompts({"query": "", "document": ""}, ""),
        Lengths(None, None, None),
        marks=(),
        dense=(Dense(head.weight, head.bias, None),),
        skipped=(),
        skipped_tasks=(),
        kept_ids=(),
        normalize=True,
        mean=True,
        unscored=1,
    )


def _stanford(folder: Path) -> MultiVectorFiles:
    """A folder of the ColBERT repository: a projection beside the encoder's weights, and artifact.metadata."""
    path = folder / "artifact.metadata"
    raw = read_json(path, dict, default={})
    marks = []
    for field, default in (("query_token_id", "[unused0]"), ("doc_token_id", "[unused1]")):
        mark = raw.get(field) or default
        if not isinstance(mark, str):
            raise ValueError(f"{path}: {field} must be a string, got {mark!r:.80}")
        marks.append(f"{mark} ")
    prompts = Prompts({"query": marks[0], "document": marks[1]}, "")
    length = counted(f"{path}: query_maxlen", raw.get("query_maxlen") or 32, most=_LONGEST_EXPANSION)
    expansion = Expansion(length, fixed=True, attended=bool(raw.get("attend_to_mask_tokens")), token=None)
    checkpoint = Checkpoint(folder)
    weight = checkpoint.take("linear.weight", checkpoint.shape("linear.weight", 2)).astype(np.float32)
    return MultiVectorFiles(
        folder,
        Sentences(None, False, {}, {}),
        prompts,
        Lengths(None, limit(path, "doc_maxlen", raw), expansion),
        tuple(mark for mark in marks if mark.split()),
        dense=(Dense(weight, None, None),),
        skipped=tuple(string.punctuation) if raw.get("mask_punctuation", True) else (),
        skipped_tasks=("document",),
        kept_ids=(),
        normalize=True,
        mean=False,
    )
