"""The tensors of a model, checked and renamed for torch.nn.TransformerEncoder's state dict and `Embeddings`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
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


def layer_parameters(checkpoint: Checkpoint, configuration: Configuration) -> dict[str, NDArray]:
    """{PyTorch's name: array} of all layers. Stacked tensors are copies, all others views of the checkpoint."""
    prefix, architecture = _prefix(checkpoint), configuration.architecture
    parameters = {}
    for i in range(configuration.layers):
        for ours, theirs in architecture.tensors.items():
            shape = _shape(configuration, SHAPES[ours])
            for kind, kind_shape in (("weight", shape), ("bias", shape[:1])):
                names = [f"{prefix}{architecture.layers}.{i}.{part}{kind}" for part in theirs]
                tensors = [checkpoint.take(name, kind_shape) for name in names]
                parameters[f"layers.{i}.{ours}{kind}"] = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
    checkpoint.check_rest(f"{prefix}{architecture.layers}.")
    return parameters


def _prefix(checkpoint: Checkpoint) -> str:
    """The prefix of all tensor names: "", or "bert." in the checkpoint of a model with a head."""
    return checkpoint.prefix(EMBEDDINGS["words"][0])


def _shape(configuration: Configuration, sizes: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(getattr(configuration, size) for size in sizes)
