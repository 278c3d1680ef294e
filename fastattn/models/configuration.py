"""config.json: the sizes of a model, by our names; errors for what is not supported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastattn.models.fields import counted, flag, one_of, small
from fastattn.models.folders import read_json
from fastattn.models.positions import MOST_LAYERS
from fastattn.models.recognition import known_architecture

if TYPE_CHECKING:
    from pathlib import Path

    from fastattn.models.architectures import Architecture
    from fastattn.models.positions import Attention


@dataclass(frozen=True, slots=True)
class Configuration:
    """The sizes of a model, and the names that its architecture uses."""

    architecture: Architecture
    attention: Attention
    model_type: str
    classes: tuple[str, ...]  # transformers' classes that the model was saved from
    tokenizer_class: str
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    table_rows: int  # of the table of positions, or the number of positions if there is none
    token_types: int  # 0: the model has none
    activation: str  # as `fastattn.linear` calls it
    norm_eps: float
    padding_id: int
    kv_heads: int
    head_dim: int
    embedding: int  # size of a row of the embedding tables
    groups: int  # number of layers that differ: the others repeat them
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a sequence: the positions that padding does not use."""
        return self.table_rows - (self.padding_id + 1 if self.architecture.skips_padding else 0)

    @property
    def q_size(self) -> int:
        """Size of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Size of the keys of all heads."""
        return self.kv_heads * self.head_dim

    def has_bias(self, part: str) -> bool:
        """Whether a part in the architecture's tables has a bias."""
        unbiased = self.architecture.unbiased
        field = unbiased.get(part)
        return part not in unbiased or (field is not None and getattr(self, field))


def read_configuration(folder: Path, changes: dict[str, Any]) -> Configuration:
    """Read and check the configuration in a folder, with overrides `changes`; ValueError names the wrong field."""
    path = folder / "config.json"
    raw = read_json(path, dict) | changes
    architecture = known_architecture(path, raw)
    for field, needed in architecture.required.items():
        if raw.get(field, needed) not in (needed, None):
            raise ValueError(f"{path}: {field} must be {needed!r} or absent, got {raw[field]!r}")
    classes = raw.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path}: architectures must be a list of names, got {classes!r}")
    values = _values(path, architecture, raw)
    tokenizer_class = raw.get("tokenizer_class") or architecture.tokenizer_class
    attention = architecture.attention(path, raw, values)
    configuration = Configuration(architecture, attention, raw["model_type"], tuple(classes), tokenizer_class, **values)
    _check_together(path, configuration)
    return configuration


def _values(path: Path, architecture: Architecture, raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that the architecture names, checked; the others follow from them."""
    values = dict(architecture.defaults)
    for ours, names in architecture.fields.items():
        name = next((name for name in names if raw.get(name) is not None), None)
        if name is not None:
            values[ours] = _CHECKS.get(ours, counted)(f"{path}: {name}", raw[name])
        elif ours not in {*values, *_FOLLOWING, *_FLAGS}:
            raise ValueError(f"{path} must have the field {names[-1]}")
    given = next((name for name in architecture.fields["activation"] if name in raw), "activation")
    values["activation"] = architecture.activations[
        one_of(f"{path}: {given}", values["activation"], architecture.activations)
    ]
    if "head_dim" not in values and values["hidden"] % values["heads"]:
        hidden, heads = (_given(architecture, raw, name) for name in ("hidden", "heads"))
        raise ValueError(f"{path}: {hidden} must be a multiple of {heads}, {values['heads']}, got {values['hidden']}")
    for ours, follow in _FOLLOWING.items():
        values.setdefault(ours, follow(values))
    return values


def _given(architecture: Architecture, raw: dict[str, Any], ours: str) -> str:
    """The name by which config.json gives a field."""
    names = architecture.fields[ours]
    return next((name for name in names if raw.get(name) is not None), names[-1])


# Fields that follow from the others where config.json does not give them.
_FOLLOWING = {
    "kv_heads": lambda values: values["heads"],
    "head_dim": lambda values: values["hidden"] // values["heads"],
    "embedding": lambda values: values["hidden"],
    "groups": lambda values: values["layers"],
}

_FLAGS = ("attention_bias", "mlp_bias", "norm_bias")

# How fields are checked; the others are counts of at least 1.
_CHECKS = {
    "activation": lambda name, value: value,  # against the architecture's own, once defaults are known
    "norm_eps": small,
    "padding_id": lambda name, value: counted(name, value, 0),
    "token_types": lambda name, value: counted(name, value, 0),
    **dict.fromkeys(_FLAGS, flag),
}


def _check_together(path: Path, configuration: Configuration) -> None:
    fields = configuration.architecture.fields
    if configuration.heads % configuration.kv_heads:
        raise ValueError(
            f"{path}: {fields['kv_heads'][-1]} must divide {fields['heads'][-1]}, {configuration.heads}, "
            f"got {configuration.kv_heads}"
        )
    if configuration.layers < configuration.groups:
        raise ValueError(
            f"{path}: {fields['groups'][-1]} must be at most {fields['layers'][-1]}, {configuration.layers}, "
            f"got {configuration.groups}"
        )
    if configuration.groups < configuration.layers and configuration.layers > MOST_LAYERS:
        raise ValueError(
            f"{path}: {fields['layers'][-1]} must be at most {MOST_LAYERS} where layers share tensors, "
            f"got {configuration.layers}"
        )
    if configuration.max_length < 1:
        raise ValueError(
            f"{path}: {fields['table_rows'][-1]} must leave a position after {fields['padding_id'][-1]}, "
            f"{configuration.padding_id}, got {configuration.table_rows}"
        )
