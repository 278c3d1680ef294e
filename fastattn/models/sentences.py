"""sentence_bert_config.json: how sentence-transformers' Transformer treats texts, and its overrides of other files."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fastattn.models.fields import counted
from fastattn.models.folders import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# In names of the file; the first one that exists is read.
_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")

# Tasks of the transformer -> (the output of transformers' model that it takes, what it calls that).
_TASKS = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "fill-mask": ("logits", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
}

# Fields that change the computation, with the only supported values. None: null or absent.
_FIELDS: dict[str, tuple] = {
    "processing_kwargs": ({}, None),
    "tokenizer_name_or_path": (None,),
}

# Fields that are read, those that only multi-vector encoders read, and those that change no embedding of `encode`.
_READ = ("max_seq_length", "do_lower_case")
_OF_TASKS = ("document_length", "query_expansion", "query_length")
_WITHOUT_EFFECT = ("backend", "unpad_inputs")

# Objects of arguments -> their old names.
_ARGUMENTS = {"model_kwargs": "model_args", "processor_kwargs": "tokenizer_args", "config_kwargs": "config_args"}

# Arguments of the model that set device, speed and dtype, which the caller sets here.
_MODEL_ARGUMENTS = (
    "add_pooling_layer",
    "attn_implementation",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "torch_dtype",
    "use_safetensors",
)

# Arguments that say where to fetch files.
_OF_THE_HUB = ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class Sentences(NamedTuple):
    """The content of the file."""

    max_seq_length: int | None
    lower_case: bool
    configuration: dict[str, Any]  # overrides of config.json
    tokenizer: dict[str, Any]  # overrides of tokenizer_config.json
    of_tasks: Mapping[str, Any] = MappingProxyType({})  # fields in _OF_TASKS, not checked


NO_SENTENCES = Sentences(None, False, {}, {})


def read_sentences(
    folder: Path, task: str = "feature-extraction", default_task: str = "feature-extraction", *, expands: bool = False
) -> Sentences:
    """Read sentence_bert_config.json, or sentence_roberta_config.json and so on, of a transformer with that task.

    `expands` says that a model knows query_expansion.

    An unknown field is an error, as in sentence-transformers.
    """
    fields = _FIELDS | _task_fields(task, default_task) | ({} if expands else {"query_expansion": (None,)})
    for path in (folder / f"sentence_{name}_config.json" for name in _NAMES):
        if raw := read_json(path, dict, default={}):
            check_fields(path, fields, raw)
            known = {*fields, *_READ, *_OF_TASKS, *_WITHOUT_EFFECT, *_ARGUMENTS, *_ARGUMENTS.values()}
            if unknown := sorted(raw.keys() - known):
                raise ValueError(f"{path} must hold no field {unknown[0]}, got {json.dumps(raw[unknown[0]]):.80}")
            model, tokenizer, configuration = (_arguments(path, raw, name) for name in _ARGUMENTS)
            if unknown := sorted(model.keys() - {*_MODEL_ARGUMENTS}):
                raise ValueError(f"{path}: model_kwargs must not set {unknown[0]}, got {model[unknown[0]]!r:.80}")
            length = limit(path, "max_seq_length", raw)
            return Sentences(
                length,
                bool(raw.get("do_lower_case")),
                configuration,
                tokenizer,
                {name: raw[name] for name in _OF_TASKS if name in raw},
            )
    return NO_SENTENCES


def _task_fields(task: str, default: str) -> dict[str, tuple]:
    """Fields that name a task and its output -> the values that say this one; null or absent is the default task."""
    output, name = _TASKS[task]
    absent = (None,) if task == default else ()
    return {
        "transformer_task": (task, *absent),
        "modality_config": ({"text": {"method": "forward", "method_output_name": output}}, None),
        "module_output_name": (name, None),
    }


def _arguments(path: Path, raw: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the objects, by its new or old name, without arguments of the Hub."""
    name = former if (former := _ARGUMENTS[name]) in raw else name
    found = raw.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {name} must be an object, got {found!r:.80}")
    return {field: value for field, value in found.items() if field not in _OF_THE_HUB}


def limit(path: Path, field: str, raw: dict[str, Any]) -> int | None:
    """A field that is null or a count of at least 1."""
    return None if raw.get(field) is None else counted(f"{path}: {field}", raw[field])


def check_fields(path: Path, needed: dict[str, tuple], raw: dict[str, Any]) -> None:
    """Raise for a field whose value is not one of these."""
    for field, values in needed.items():
        if raw.get(field) not in values:
            known = " or ".join(map(json.dumps, values))
            raise ValueError(f"{path}: {field} must be {known}, got {json.dumps(raw.get(field))}")
