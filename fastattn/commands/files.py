"""Reading and writing files. On failure the command ends with a one-line message."""

import codecs
import contextlib
import os
import sys
from pathlib import Path


def lines(name):
    r"""The lines of a UTF-8 file, or of standard input for "-", without line ends: only \n or \r\n."""
    source = "standard input" if name == "-" else name
    if name == "-" and sys.stdin is None:
        raise SystemExit(f"cannot read {source}: it is closed")
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise _cannot("read", source, error) from None
    rows = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not rows[-1]:
        rows.pop()  # a final newline does not begin a line
    return [_decoded(row.removesuffix(b"\r"), f"{source}, line {number}") for number, row in enumerate(rows, 1)]


def _decoded(row, where):
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise SystemExit(f"{where} is not UTF-8: its byte {error.start + 1} is 0x{row[error.start]:02x}") from None


@contextlib.contextmanager
def created(name):
    """A binary file to write, which replaces the target only when it is complete.

    Whether the target can be written is checked at once, before the work begins.
    """
    target = Path(name).resolve()
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    if name == "-" or (target.exists() and not (target.is_file() and os.access(target, os.W_OK))):
        raise SystemExit(f"cannot write {name}: it must be a writable file")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise _cannot("write", name, error) from None
    try:
        with file:
            yield file
        temporary.replace(target)
    except OSError as error:
        raise _cannot("write", name, error) from None
    finally:
        temporary.unlink(missing_ok=True)


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


def to_nowhere():
    """Discard all further output, including Python's own final flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cannot(do, name, error):
    return SystemExit(f"cannot {do} {name}: {error.strerror or error}")
