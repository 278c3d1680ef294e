"""Batching: texts of many callers, packed together.

A call is checked and tokenized by its caller, and waits in a queue. One thread takes texts of all waiting calls in
turn, so that a large call holds up no small one, computes their hidden states together, and hands each call its own.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn import _arguments
from fastattn.models.inputs import cumulated
from fastattn.models.packs import TOKENS_AT_ONCE
from fastattn.models.pipeline import Options, Pipeline, Tokenized
from fastattn.models.precision import quantized
from fastattn.models.tokens import checked_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

# Characters that `encode_async` tokenizes in the event loop: about 1 ms. More are left to another thread.
_CHARACTERS_AT_ONCE = 1024

_CLOSED = "batching must be open, got one that is closed"


class Batching:
    """Packs the texts of calls from several threads and tasks; made by `SentenceEncoder.batching`.

    It is a context manager, also for ``async with``, and closes itself at the end. Embeddings are bit for bit those of
    `SentenceEncoder.encode`. A call that fails or is cancelled does not affect others.

    Notes
    -----
    The model runs in a thread of this object, which the first call starts. After a fork, the child's first call starts
    another one: calls of the parent are not repeated in the child.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from fastattn.models import SentenceEncoder
    >>> with SentenceEncoder.from_pretrained().batching() as batching, ThreadPoolExecutor(4) as threads:
    ...     embeddings = list(threads.map(batching.encode, ["A sentence.", "Another one.", "A third."]))
    >>> [x.shape for x in embeddings]
    [(384,), (384,), (384,)]
    """

    __slots__ = ("__weakref__", "_closed", "_make", "_options", "_pipeline", "_workers")

    def __init__(
        self,
        options: Callable[..., Options],
        pipeline: Pipeline,
        max_wait_ms: Any,
        max_tokens: Any,
        num_threads: int | None,
    ) -> None:
        wait = _arguments.non_negative("max_wait_ms", max_wait_ms) / 1000
        most = TOKENS_AT_ONCE if max_tokens is None else _arguments.at_least_one("max_tokens", max_tokens)
        _arguments.thread_limit(num_threads)
        self._options, self._pipeline, self._closed = options, pipeline, False
        self._make = lambda: _Worker(pipeline, wait, most, num_threads)
        self._workers: dict[int, _Worker] = {}  # by process
        weakref.finalize(self, _close, self._workers)

    def __enter__(self) -> Batching:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Batching:
        return self

    async def __aexit__(self, *_: object) -> None:
        import asyncio  # here: its import is a tenth of what importing this package takes

        await asyncio.to_thread(self.close)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: str = "float32",
    ) -> NDArray:
        """Compute embeddings of texts. Any number of threads may call it at once.

        Parameters
        ----------
        texts, prompt, prompt_name, truncate_dim, normalize, precision
            As in `SentenceEncoder.encode`.

        Returns
        -------
        ndarray, shape (N, D) or, for a str, (D,)

        Raises
        ------
        TypeError, ValueError
            As in `SentenceEncoder.encode`.
        RuntimeError
            It is closed.
        """
        options = self._checked(prompt, prompt_name, truncate_dim, normalize, precision)
        checked = checked_texts(texts)
        call, worker = self._begun(options)
        try:
            worker.submit(call, checked)
            embeddings = call.future.result()
        finally:
            call.abandoned = True  # also by KeyboardInterrupt
        return embeddings[0] if isinstance(texts, str) else embeddings

    async def encode_async(
        self,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: str = "float32",
    ) -> NDArray:
        """Compute embeddings of texts in a task of asyncio, of any event loop, without blocking the loop.

        Parameters
        ----------
        texts, prompt, prompt_name, truncate_dim, normalize, precision
            As in `SentenceEncoder.encode`.

        Returns
        -------
        ndarray, shape (N, D) or, for a str, (D,)

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As in `encode`.

        Examples
        --------
        >>> import asyncio
        >>> from fastattn.models import SentenceEncoder
        >>> async def main(model):
        ...     async with model.batching() as batching:
        ...         return await asyncio.gather(*map(batching.encode_async, ["A sentence.", "Another one."]))
        >>> [x.shape for x in asyncio.run(main(SentenceEncoder.from_pretrained()))]
        [(384,), (384,)]
        """
        import asyncio  # here, as in __aexit__

        options = self._checked(prompt, prompt_name, truncate_dim, normalize, precision)
        checked = checked_texts(texts)
        call, worker = self._begun(options)
        try:
            if sum(map(len, checked)) <= _CHARACTERS_AT_ONCE:
                worker.submit(call, checked)
            else:  # shielded: it must run, or end the call
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, worker.submit, call, checked))
            embeddings = await asyncio.wrap_future(call.future)
        finally:
            call.abandoned = True
        return embeddings[0] if isinstance(texts, str) else embeddings

    def close(self) -> None:
        """Wait for the calls that have begun, and end the thread. Further calls are a RuntimeError."""
        self._closed = True
        _close(self._workers)

    def _checked(self, prompt: Any, prompt_name: Any, truncate_dim: Any, normalize: Any, precision: Any) -> Options:
        return self._options(
            prompt=prompt,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
        )

    def _begun(self, options: Options) -> tuple[_Call, _Worker]:
        """A call for which `close` waits, and the worker of this process."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        process = os.getpid()
        # One step of a dict, so that two threads cannot make two.
        worker = self._workers.get(process) or self._workers.setdefault(process, self._make())
        call = _Call(options)
        worker.begin(call)
        return call, worker


def _close(workers: dict[int, _Worker]) -> None:
    """Close the worker of this process; those of its parent are not its own."""
    if worker := workers.get(os.getpid()):
        worker.close()


class _Call:
    """A call of `encode`."""

    __slots__ = ("abandoned", "arrived", "embeddings", "future", "left", "lengths", "options", "taken", "texts")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.future: Future[NDArray] = Future()
        self.future.set_running_or_notify_cancel()  # from here on, only `abandoned` cancels it
        self.abandoned = False

    def hold(self, texts: Tokenized) -> None:
        """Take the texts, of which none is computed yet."""
        self.texts, self.lengths = texts, texts.lengths.tolist()
        self.taken, self.left = 0, len(self.lengths)
        self.embeddings = np.empty((self.left, self.options.size), np.float32)
        self.arrived = time.monotonic()


class _Part(NamedTuple):
    """Some texts of a call."""

    call: _Call
    start: int
    stop: int

    @property
    def ids(self) -> NDArray:
        """Their tokens."""
        ids, starts, lengths = self.call.texts
        return ids[starts[self.start] : starts[self.stop - 1] + lengths[self.stop - 1]]


class _Worker:
    """The queue of a process, and the thread that empties it."""

    def __init__(self, pipeline: Pipeline, wait: float, most: int, num_threads: int | None) -> None:
        self._pipeline, self._wait, self._most, self._num_threads = pipeline, wait, most, num_threads
        self._changed = threading.Condition()
        self._open: set[_Call] = set()  # begun and not ended
        self._waiting: deque[_Call] = deque()
        self._tokens = 0  # of waiting texts
        self._closing = False
        # A daemon, so that the interpreter can end though nobody closed the object: then its finalizer does.
        self._thread = threading.Thread(target=self._run, name="fastattn-batching", daemon=True)

    def begin(self, call: _Call) -> None:
        """Let `close` wait for a call."""
        with self._changed:
            if self._closing:
                raise RuntimeError(_CLOSED)
            if self._thread.ident is None:
                self._thread.start()
            self._open.add(call)

    def submit(self, call: _Call, texts: list[str]) -> None:
        """Tokenize the texts of a call that has begun, and put it into the queue."""
        try:
            call.hold(self._pipeline.tokenized(texts, call.options))
        except BaseException:
            self._end(call)
            raise
        if not texts:
            self._finish(call)
            return
        with self._changed:
            self._waiting.append(call)
            self._tokens += sum(call.lengths)
            # Else the thread is at work, or waits for its time to come.
            if len(self._waiting) == 1 or self._tokens >= self._most:
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for the calls that have begun, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (parts := self._next()) is not None:
            if parts:
                self._compute(parts)

    def _next(self) -> list[_Part] | None:
        """Texts to compute together, once there are enough or the first has waited long enough; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or (self._closing and not self._open))
            if not self._waiting:
                return None
            end = self._waiting[0].arrived + self._wait
            while self._tokens < self._most and not self._closing and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._take()

    def _take(self) -> list[_Part]:
        """One text of each waiting call in turn, until the pack is full."""
        taken: dict[_Call, int] = {}
        tokens = 0
        while self._waiting:
            call = self._waiting[0]
            if call.abandoned:
                self._tokens -= sum(call.lengths[call.taken :])
                self._waiting.popleft()
                self._end(call)
                continue
            length = call.lengths[call.taken]
            if taken and tokens + length > self._most:
                break
            tokens += length
            call.taken += 1
            taken[call] = taken.get(call, 0) + 1
            self._waiting.popleft()
            if call.taken < len(call.lengths):
                self._waiting.append(call)
        self._tokens -= tokens
        return [_Part(call, call.taken - count, call.taken) for call, count in taken.items()]

    def _compute(self, parts: list[_Part]) -> None:
        """Compute the embeddings of some texts. If that fails, each call is computed alone, so that only one fails."""
        try:
            self._encode(parts)
        except BaseException as error:  # whatever it is, the thread goes on
            if len(parts) > 1:
                for part in parts:
                    self._compute([part])
                return
            [part] = parts
            part.call.abandoned = True
            part.call.future.set_exception(error)
            self._end(part.call)
            return
        for call, start, stop in parts:
            call.left -= stop - start
            if not call.left:
                self._finish(call)

    def _encode(self, parts: list[_Part]) -> None:
        ids = np.concatenate([part.ids for part in parts])
        lengths = np.concatenate([part.call.texts.lengths[part.start : part.stop] for part in parts])
        texts = Tokenized(ids, cumulated(lengths)[:-1], lengths)
        hidden, cu_seqlens = self._pipeline.hidden(texts, self._num_threads)
        first = 0
        for _, group in itertools.groupby(parts, key=lambda part: part.call.options[1:]):
            alike = list(group)  # pooled together
            last = first + sum(part.stop - part.start for part in alike)
            bounds = cu_seqlens[first : last + 1]
            rows = hidden[bounds[0] : bounds[-1]]
            embeddings = self._pipeline.pooled(rows, bounds - bounds[0], alike[0].call.options)
            row = 0
            for call, start, stop in alike:
                call.embeddings[start:stop] = embeddings[row : row + stop - start]
                row += stop - start
            first = last

    def _finish(self, call: _Call) -> None:
        try:
            call.future.set_result(quantized(call.embeddings, call.options.precision))
        except ValueError as error:  # there is no range
            call.future.set_exception(error)
        self._end(call)

    def _end(self, call: _Call) -> None:
        with self._changed:
            self._open.discard(call)
            if self._closing:
                self._changed.notify_all()
