"""What the models that follow a backbone share: they are made from a folder, and are immutable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from fastattn import _arguments
from fastattn.models.backbone import checked_dtype
from fastattn.models.folders import existing_folder

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from fastattn.models.backbone import Backbone
    from fastattn.models.tokens import Tokens


class Pretrained:
    """A model with a tokenizer and a backbone."""

    __slots__ = ("_backbone", "_tokens")

    _backbone: Backbone
    _tokens: Tokens

    def __init__(self, folder: Path, dtype: str, pack: bool) -> None:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, dtype: str = "float32", *, pack: bool = True) -> Self:
        """Read a model from a local folder. Nothing is downloaded, and no code of the folder is run.

        Parameters
        ----------
        folder : str or os.PathLike
            As transformers or sentence-transformers save it.
        dtype : {"float32", "float16", "bfloat16", "int8"}
            As in `SentenceEncoder.from_pretrained`.
        pack : bool
            Copy the weights into the form that is read fastest, for the target in use, as `fastattn.pack`.

        Raises
        ------
        FileNotFoundError
            The folder or one of its files does not exist.
        TypeError
            folder is not a path, or dtype is not a str.
        ValueError
            The folder holds a model of another kind or architecture, or uses an option that is not supported; or as in
            `SentenceEncoder.from_pretrained`. The message names the file and the field or tensor.
        """
        if folder is None:
            raise TypeError("folder must be a path, got None")
        path, dtype = existing_folder(folder), checked_dtype(dtype)
        return cls(path, dtype, _arguments.flag("pack", pack))

    @property
    def max_length(self) -> int:
        """Maximum number of tokens."""
        return self._tokens.max_length

    @property
    def hidden_size(self) -> int:
        """Hidden size."""
        return self._backbone.configuration.hidden

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self._backbone.configuration.layers

    @property
    def num_heads(self) -> int:
        """Number of heads in each layer."""
        return self._backbone.configuration.heads

    @property
    def dtype(self) -> str:
        """Dtype of the layers' weights."""
        return self._backbone.dtype

    def _described(self, **more: object) -> str:
        sizes = {
            "model_type": self._backbone.configuration.model_type,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_size": self.hidden_size,
            **more,
            "max_length": self.max_length,
            "dtype": self.dtype,
        }
        return f"{type(self).__name__}({', '.join(f'{name}={x!r}' for name, x in sizes.items())})"
