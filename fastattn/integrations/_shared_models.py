"""Models of the frameworks' classes: named by folder and dtype, read when first used, shared."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fastattn.models import SentenceEncoder, default_folder
from fastattn.models.backbone import checked_dtype

if TYPE_CHECKING:
    from typing import Any, Protocol

    import numpy as np
    from numpy.typing import NDArray

    from fastattn.models import Batching
    from fastattn.models.sentence_encoder import EncodeOptions

    class Kind(Protocol):
        """A class of models, such as SentenceEncoder."""

        @classmethod
        def from_pretrained(cls, folder: Path, dtype: str) -> Kind: ...


Model = TypeVar("Model", bound="Kind")

# Models that are kept after their last user is gone. Frameworks make their objects again from a configuration, some for
# every request: each would read the model again.
KEPT = 4

_reading = threading.Lock()


class Shared(Generic[Model]):
    """A model that is read when first used. Copies, pickles and all others with these arguments share it."""

    def __init__(self, kind: type[Model], folder: str | os.PathLike | None, dtype: str) -> None:
        self.kind = kind
        self.folder = None if folder is None else os.fspath(folder)
        self.dtype = checked_dtype(dtype)

    def __reduce__(self) -> tuple:
        return type(self), self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shared) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple:
        return self.kind, self.folder, self.dtype

    @functools.cached_property
    def model(self) -> Model:
        """The model; the errors are those of its class's from_pretrained."""
        folder = (default_folder() if self.folder is None else Path(self.folder)).resolve()
        with _reading:  # once, when several threads ask at the same time
            return _read(self.kind, folder, self.dtype, _last_change(folder))

    def warm_up(self) -> None:
        """Read the model now, so that its errors come now."""
        _ = self.model


@functools.lru_cache(maxsize=KEPT)
def _read(kind: type[Model], folder: Path, dtype: str, last_change: int) -> Model:
    return kind.from_pretrained(folder, dtype)


def _last_change(folder: Path) -> int:
    """The newest of the times at which the files of a folder changed: a model that is saved again is read again."""
    return max((path.lstat().st_mtime_ns for path in folder.glob("*")), default=0)


class Embedder:
    """A shared `SentenceEncoder` with options: texts to embeddings of queries or documents.

    Asynchronous calls of an object that come at the same time are packed together.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        dtype: str,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
    ) -> None:
        self.shared = Shared(SentenceEncoder, folder, dtype)
        sizes: EncodeOptions = {"truncate_dim": truncate_dim, "normalize": normalize}
        self._of_queries = _with_prompt(query_prompt, "query") | sizes
        self._of_documents = _with_prompt(document_prompt, "document") | sizes

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "batching"}

    @functools.cached_property
    def batching(self) -> Batching:
        """What packs asynchronous calls; its thread ends with this object."""
        return self.shared.model.batching()

    def queries(self, texts: str | list[str]) -> NDArray[np.float32]:
        """The embeddings of queries."""
        return self.shared.model.encode(texts, show_progress=False, **self._of_queries)

    def documents(self, texts: str | list[str], show_progress: bool = False) -> NDArray[np.float32]:
        """The embeddings of documents."""
        return self.shared.model.encode(texts, show_progress=show_progress, **self._of_documents)

    async def queries_async(self, texts: str | list[str]) -> NDArray[np.float32]:
        """As `queries`, without blocking the event loop."""
        return await (await self._ready()).encode_async(texts, **self._of_queries)

    async def documents_async(self, texts: str | list[str]) -> NDArray[np.float32]:
        """As `documents`, without blocking the event loop."""
        return await (await self._ready()).encode_async(texts, **self._of_documents)

    async def _ready(self) -> Batching:
        if "batching" in self.__dict__:
            return self.batching
        return await asyncio.to_thread(lambda: self.batching)  # the model may have to be read


def _with_prompt(prompt: str | None, role: str) -> EncodeOptions:
    """A prompt, or the model's own for a role."""
    return {"prompt_name": role} if prompt is None else {"prompt": prompt}
