"""config.json: the sizes of a model, by our names; errors for what is not supported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastattn.models.architectures import ACTIVATIONS, REQUIRED_VALUES, Architecture
from fastattn.models.folders import read_json
from fastattn.models.recognition import known_architecture

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Configuration:
    """The sizes of a model, and the names that its architecture uses."""

    architecture: Architecture
    model_type: str
    classes: tuple[str, ...]  # transformers' classes that the model was saved from
    tokenizer_class: str
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    table_rows: int  # of the table of positions
    token_types: int  # 0: the model has none
    activation: str  # as `fastattn.linear` calls it
    norm_eps: float
    padding_id: int

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a sequence: the positions that padding does not use."""
        return self.table_rows - (self.padding_id + 1 if self.architecture.skips_padding else 0)


def read_configuration(folder: Path, changes: dict[str, Any]) -> Configuration:
    """Read and check the configuration in a folder, with overrides `changes`; ValueError names the wrong field."""
    path = folder / "config.json"
    raw = read_json(path, dict) | changes
    architecture = known_architecture(path, raw)
    for field, needed in (REQUIRED_VALUES | architecture.required).items():
        if raw.get(field, needed) not in (needed, None):
            raise ValueError(f"{path}: {field} must be {needed!r} or absent, got {raw[field]!r}")
    classes = raw.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path}: architectures must be a list of names, got {classes!r}")
    values = dict(architecture.defaults)
    for ours, theirs in architecture.fields.items():
        if raw.get(theirs) is not None:
            values[ours] = _CHECKS.get(ours, counted)(f"{path}: {theirs}", raw[theirs])
        elif ours not in values:
            raise ValueError(f"{path} must have the field {theirs}")
    values["activation"] = ACTIVATIONS[values["activation"]]
    tokenizer_class = raw.get("tokenizer_class") or architecture.tokenizer_class
    configuration = Configuration(architecture, raw["model_type"], tuple(classes), tokenizer_class, **values)
    _check_together(path, configuration)
    return configuration


def _one_of(name: str, value: Any, known: dict) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def counted(name: str, value: Any, least: int = 1) -> int:
    """A count from a JSON file, checked."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    return value


def _small(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number of at least 0 and below 1, got {value!r}")
    return value


# How fields are checked; the others are counts of at least 1.
_CHECKS = {
    "activation": lambda name, value: _one_of(name, value, ACTIVATIONS),
    "norm_eps": _small,
    "padding_id": lambda name, value: counted(name, value, 0),
    "token_types": lambda name, value: counted(name, value, 0),
}


def _check_together(path: Path, configuration: Configuration) -> None:
    fields = configuration.architecture.fields
    if configuration.hidden % configuration.heads:
        raise ValueError(
            f"{path}: {fields['hidden']} must be a multiple of {fields['heads']}, {configuration.heads}, "
            f"got {configuration.hidden}"
        )
    if configuration.max_length < 1:
        raise ValueError(
            f"{path}: {fields['table_rows']} must leave a position after {fields['padding_id']}, "
            f"{configuration.padding_id}, got {configuration.table_rows}"
        )
