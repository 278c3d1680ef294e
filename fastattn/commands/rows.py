"""Embeddings of a file's lines in an .npy file that grows row by row, with a record beside it.

The record says of what the rows were made: how far the file was read and the digest of that, the model, the options. So
an interrupted command continues, lines that were appended are added, and rows of anything else are recognised.
"""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from fastattn.commands import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HEADER = 128  # bytes, for any number of rows
_BLOCK = 1 << 20


class Record(NamedTuple):
    """What the rows are."""

    made: dict  # by which model and options, {name: value}
    read: int  # bytes of the source
    source: str  # their digest
    rows: int
    digest: str  # of the rows


class Rows:
    """The file, locked for this process. Its record has the same name and .json behind it.

    Attributes
    ----------
    path : Path
    count : int
        The number of rows.
    finished : bool
        Whether it is an array.
    """

    def __init__(self, path):
        self.path, self.count = path, 0
        self._record = path.with_name(f"{path.name}.json")
        self._next_record = path.with_name(f"{path.name}.json.part")
        self._hash = hashlib.blake2b(digest_size=20)
        self.finished = False

    @contextlib.contextmanager
    def opened(self):
        """Open the file, and lock it against other processes. One without rows is removed, unless it was finished."""
        number = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        with open(number, "r+b") as self._file:
            self._lock()
            try:
                yield self
            finally:
                if not self.count and not self.finished:
                    self.remove()

    def _lock(self):
        if not fcntl:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been renamed in between.
            mine = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise SystemExit(f"cannot write {self.path}: another process does")

    def remove(self):
        """Remove the file and its record."""
        for path in (self.path, self._record, self._next_record):
            path.unlink(missing_ok=True)

    def resume(self, lines, like, made):
        """Keep the rows that were made of the beginning of `lines`, and skip that. Why none was kept, or "".

        `like` is an array of no rows; `made` says how rows are made, as in a record.
        """
        self._like, self._bytes, self._made = like, like.shape[1] * like.itemsize, made
        record = _read_record(self._record) if lines.size is not None else None
        reason = "" if record is None else self._difference(record, lines)
        self.count = 0 if record is None or reason else record.rows
        end = self._file.seek(_HEADER + self.count * self._bytes)
        if os.fstat(self._file.fileno()).st_size != end:
            self._file.truncate(end if self.count else 0)
        return reason

    def extend(self, lines, encode):
        """Append the rows of the lines that are left; `encode` makes them of a list of texts. How many there were."""
        from fastattn.models.pipeline import windows
        from fastattn.models.progress import Progress

        before, total = self.count, (lines.size or 0) - lines.read
        with Progress(total, None if total > 0 else False, unit=" bytes") as progress:
            read = lines.read
            for texts in windows(lines):  # which reads no further than these
                self._append(encode(texts), lines)
                progress.add(lines.read - read)
                read = lines.read
        return self.count - before

    def _append(self, rows, lines):
        """Write rows, and then the record: they are made of `lines` up to where these were read."""
        data = np.ascontiguousarray(rows).view(np.uint8).data
        self._file.write(data)
        self._file.flush()
        self._hash.update(data)
        count = self.count + len(rows)
        record = Record(self._made, lines.read, lines.digest, count, self._hash.hexdigest())
        self._next_record.write_text(json.dumps(record._asdict(), indent=1), encoding="utf-8")
        self._next_record.replace(self._record)
        self.count = count

    def finish(self):
        """Write the header, by which the file is an array."""
        text = header((self.count, self._like.shape[1]), self._like.dtype)
        self._file.seek(0)
        if self._file.read(_HEADER) != text:
            self._file.seek(0)
            self._file.write(text)
            self._file.flush()
        self.finished = True

    def blocks(self):
        """The rows, some at a time."""
        self._file.seek(_HEADER)
        most = max(1, _BLOCK // max(1, self._bytes))
        for start in range(0, self.count, most):
            count = min(most, self.count - start)
            data = self._file.read(count * self._bytes)
            yield np.frombuffer(data, self._like.dtype).reshape(count, self._like.shape[1])

    def _difference(self, record, lines):
        """Why the rows cannot be kept."""
        for name, value in self._made.items():
            if record.made.get(name) != value:
                return f"{name} was {record.made.get(name)!r}" if name.startswith("--") else f"{name} has changed"
        self._hash = hashlib.blake2b(digest_size=20)
        self._file.seek(_HEADER)
        left = record.rows * self._bytes
        while left and (block := self._file.read(min(left, _BLOCK))):
            self._hash.update(block)
            left -= len(block)
        if left or self._hash.hexdigest() != record.digest:
            found = f"{self.path.name} is damaged"
        elif not lines.skip(record.read, record.rows, record.source):
            found = f"{lines.name} has changed"
        else:
            return ""
        self._hash = hashlib.blake2b(digest_size=20)
        return found


def header(shape, dtype):
    """The beginning of an .npy file, of 128 bytes."""
    file = io.BytesIO()
    found = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, found)
    text = file.getvalue()
    if len(text) > _HEADER:
        raise ValueError(f"an .npy header must have at most {_HEADER} bytes, got {len(text)}")
    # NumPy's own padding depends on its version.
    length = _HEADER - 10
    return npy.magic(1, 0) + length.to_bytes(2, "little") + text[10:-1].ljust(length - 1) + b"\n"


def _read_record(path):
    """The record; None if there is none, or something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        record = Record(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        files.note(f"{path} is no record of embeddings: begins anew")
        return None
    if [*map(type, record)] != [dict, int, str, int, str] or min(record.read, record.rows) < 0:
        files.note(f"{path} is no record of embeddings: begins anew")
        return None
    return record
