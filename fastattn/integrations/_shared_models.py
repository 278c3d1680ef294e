"""Models of the frameworks' classes: named by folder and dtype, read when first used, shared."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fastattn.models import SentenceEncoder, default_folder
from fastattn.models.backbone import checked_dtype

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    from numpy.typing import NDArray

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
    """A shared `SentenceEncoder` with options: texts to embeddings of queries or documents."""

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
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
        self._options: EncodeOptions = {"truncate_dim": truncate_dim, "normalize": normalize}

    def queries(self, texts: str | list[str]) -> NDArray[np.float32]:
        """The embeddings of queries, behind the prompt of this object or else the model's own for queries."""
        encode = self.shared.model.encode_query
        return encode(texts, prompt=self.query_prompt, show_progress=False, **self._options)

    def documents(self, texts: str | list[str], show_progress: bool = False) -> NDArray[np.float32]:
        """The embeddings of documents, behind the prompt of this object or else the model's own for documents."""
        encode = self.shared.model.encode_document
        return encode(texts, prompt=self.document_prompt, show_progress=show_progress, **self._options)
