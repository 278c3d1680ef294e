"""Recognises folders that are not supported models, for clear errors before any field is checked.

It looks only at file names, first bytes of files, and config.json and similar files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastattn.models.architectures import ARCHITECTURES, VARIANTS, Architecture

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# The beginning of a Git LFS pointer: the file that Git leaves until Git LFS has fetched the real one.
_POINTER = b"version https://git-lfs.github.com/spec/"

# Weights that are not read: a pickle can hold any code.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# A missing file -> (files that may be there instead, what to do with them).
_IN_PLACE = {
    "model.safetensors": (
        _PICKLES,
        "but {found}, a pickle, which is not read: write model.safetensors by transformers' "
        "AutoModel.from_pretrained(folder).save_pretrained(folder) or, for a folder with modules.json, by "
        "sentence-transformers' SentenceTransformer(folder).save_pretrained(folder)",
    ),
    "tokenizer.json": (
        ("sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json", "bpe.codes"),
        "but {found}: write tokenizer.json by transformers' "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
    ),
    "config.json": (("snapshots",), "but snapshots: the model's folder is one of those inside"),
}

# Endings of tensor names that any model of the family may have and that are not read: its own pooler, which no
# embedding uses, and buffers.
_UNUSED = (
    "pooler.dense.weight",
    "pooler.dense.bias",
    "embeddings.position_ids",
    "encoder.embed_tokens.weight",  # T5: another name of shared.weight
    "embeddings.token_type_ids",
)


def in_place_of(path: Path) -> str:
    """What is there instead of a missing file, and what to do, for the end of a message; empty if nothing is."""
    names, advice = _IN_PLACE.get(path.name, ((), ""))
    found = next((name for name in names if path.with_name(name).exists()), None)
    return f", {advice.format(found=found)}" if found else ""


def check_content(path: Path) -> None:
    """Raise for a Git LFS pointer."""
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise ValueError(f"{path} must be the file itself, got a Git LFS pointer: run git lfs pull")


def check_family(
    folder: Path, saved: dict[str, Any], family: str = "SentenceTransformer", default: str | None = None
) -> None:
    """Raise if config_sentence_transformers.json names another kind of model than this one of sentence-transformers.

    Without a name it is `default`; None: this one.
    """
    found = saved.get("model_type", default)
    if found not in (None, family):
        raise ValueError(
            f"{folder} must be a {family}'s folder, got that of a {found}, as its config_sentence_transformers.json "
            f"says in model_type"
        )


def known_architecture(path: Path, raw: dict[str, Any]) -> Architecture:
    """The architecture that config.json names."""
    if path.with_name("adapter_config.json").exists():
        raise ValueError(f"{path.parent} must hold a whole model, got an adapter: merge it by peft's merge_and_unload")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type must be one of {', '.join(ARCHITECTURES)}, got {model_type!r}")
    for (name, field, value), architecture in VARIANTS.items():
        if name == model_type and raw.get(field) == value:
            return architecture
    return ARCHITECTURES[model_type]


def head(architectures: Iterable[str], unread: Iterable[str]) -> str:
    """The head of a model, by the names of its classes and of tensors not read; empty if it has none."""
    classes = [name for name in architectures if not name.endswith("Model")]
    tensors = sorted(name for name in unread if not name.endswith(_UNUSED))
    return ", ".join([*classes, *tensors[:3], *(["..."] if len(tensors) > 3 else [])])
