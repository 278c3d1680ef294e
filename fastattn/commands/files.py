"""Files that commands read and write. Where that fails, the command ends with one line that says why."""

import codecs
import contextlib
import os
import sys
from pathlib import Path


def lines(name):
    r"""The lines of a UTF-8 file, or of standard input for "-", without their ends: \n or \r\n, and nothing else."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise _cannot("read", name, error) from None
    rows = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not rows[-1]:
        rows.pop()  # a newline ends a line and begins none
    source = "standard input" if name == "-" else name
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


def _cannot(do, name, error):
    return SystemExit(f"cannot {do} {name}: {error.strerror or error}")
