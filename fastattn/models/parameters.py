"""The tensors of a model, checked and renamed for torch.nn.TransformerEncoder's state dict and `Embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastattn.models.checkpoint import Checkpoint
    from fastattn.models.configuration import Configuration

# The shapes of a layer's weights, in fields of a Configuration. The first axis is the shape of the bias.
SHAPES = {
    "self_attn.in_proj_": ("hidden", "hidden"),  # of each of its three parts
    "self_attn.out_proj.": ("hidden", "hidden"),
    "norm1.": ("hidden",),
    "linear1.": ("feed_forward", "hidden"),
    "linear2.": ("hidden", "feed_forward"),
    "norm2.": ("hidden",),
}

# Arguments of Embeddings -> tensors, which have the same names in all architectures, and their shapes.
EMBEDDINGS = {
    "words": ("embeddings.word_embeddings.weight", ("vocabulary", "hidden")),
    "positions": ("embeddings.position_embeddings.weight", ("table_rows", "hidden")),
    "token_types": ("embeddings.token_type_embeddings.weight", ("token_types", "hidden")),
    "weight": ("embeddings.LayerNorm.weight", ("hidden",)),
    "bias": ("embeddings.LayerNorm.bias", ("hidden",)),
}


def embedding_parameters(checkpoint: Checkpoint, configuration: Configuration) -> dict[str, NDArray]:
    """The arrays in EMBEDDINGS, as views of the checkpoint; without token types if the model has none."""
    prefix = _prefix(checkpoint)
    return {
        ours: checkpoint.take(prefix + theirs, _shape(configuration, sizes))
        for ours, (theirs, sizes) in EMBEDDINGS.items()
        if ours != "token_types" or configuration.token_types
    }


def position_bias(checkpoint: Checkpoint, configuration: Configuration) -> NDArray[np.float32] | None:
    """The table of biases by distance, if the model has one."""
    buckets = configuration.architecture.position_bias
    if buckets is None:
        return None
    biases = checkpoint.take(_prefix(checkpoint) + buckets.tensor, (buckets.count, configuration.heads))
    return buckets.position_bias(biases, configuration.max_length)


class LayerParameters(Mapping):
    """{PyTorch's name: array} of all layers. Pages of the file are released when the next layer begins to be read."""

    def __init__(self, checkpoint: Checkpoint, arrays: dict[str, NDArray]) -> None:
        self._checkpoint, self._arrays, self._layer = checkpoint, arrays, ""

    def __getitem__(self, name: str) -> NDArray:
        layer = name.split(".")[1]
        if layer != self._layer:
            self._checkpoint.forget_pages()
            self._layer = layer
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def layer_parameters(checkpoint: Checkpoint, configuration: Configuration) -> LayerParameters:
    """The entries of all layers. Stacked biases are copies, all others views of the checkpoint."""
    prefix, architecture = _prefix(checkpoint), configuration.architecture
    parameters = {}
    for i in range(configuration.layers):
        for ours, theirs in architecture.tensors.items():
            shape = _shape(configuration, SHAPES[ours])
            for kind, kind_shape in (("weight", shape), ("bias", shape[:1])):
                names = [f"{prefix}{architecture.layers}.{i}.{part}{kind}" for part in theirs]
                tensors = [checkpoint.take(name, kind_shape) for name in names]
                parameters |= _named(f"layers.{i}.{ours}", kind, tensors)
    checkpoint.check_rest(f"{prefix}{architecture.layers}.")
    return LayerParameters(checkpoint, parameters)


def _named(name: str, kind: str, tensors: list[NDArray]) -> dict[str, NDArray]:
    """The entries of a weight or bias, which may have a tensor for each of query, key and value.

    Their weights are handed on as three: the layer stacks them when it reads them, so that one copy exists at a time.
    """
    if len(tensors) == 1:
        return {name + kind: tensors[0]}
    if kind == "bias":
        return {name + kind: np.concatenate(tensors)}
    return {name.replace("in_proj_", f"{part}_proj_") + kind: x for part, x in zip("qkv", tensors, strict=True)}


def _prefix(checkpoint: Checkpoint) -> str:
    """The prefix of all tensor names: "", or "bert." in the checkpoint of a model with a head."""
    return checkpoint.prefix(EMBEDDINGS["words"][0])


def _shape(configuration: Configuration, sizes: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(getattr(configuration, size) for size in sizes)
