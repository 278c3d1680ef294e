"""What sentence-transformers keeps beside a model: its modules, the maximum length, how to pool, what to put in front.

Where there is no modules.json, a model's embedding is the mean of its hidden states, as it is there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.checkpoint import Checkpoint
from fastattn.models.configuration import counted
from fastattn.models.folders import read_json
from fastattn.models.pooling import ACTIVATIONS, MODES, Dense, Pooling

if TYPE_CHECKING:
    from pathlib import Path

# Before there was pooling_mode, each mode had a field of its own; several at once are joined in this order.
_MODE_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# Fields of the modules' own files that change the computation, and the only values, None if there is none, for which it
# is the one made here.
_OF_SENTENCES = ("sentence_embedding", None)
_TRANSFORMER_FIELDS = {
    "transformer_task": ("feature-extraction", None),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}}, None),
    "module_output_name": ("token_embeddings", None),
    "processing_kwargs": ({}, None),
    "query_expansion": (None,),
}
_NORMALIZE_FIELDS = {"module_input_name": _OF_SENTENCES, "module_output_name": _OF_SENTENCES}
_DENSE_FIELDS = {"activation_function": tuple(ACTIVATIONS), "bias": (True, False), "use_residual": (False, None)}
_DENSE_FIELDS |= _NORMALIZE_FIELDS


class Modules(NamedTuple):
    """The modules of a folder."""

    transformer: Path  # where config.json, model.safetensors and tokenizer.json are
    max_seq_length: int | None
    lower_case: bool
    prompt: str  # stands in front of every text
    modes: tuple[str, ...]
    dense: tuple[Path, ...]
    normalize: bool
    truncate_dim: int | None  # embeddings are cut off there


def read_modules(folder: Path) -> Modules:
    """The modules of a folder, judged; ValueError names the file and the field that does not fit."""
    path = folder / "modules.json"
    places: dict[str, list[Path]] = {"Transformer": [], "Pooling": [], "Dense": [], "Normalize": []}
    kinds = []
    for module in read_json(path, list, default=[]):
        kind = str(module.get("type") if isinstance(module, dict) else module)
        kinds.append(kind.rpartition(".")[2])
        if not kind.startswith("sentence_transformers.") or kinds[-1] not in places:
            raise ValueError(f"{path}: type must be one of sentence-transformers' {', '.join(places)}, got {kind!r}")
        places[kinds[-1]].append(folder / str(module.get("path", "")))
    order = ["Transformer", "Pooling", *["Dense"] * len(places["Dense"]), *["Normalize"] * bool(places["Normalize"])]
    if kinds and kinds != order:
        raise ValueError(
            f"{path}: type must be Transformer, then Pooling, any number of Dense and at most one Normalize, got "
            f"{', '.join(kinds)}"
        )
    transformer = places["Transformer"][0] if kinds else folder
    for normalize in places["Normalize"]:
        _judge(normalize / "config.json", _NORMALIZE_FIELDS, read_json(normalize / "config.json", dict, default={}))
    max_seq_length, lower_case = _sentence_configuration(transformer)
    prompt, truncate_dim = _defaults(folder / "config_sentence_transformers.json")
    return Modules(
        transformer,
        max_seq_length,
        lower_case,
        prompt,
        modes=_modes(places["Pooling"][0], prompt) if kinds else ("mean",),
        dense=tuple(places["Dense"]),
        normalize=bool(places["Normalize"]),
        truncate_dim=truncate_dim,
    )


def read_pooling(modules: Modules, hidden: int) -> Pooling:
    """The pooling of hidden states of that size, with the weights of its dense layers."""
    dense, size = [], hidden * len(modules.modes)
    for folder in modules.dense:
        dense.append(_dense(folder, size))
        size = dense[-1].weight.shape[0]
    return Pooling(modules.modes, tuple(dense), modules.normalize, min(size, modules.truncate_dim or size))


def _sentence_configuration(folder: Path) -> tuple[int | None, bool]:
    """(max_seq_length, do_lower_case) of sentence_bert_config.json, or sentence_roberta_config.json and so on."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        raw = read_json(path, dict)
        _judge(path, _TRANSFORMER_FIELDS, raw)
        return _limit(path, "max_seq_length", raw), bool(raw.get("do_lower_case"))
    return None, False


def _limit(path: Path, field: str, raw: dict) -> int | None:
    return None if raw.get(field) is None else counted(f"{path}: {field}", raw[field])


def _defaults(path: Path) -> tuple[str, int | None]:
    """(the prompt in front of every text, truncate_dim) of config_sentence_transformers.json."""
    raw = read_json(path, dict, default={})
    truncate_dim = _limit(path, "truncate_dim", raw)
    name, prompts = raw.get("default_prompt_name"), raw.get("prompts")
    if name is None:
        return "", truncate_dim
    if not isinstance(name, str) or not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"{path}: default_prompt_name must be one of prompts, got {name!r}")
    return prompts[name], truncate_dim


def _modes(folder: Path, prompt: str) -> tuple[str, ...]:
    path = folder / "config.json"
    raw = read_json(path, dict)
    modes = raw.get("pooling_mode") or [mode for field, mode in _MODE_FIELDS.items() if raw.get(field)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not all(isinstance(mode, str) and mode in MODES for mode in modes):
        raise ValueError(f"{path}: pooling_mode must be one or a list of {', '.join(MODES)}, got {modes!r}")
    if prompt and not raw.get("include_prompt", True):
        raise ValueError(f"{path}: include_prompt must be true for a model with a default prompt, got false")
    return tuple(modes)


def _dense(folder: Path, size: int) -> Dense:
    path = folder / "config.json"
    raw: dict[str, Any] = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    raw |= read_json(path, dict)
    _judge(path, _DENSE_FIELDS | {"in_features": (size,)}, raw)
    rows = counted(f"{path}: out_features", raw.get("out_features"))
    checkpoint = Checkpoint(folder)
    weight = checkpoint.take("linear.weight", (rows, size)).astype(np.float32, copy=False)
    bias = checkpoint.take("linear.bias", (rows,)).astype(np.float32, copy=False) if raw["bias"] else None
    return Dense(weight, bias, ACTIVATIONS[raw["activation_function"]])


def _judge(path: Path, needed: dict[str, tuple], raw: dict) -> None:
    for field, values in needed.items():
        if raw.get(field) not in values:
            known = " or ".join(map(json.dumps, values))
            raise ValueError(f"{path}: {field} must be {known}, got {json.dumps(raw.get(field))}")
