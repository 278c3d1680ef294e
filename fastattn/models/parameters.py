"""The tensors of a model, checked and renamed for torch.nn.TransformerEncoder's state dict and `Embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastattn.models.checkpoint import Checkpoint
    from fastattn.models.configuration import Configuration

# The rows of a layer's weights, part by part, in fields of a Configuration; the sum of them is the shape of the bias.
ROWS = {
    "self_attn.in_proj_": ("q_size", "kv_size", "kv_size"),
    "self_attn.out_proj.": ("hidden",),
    "self_attn.q_norm.": ("head_dim",),
    "self_attn.k_norm.": ("head_dim",),
    "linear1.": ("feed_forward",),
    "linear2.": ("hidden",),
    **dict.fromkeys(("norm1.", "norm2.", "post_norm1.", "post_norm2.", "final"), ("hidden",)),
}

# The columns of those that are matrices.
COLUMNS = {
    "self_attn.in_proj_": "hidden",
    "self_attn.out_proj.": "q_size",
    "linear1.": "hidden",
    "linear2.": "feed_forward",
}

# The shapes of the embedding tables, and of what follows them.
EMBEDDINGS = {
    "words": ("vocabulary", "embedding"),
    "positions": ("table_rows", "embedding"),
    "token_types": ("token_types", "embedding"),
    "norm": ("embedding",),
    "projection": ("hidden", "embedding"),
}

# Parts of the embeddings that have a bias.
_BIASED = ("norm", "projection")


def embedding_parameters(checkpoint: Checkpoint, configuration: Configuration) -> dict[str, NDArray]:
    """The arrays that the architecture has, by arguments of `Embeddings`, as views of the checkpoint."""
    prefix, found = prefix_of(checkpoint, configuration), {}
    for part, name in configuration.architecture.embeddings.items():
        if _is_there(part, configuration):
            shape = tuple(getattr(configuration, size) for size in EMBEDDINGS[part])
            found[part] = checkpoint.take(f"{prefix}{name}weight", shape)
            if part in _BIASED and configuration.has_bias(part):
                found[f"{part}_bias"] = checkpoint.take(f"{prefix}{name}bias", shape[:1])
    return found


def _is_there(part: str, configuration: Configuration) -> bool:
    if part == "token_types":
        return configuration.token_types > 0
    if part == "projection":
        return configuration.architecture.projects or configuration.embedding != configuration.hidden
    return True


class Parts(NamedTuple):
    """An entry that is put together from tensors when it is read."""

    tensors: tuple[NDArray, ...]  # stacked by rows
    swapped: bool = False  # the second half comes first
    offset: float = 0.0  # added

    def __call__(self) -> NDArray:
        """The entry: a view of the checkpoint if there is nothing to do."""
        x = self.tensors[0] if len(self.tensors) == 1 else np.concatenate(self.tensors)
        if self.swapped:
            x = np.concatenate(np.split(x, 2)[::-1])
        return x.astype(np.float32) + np.float32(self.offset) if self.offset else x


def position_biases(checkpoint: Checkpoint, configuration: Configuration) -> list[NDArray[np.float32]]:
    """The tables of biases by distance: none, one for all layers, or one for each."""
    buckets, name = configuration.attention.buckets, configuration.architecture.position_bias
    if buckets is None or name is None:
        return []
    prefix, shape = prefix_of(checkpoint, configuration), (buckets.count, configuration.heads)
    names = (name.format(i) for i in range(configuration.layers if "{}" in name else 1))
    return [buckets.position_bias(checkpoint.take(prefix + name, shape), configuration.max_length) for name in names]


class LayerParameters(Mapping):
    """{PyTorch's name: array} of all layers. Pages of the file are released when the next layer begins to be read."""

    def __init__(self, checkpoint: Checkpoint, entries: dict[str, Parts]) -> None:
        self._checkpoint, self._entries, self._layer = checkpoint, entries, ""
        self._last: tuple[str, NDArray | None] = "", None  # an entry is read several times, one after the other

    def __getitem__(self, name: str) -> NDArray:
        layer = name.split(".")[1]
        if layer != self._layer:
            self._checkpoint.forget_pages()
            self._layer = layer
        if self._last[0] != name:
            self._last = name, self._entries[name]()
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def layer_parameters(checkpoint: Checkpoint, configuration: Configuration) -> LayerParameters:
    """The entries of all layers, and of the norm after the last one."""
    prefix, architecture = prefix_of(checkpoint, configuration), configuration.architecture
    entries: dict[str, Parts] = {}
    for i in range(configuration.groups):
        layer = prefix + architecture.layers.format(i)
        for ours, theirs in architecture.tensors.items():
            if not (ours == "norm1." and i == 0 and architecture.lacks_first_norm):
                names = tuple(layer + name for name in theirs)
                entries |= _entries(checkpoint, configuration, f"layers.{i}.{ours}", ours, names)
    if architecture.final_norm:
        names = (prefix + architecture.final_norm,)
        entries |= _entries(checkpoint, configuration, "norm.", "final", names)
    checkpoint.check_rest(prefix + architecture.layers.partition("{}")[0])
    return LayerParameters(checkpoint, entries)


def _entries(
    checkpoint: Checkpoint, configuration: Configuration, name: str, ours: str, names: tuple[str, ...]
) -> dict[str, Parts]:
    """The entries of a weight and its bias, which may have a tensor for each part.

    The weights of query, key and value are handed on as three: the layer stacks them when it reads them.
    """
    architecture, rows = configuration.architecture, _rows(configuration, ours)
    if len(names) == 1:
        rows = (sum(rows),)
    columns = (getattr(configuration, COLUMNS[ours]),) if ours in COLUMNS else ()
    offset = architecture.norm_offset if ours not in COLUMNS else 0.0
    swapped = ours in architecture.swapped
    kinds = {"weight": columns} | ({"bias": ()} if configuration.has_bias(ours) else {})
    found = {}
    for kind, more in kinds.items():
        tensors = tuple(
            checkpoint.take(theirs + kind, (count, *more)) for theirs, count in zip(names, rows, strict=True)
        )
        if kind == "weight" and ours == "self_attn.in_proj_" and len(tensors) == 3:
            found |= {
                name.replace("in_proj_", f"{part}_proj_") + kind: Parts((x,))
                for part, x in zip("qkv", tensors, strict=True)
            }
        else:
            found[name + kind] = Parts(tensors, swapped, offset if kind == "weight" else 0.0)
    return found


def _rows(configuration: Configuration, ours: str) -> tuple[int, ...]:
    rows = tuple(getattr(configuration, size) for size in ROWS[ours])
    return rows * 2 if ours == "linear1." and configuration.architecture.gated else rows


def prefix_of(checkpoint: Checkpoint, configuration: Configuration) -> str:
    """The prefix of all tensor names: "", or "bert." in the checkpoint of a model with a head."""
    return checkpoint.prefix(configuration.architecture.embeddings["words"] + "weight")
