"""Embeddings of texts in a dask bag, series or array."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
from dask.tokenize import tokenize

from fastattn import _arguments
from fastattn.integrations.dask.chunks import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

_encoders: dict[str, Any] = {}
_making = threading.Lock()


def encode(
    encoder: Any,
    texts: Any,
    *,
    batch_size: int | None = None,
    normalize: bool | None = None,
    num_threads: int | None = None,
) -> da.Array:
    """Compute embeddings of the texts of a dask collection, one partition at a time.

    Parameters
    ----------
    encoder : SentenceEncoder, or a function without arguments that returns one
        An encoder is sent to each worker. A function is called once in each process, so that workers read the model
        from files of their own: ``functools.partial(SentenceEncoder.from_pretrained, folder)``.
    texts : dask Bag, Series or one-dimensional Array of str
        Anything with ``to_delayed`` whose partitions are iterables of str.
    batch_size : int, optional
        Maximum number of texts that go through the layers together.
    normalize : bool, optional
        Scale embeddings to length 1. By default, follow the model's modules.json.
    num_threads : int, optional
        Maximum number of threads of each task; 1 by default, as a worker runs a task on each of its threads.

    Returns
    -------
    dask Array, shape (N, D)
        float32, in the order of the texts, with a chunk for each partition. N is not known before it is computed (NaN),
        and D is not if `encoder` is a function.

    Raises
    ------
    TypeError
        `encoder` cannot encode, or `texts` is no dask collection. Of the texts themselves: when they are computed.
    ValueError
        `batch_size` or `num_threads` is less than 1.

    Notes
    -----
    The tokenizers library uses all processors, whatever `num_threads` says: set TOKENIZERS_PARALLELISM=false for
    workers that share a machine.

    Examples
    --------
    >>> import dask.bag as db
    >>> from fastattn.integrations.dask import encode
    >>> from fastattn.models import SentenceEncoder
    >>> texts = db.from_sequence(["A sentence.", "Another one.", "A third."], npartitions=2)
    >>> encode(SentenceEncoder.from_pretrained(), texts).compute(scheduler="synchronous").shape
    (3, 384)
    """
    makes = isinstance(encoder, type) or not hasattr(encoder, "encode")
    if makes and not callable(encoder):
        raise TypeError(f"encoder must be an encoder or a function that returns one, got {type(encoder).__name__}")
    if not hasattr(texts, "to_delayed"):
        raise TypeError(f"texts must be a dask Bag, Series or Array of str, got {type(texts).__name__}")
    if batch_size is not None:
        _arguments.at_least_one("batch_size", batch_size)
    _arguments.thread_limit(num_threads)
    options = {"batch_size": batch_size, "normalize": normalize, "num_threads": num_threads}

    size = math.nan if makes else encoder.embedding_size
    source = tokenize(encoder) if makes else None
    model = dask.delayed(encoder, traverse=False)
    task = dask.delayed(_encode, pure=False)
    parts = np.ravel(texts.to_delayed())
    embeddings = [
        da.from_delayed(task(model, source, part, **options), (math.nan, size), meta=np.empty((0, 0), np.float32))
        for part in parts
    ]
    return da.concatenate(embeddings, allow_unknown_chunksizes=True)


def _encode(
    encoder: Any, source: str | None, texts: Iterable[str], *, num_threads: int | None, **options: Any
) -> NDArray[np.float32]:
    if source is not None:
        encoder = _made(encoder, source)
    return encoder.encode(list(texts), show_progress=False, num_threads=threads(num_threads), **options)


def _made(make: Callable[[], Any], source: str) -> Any:
    """The encoder that a function makes, from the first call in this process."""
    with _making:
        if source not in _encoders:
            _encoders.clear()  # only the last one is kept
            _encoders[source] = make()
        return _encoders[source]
