"""The files of sentence-transformers in a model's folder: its modules, the pooling, what calls follow by default.

Without modules.json, an embedding is the mean of the hidden states, as in sentence-transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.checkpoint import Checkpoint
from fastattn.models.fields import counted
from fastattn.models.folders import inside, read_json
from fastattn.models.pooling import ACTIVATIONS, MODES, Dense, LayerNorm, Pooling
from fastattn.models.prompts import Prompts, read_prompts
from fastattn.models.recognition import check_family, known_architecture
from fastattn.models.sentences import NO_SENTENCES, Sentences, check_fields, limit, read_sentences
from fastattn.models.similarity import checked_similarity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# Before pooling_mode existed, each mode had a field of its own; several at once are concatenated in this order.
_MODE_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Fields of the modules' own files that change the computation, with the only supported values. None: null or absent.
_OF_SENTENCES = ("sentence_embedding", None)
_NORMALIZE_FIELDS = {"module_input_name": _OF_SENTENCES, "module_output_name": _OF_SENTENCES}
_DENSE_FIELDS = {"activation_function": tuple(ACTIVATIONS), "bias": (True, False), "use_residual": (False, None)}
_DENSE_FIELDS |= _NORMALIZE_FIELDS

# Modules of a folder's own code, which is not run -> what they are (Jina v3).
_OWN_CODE = {"custom_st.Transformer": "sentence_transformers.models.Transformer"}

# The largest number of modules: each may hold a copy of weights.
_MOST_MODULES = 64


class Module(NamedTuple):
    """A row of modules.json."""

    kind: str
    folder: Path


class Modules(NamedTuple):
    """The modules of a folder."""

    listed: bool  # in modules.json; if not, the transformer is followed by the mean alone
    transformer: Path  # where config.json, model.safetensors and tokenizer.json are
    sentences: Sentences
    prompts: Prompts
    similarity: str  # the name of the function that compares embeddings
    modes: tuple[str, ...]
    pools_prompt: bool
    steps: tuple[Module, ...]  # between pooling and normalisation
    normalize: bool
    truncate_dim: int | None  # embeddings are truncated to this size by default
    static: bool = False  # a StaticEmbedding in the place of transformer and pooling

    @property
    def prompt(self) -> str:
        """The prompt of calls that ask for none."""
        return self.prompts.default


def read_modules(folder: Path) -> Modules:
    """Read and check the modules of a folder; ValueError names the file and the wrong field."""
    defaults = folder / "config_sentence_transformers.json"
    saved = read_json(defaults, dict, default={})
    check_family(folder, saved)
    path = folder / "modules.json"
    rows = listed_modules(path, _KINDS)
    found: dict[str, list[Path]] = {kind: [row.folder for row in rows if row.kind == kind] for kind in _KINDS}
    static = [row.kind for row in rows[:1]] == ["StaticEmbedding"]
    transformer = next((row.folder for row in rows if row.kind in _FIRST), folder)
    config = transformer / "config.json"
    if config.exists() and not static:
        known_architecture(config, read_json(config, dict))
    _check_order(path, [row.kind for row in rows])
    for normalize in found["Normalize"]:
        config = normalize / "config.json"
        check_fields(config, _NORMALIZE_FIELDS, read_json(config, dict, default={}))
    pooling = found["Pooling"][0] / "config.json" if rows and not static else None
    raw = {} if pooling is None else read_json(pooling, dict)
    return Modules(
        bool(rows),
        transformer,
        NO_SENTENCES if static else read_sentences(transformer),
        read_prompts(defaults, saved),
        checked_similarity(defaults, saved.get("similarity_fn_name")),
        modes=_modes(pooling, raw),
        pools_prompt=bool(raw.get("include_prompt", True)),
        steps=tuple(row for row in rows if row.kind in _STEPS),
        normalize=bool(found["Normalize"]),
        truncate_dim=limit(defaults, "truncate_dim", saved),
        static=static,
    )


def read_pooling(modules: Modules, hidden: int) -> Pooling:
    """The pooling of hidden states of that size, with the weights of the modules after it."""
    steps, size = [], hidden * len(modules.modes)
    for module in modules.steps:
        step, size = _STEPS[module.kind](module.folder, size)
        steps.append(step)
    return Pooling(modules.modes, tuple(steps), modules.normalize, size)


def listed_modules(
    path: Path, kinds: Iterable[str], packages: tuple[str, ...] = ("sentence_transformers",)
) -> list[Module]:
    """The modules that modules.json lists, none if there is no such file; ValueError for one of another kind."""
    rows = read_json(path, list, default=[])
    if len(rows) > _MOST_MODULES:
        raise ValueError(f"{path} must list at most {_MOST_MODULES} modules, got {len(rows)}")
    return [module_of(path, module, kinds, packages) for module in rows]


def module_of(
    path: Path, module: Any, kinds: Iterable[str], packages: tuple[str, ...] = ("sentence_transformers",)
) -> Module:
    """A module by its type and its folder below that of the file `path`."""
    kind = str(module.get("type") if isinstance(module, dict) else module)
    kind = _OWN_CODE.get(kind, kind)
    package, _, name = kind.partition(".")
    name = name.rpartition(".")[2]
    if not isinstance(module, dict) or package not in packages or name not in kinds:
        raise ValueError(f"{path}: type must be one of sentence-transformers' {', '.join(kinds)}, got {kind!r}")
    return Module(name, inside(f"{path}: path", path.parent, module.get("path", "")))


def _check_order(path: Path, kinds: list[str]) -> None:
    first = _FIRST.get(kinds[0], ()) if kinds else ()
    after = [kind for kind in kinds[len(first) :] if kind != "Dropout"]
    if after[-1:] == ["Normalize"]:
        after.pop()
    if kinds and (tuple(kinds[: len(first) or 1]) != first or not all(kind in _STEPS for kind in after)):
        raise ValueError(
            f"{path}: type must be Transformer, then Pooling, any number of {', '.join(_STEPS)} and Dropout, and at "
            f"most one Normalize, or StaticEmbedding in place of the first two, got {', '.join(kinds)}"
        )


def _modes(path: Path | None, raw: dict[str, Any]) -> tuple[str, ...]:
    modes = raw.get("pooling_mode") or [mode for field, mode in _MODE_FIELDS.items() if raw.get(field)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not all(isinstance(mode, str) and mode in MODES for mode in modes):
        raise ValueError(f"{path}: pooling_mode must be one or a list of {', '.join(MODES)}, got {modes!r:.80}")
    if len(set(modes)) < len(modes):  # each makes embeddings longer
        raise ValueError(f"{path}: pooling_mode must name each mode once, got {modes!r:.80}")
    return tuple(modes)


def _dense(folder: Path, size: int) -> tuple[Dense, int]:
    path = folder / "config.json"
    raw: dict[str, Any] = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    raw |= read_json(path, dict)
    check_fields(path, _DENSE_FIELDS | {"in_features": (size,)}, raw)
    rows = counted(f"{path}: out_features", raw.get("out_features"))
    checkpoint = Checkpoint(folder)
    weight = checkpoint.take("linear.weight", (rows, size)).astype(np.float32, copy=False)
    bias = checkpoint.take("linear.bias", (rows,)).astype(np.float32, copy=False) if raw["bias"] else None
    checkpoint.check_rest("")
    return Dense(weight, bias, ACTIVATIONS[raw["activation_function"]]), rows


def _layer_norm(folder: Path, size: int) -> tuple[LayerNorm, int]:
    path = folder / "config.json"
    check_fields(path, {"dimension": (size,)}, read_json(path, dict))
    checkpoint = Checkpoint(folder)
    weight, bias = (checkpoint.take(f"norm.{name}", (size,)).astype(np.float32) for name in ("weight", "bias"))
    checkpoint.check_rest("")
    return LayerNorm(weight, bias), size


# Modules that compute an embedding from another one -> their readers, which return (the step, its output size).
_STEPS: dict[str, Callable[[Path, int], tuple[Callable, int]]] = {"Dense": _dense, "LayerNorm": _layer_norm}

# The first module -> those that a folder begins with.
_FIRST = {"Transformer": ("Transformer", "Pooling"), "StaticEmbedding": ("StaticEmbedding",)}

_KINDS = ("Transformer", "Pooling", "StaticEmbedding", *_STEPS, "Dropout", "Normalize")
