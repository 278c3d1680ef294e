"""Files that commands read and write. Where that fails, the command ends with one line that says why."""

import codecs
import contextlib
import os
import sys
from pathlib import Path


def lines(name):
    r"""The lines of a UTF-8 file, or of standard input for "-", without their ends: \n or \r\n, and nothing else."""
    source = "standard input" if name == "-" else name
    if name == "-" and sys.stdin is None:
        raise SystemExit(f"cannot read {source}: it is closed")
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise _cannot("read", source, error) from None
    rows = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not rows[-1]:
        rows.pop()  # a newline ends a line and begins none
    return [_decoded(row.removesuffix(b"\r"), f"{source}, line {number}") for number, row in enumerate(rows, 1)]


def _decoded(row, where):
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise SystemExit(f"{where} is not UTF-8: its byte {error.start + 1} is 0x{row[error.start]:02x}") from None


@contextlib.contextmanager
def created(name):
    """A binary file to write, which stands at its place when all is written and not before.

    That it may stand there is found out at once, before the work that fills it.
    """
    place = Path(name).resolve()
    beside = place.with_name(f"{place.name}.{os.getpid()}.part")
    if name == "-" or (place.exists() and not (place.is_file() and os.access(place, os.W_OK))):
        raise SystemExit(f"cannot write {name}: it must be a file that may be written")
    try:
        file = beside.open("xb")
    except OSError as error:
        raise _cannot("write", name, error) from None
    try:
        with file:
            yield file
        beside.replace(place)
    except OSError as error:
        raise _cannot("write", name, error) from None
    finally:
        beside.unlink(missing_ok=True)


class _Output:
    """Standard output, for what is printed there: where it cannot be written, that ends the command."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """As the stream does; a character that its encoding has not becomes a question mark."""
        encoding = self._stream.encoding or "utf-8"
        with written():
            return self._stream.write(text.encode(encoding, "replace").decode(encoding))

    def flush(self):
        """As the stream does."""
        with written():
            self._stream.flush()


@contextlib.contextmanager
def standard_output():
    """Within, what is printed arrives, or the command ends with one line that says why it does not."""
    if sys.stdout is None:
        raise SystemExit("cannot write standard output: it is closed")
    with contextlib.redirect_stdout(_Output(sys.stdout)):
        try:
            yield
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def written():
    """What is written to standard output within ends the command where it fails; quietly, if its reader has left."""
    try:
        yield
    except BrokenPipeError:
        to_nowhere()
        raise SystemExit(128 + 13) from None  # as if SIGPIPE had ended it
    except OSError as error:
        to_nowhere()
        raise _cannot("write", "standard output", error) from None


def to_nowhere():
    """Let what is still to be printed, Python's own last flush too, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cannot(do, name, error):
    return SystemExit(f"cannot {do} {name}: {error.strerror or error}")
