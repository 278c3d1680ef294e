"""What a folder is, as far as messages must say it: before any field of it is checked.

All that makes a folder something else than a model that is read here is told in this file, from names of files, their
first bytes, and what config.json and its like say. Nothing here opens more than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastattn.models.architectures import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# How the file begins that Git leaves where Git LFS has not fetched the real one.
_POINTER = b"version https://git-lfs.github.com/spec/"

# Weights that are not read: a pickle can hold any code.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# What a missing file may have in its place: {its name: (other names, what to do with them)}.
_IN_PLACE = {
    "model.safetensors": (
        _PICKLES,
        "but {found}, a pickle, which is not read: transformers' AutoModel.from_pretrained(folder)"
        ".save_pretrained(folder) writes model.safetensors beside it, for a folder with modules.json "
        "SentenceTransformer(folder).save_pretrained(folder) of sentence-transformers",
    ),
    "tokenizer.json": (
        ("sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json", "bpe.codes"),
        "but {found}: transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes "
        "tokenizer.json beside it",
    ),
    "config.json": (("snapshots",), "but snapshots: one of the folders in there is that of the model"),
}

# Ends of the names of tensors that every model of the family may have beside what is read: its own pooler, which no
# embedding uses, and buffers.
_UNUSED = (
    "pooler.dense.weight",
    "pooler.dense.bias",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)


def in_place_of(path: Path) -> str:
    """What stands in the place of a missing file, and what to do: for the end of a message, empty if nothing does."""
    names, advice = _IN_PLACE.get(path.name, ((), ""))
    found = next((name for name in names if path.with_name(name).exists()), None)
    return f", {advice.format(found=found)}" if found else ""


def check_content(path: Path) -> None:
    """Raise for a file that only stands for another one."""
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise ValueError(f"{path} must be the file itself, got the pointer of Git LFS to it: git lfs pull fetches it")


def check_family(folder: Path, saved: dict[str, Any]) -> None:
    """Raise unless config_sentence_transformers.json, if there is one, is of a kind of model that embeds sentences."""
    family = saved.get("model_type")
    if family not in (None, "SentenceTransformer"):
        raise ValueError(
            f"{folder} must be a SentenceTransformer's folder, got that of a {family}, as its "
            f"config_sentence_transformers.json says in model_type"
        )


def known_architecture(path: Path, raw: dict[str, Any]) -> Architecture:
    """The architecture that config.json names."""
    if path.with_name("adapter_config.json").exists():
        raise ValueError(f"{path.parent} must hold a whole model, got an adapter of one: peft's merge_and_unload joins")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type must be one of {', '.join(ARCHITECTURES)}, got {model_type!r}")
    return ARCHITECTURES[model_type]


def head(architectures: Iterable[str], unread: Iterable[str]) -> str:
    """What a model has above its hidden states, by the names of its classes and of tensors not read; empty: nothing."""
    classes = [name for name in architectures if not name.endswith("Model")]
    tensors = sorted(name for name in unread if not name.endswith(_UNUSED))
    return ", ".join([*classes, *tensors[:3], *(["..."] if len(tensors) > 3 else [])])
