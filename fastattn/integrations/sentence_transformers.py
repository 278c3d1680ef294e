"""The Transformer module of sentence-transformers, computed by fastattn."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base import modules
from transformers.modeling_outputs import BaseModelOutput

from fastattn.integrations._shared_models import Shared
from fastattn.models import SentenceEncoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Transformer"]

TASK, BACKEND = "feature-extraction", "torch"


class Transformer(modules.Transformer):
    """sentence-transformers' module Transformer with fastattn in place of PyTorch, for inference on the CPU.

    `load` makes it with the settings of the folder, to be put in place of a model's first module. Tokens, prompts and
    what follows the hidden states remain sentence-transformers' own.

    Parameters
    ----------
    model_name_or_path : str or os.PathLike
        As in sentence-transformers.
    dtype : {"float32", "float16", "bfloat16", "int8"}, optional
        As in `SentenceEncoder.from_pretrained`. By default, that of `model_kwargs`, else float32.
    **kwargs
        Those of sentence-transformers. `model_kwargs` beside its dtype is ignored.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        As in `SentenceEncoder.from_pretrained`; the task is another than "feature-extraction", or the model is an
        adapter.

    Notes
    -----
    Hidden states of padding are zeros. `forward` raises ValueError in training mode while gradients are recorded.

    `save` writes a folder of sentence-transformers' own, with the weights as they were read. Copies and pickles name
    the folder of the weights, and share one model with all others of the same folder and dtype.

    Examples
    --------
    >>> from sentence_transformers import SentenceTransformer
    >>> from fastattn.integrations.sentence_transformers import Transformer
    >>> from fastattn.models import default_folder
    >>> folder = str(default_folder())
    >>> model = SentenceTransformer(folder, device="cpu")
    >>> model[0] = Transformer.load(folder)
    >>> model.encode(["A sentence."]).shape
    (1, 384)
    """

    # What modules.json names as the class of a saved module: sentence-transformers imports no other without
    # trust_remote_code, and whoever gets the folder may not have fastattn.
    __module__ = modules.Transformer.__module__

    def __init__(self, model_name_or_path: str | os.PathLike, *, dtype: str | None = None, **kwargs: Any) -> None:
        super().__init__(os.fspath(model_name_or_path), **_with_dtype(dtype, kwargs))

    def __reduce__(self) -> tuple:
        return _blank, (), self.__dict__  # the class cannot be found by its name

    @classmethod
    def load(
        cls, model_name_or_path: str | os.PathLike, *args: Any, dtype: str | None = None, **kwargs: Any
    ) -> Transformer:
        """Make a module with the settings of a folder, as sentence-transformers does, and with a dtype."""
        return super().load(os.fspath(model_name_or_path), *args, **_with_dtype(dtype, kwargs))

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: str,
        config: PretrainedConfig,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> _Model:
        if (transformer_task, backend, is_peft_model) != (TASK, BACKEND, False):
            raise ValueError(
                f"Transformer must have the task {TASK!r}, the backend {BACKEND!r} and no adapter, got "
                f"{transformer_task!r}, {backend!r} and {'an' if is_peft_model else 'no'} adapter"
            )
        folder = self.load_dir_path(
            model_name_or_path,
            subfolder=model_kwargs.get("subfolder") or "",
            token=model_kwargs.get("token"),
            cache_folder=model_kwargs.get("cache_dir"),
            revision=model_kwargs.get("revision"),
            local_files_only=model_kwargs.get("local_files_only", False),
        )
        return _Model(config, Path(folder), str(model_kwargs.get("dtype") or "float32").removeprefix("torch."))


class _Model(torch.nn.Module):
    """What sentence-transformers asks of a model of transformers."""

    def __init__(self, config: PretrainedConfig, folder: Path, dtype: str) -> None:
        super().__init__()
        self.config, self.folder = config, folder
        self.shared = Shared(SentenceEncoder, folder, dtype)
        self.shared.warm_up()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> BaseModelOutput:
        if self.training and torch.is_grad_enabled():
            raise ValueError("the model must be in evaluation mode: fastattn records no gradients")
        arrays = (x if x is None else x.cpu().numpy() for x in (input_ids, attention_mask, token_type_ids))
        hidden = torch.from_numpy(self.shared.model(*arrays))
        return BaseModelOutput(last_hidden_state=hidden.to(input_ids.device))

    def save_pretrained(self, path: str | os.PathLike, safe_serialization: bool = True) -> None:
        """Write the configuration, and copy the weights: always as safetensors."""
        self.config.save_pretrained(path)
        for file in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.safetensors.index.json")]:
            target = Path(path, file.name)
            if not (target.exists() and target.samefile(file)):
                new = target.with_name(f"{target.name}.new")
                shutil.copyfile(file, new)
                new.replace(target)  # the old file may be mapped


def _with_dtype(dtype: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of sentence-transformers with a dtype among `model_kwargs`."""
    if dtype is None:
        return kwargs
    return kwargs | {"model_kwargs": {**(kwargs.get("model_kwargs") or {}), "dtype": dtype}}


def _blank() -> Transformer:
    return Transformer.__new__(Transformer)
