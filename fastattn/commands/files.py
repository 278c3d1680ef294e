"""Reading and writing files. On failure the command ends with a one-line message."""

import codecs
import contextlib
import hashlib
import os
import sys
from pathlib import Path


class Lines:
    r"""The lines of a UTF-8 file, or of standard input for "-", one at a time, without line ends: only \n or \r\n.

    Attributes
    ----------
    name : str
        The file's name, for messages.
    size : int or None
        The file's length in bytes, if it can be read again from its beginning.
    read : int
        How many bytes were read.
    """

    def __init__(self, name):
        self.name, self.size = "standard input" if name == "-" else name, None
        if name == "-" and sys.stdin is None:
            raise SystemExit(f"cannot read {self.name}: it is closed")
        try:
            self._file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115 (closed by __exit__)
            if name != "-" and self._file.seekable():
                self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise _cannot("read", self.name, error) from None
        self._begin()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not getattr(sys.stdin, "buffer", None):
            self._file.close()

    def __iter__(self):
        try:
            for row in self._file:
                self._count(row)
                self._number += 1
                start = row.removeprefix(codecs.BOM_UTF8) if self._number == 1 else row
                yield _decoded(start.removesuffix(b"\n").removesuffix(b"\r"), f"{self.name}, line {self._number}")
        except OSError as error:
            raise _cannot("read", self.name, error) from None

    @property
    def digest(self):
        """That of what was read."""
        return self._hash.hexdigest()

    def skip(self, count, lines, digest):
        """Read so many bytes, which are so many lines; False, at the beginning again, if their digest is another."""
        left = count
        while left and (block := self._file.read(min(left, 1 << 20))):
            self._count(block)
            left -= len(block)
        self._number = lines
        # The last line may have been without an end, and have grown.
        if not left and self.digest == digest and (self._ended or not self._file.peek(1)):
            return True
        self._file.seek(0)
        self._begin()
        return False

    def _begin(self):
        self.read, self._number, self._ended, self._hash = 0, 0, True, hashlib.blake2b(digest_size=20)

    def _count(self, block):
        self.read += len(block)
        self._ended = block.endswith(b"\n")
        self._hash.update(block)


def _decoded(row, where):
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise SystemExit(f"{where} is not UTF-8: its byte {error.start + 1} is 0x{row[error.start]:02x}") from None


def note(text):
    """A line on standard error, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def writable(name):
    """The path of a file to write, links followed; the command ends if it cannot be one."""
    target = Path(name).resolve()
    if name == "-" or (target.exists() and not (target.is_file() and os.access(target, os.W_OK))):
        raise SystemExit(f"cannot write {name}: it must be a writable file")
    return target


@contextlib.contextmanager
def created(name):
    """A binary file to write, which replaces the target only when it is complete.

    Whether the target can be written is checked at once, before the work begins.
    """
    target = writable(name)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    with writing(name):
        file = temporary.open("xb")
    try:
        with writing(name):
            with file:
                yield file
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(name):
    """Within this context, a failure to write ends the command with a one-line message."""
    try:
        yield
    except OSError as error:
        raise _cannot("write", name, error) from None


class _Output:
    """Standard output, where a failed write ends the command."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Write text; characters that the encoding does not have become question marks."""
        encoding = self._stream.encoding or "utf-8"
        with written():
            return self._stream.write(text.encode(encoding, "replace").decode(encoding))

    def flush(self):
        """Flush the stream."""
        with written():
            self._stream.flush()


@contextlib.contextmanager
def standard_output():
    """Within this context, a failure to print ends the command with a one-line message."""
    if sys.stdout is None:
        raise SystemExit("cannot write standard output: it is closed")
    with contextlib.redirect_stdout(_Output(sys.stdout)):
        try:
            yield
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def written():
    """End the command if a write to standard output fails: silently if its reader is gone."""
    try:
        yield
    except BrokenPipeError:
        to_nowhere()
        raise SystemExit(128 + 13) from None  # as if SIGPIPE had ended it
    except OSError as error:
        to_nowhere()
        raise _cannot("write", "standard output", error) from None


def print_lines(lines):
    """Print to standard output in UTF-8, like the input; its reader may stop early."""
    with written():
        try:
            for line in lines:
                sys.stdout.buffer.write(f"{line}\n".encode())
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            to_nowhere()


def to_nowhere():
    """Discard all further output, including Python's own final flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cannot(do, name, error):
    return SystemExit(f"cannot {do} {name}: {error.strerror or error}")
