"""Embed the lines of a file: row i of the .npy file is the embedding of line i + 1.

A line is a text in UTF-8. Empty lines are embedded, too, so that rows and lines correspond. The result is an array of
shape (lines, embedding size). Files of any length take little memory. OUT is replaced only when it is complete; until
then rows are in OUT.part, from which the same command continues if it was interrupted.
"""

import argparse
from pathlib import Path

import numpy as np

from fastattn.commands import files, model, options
from fastattn.commands.rows import Rows, header


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="one text per line; - is standard input")
    parser.add_argument("-o", dest="out", type=_array, required=True, metavar="OUT", help="the .npy file to write")
    model.add_arguments(parser)
    model.add_prompt(parser, "every line")
    parser.add_argument(
        "--precision",
        default="float32",
        metavar="NAME",
        help="float32, int8, uint8, binary or ubinary: the numbers of the embeddings (default: float32)",
    )
    parser.add_argument("--truncate-dim", type=options.count, metavar="N", help="keep so many numbers of an embedding")
    parser.add_argument(
        "--batch-size",
        type=options.count,
        metavar="N",
        help="maximum number of texts at a time (default: as many as have 4096 tokens); does not affect embeddings",
    )
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale embeddings to length 1, or do not (default: follow the model's modules.json)",
    )


def run(arguments):
    """Write the embeddings."""
    with files.Lines(arguments.file) as lines:
        target = files.writable(arguments.out)
        rows = Rows(target.with_name(f"{target.name}.part"))
        with files.writing(arguments.out):
            with rows.opened():
                try:
                    width, dtype = _embed(arguments, lines, rows)
                except BaseException:
                    _interrupted(lines, rows)
                    raise
            if rows.finished:
                rows.path.replace(target)
            rows.remove()
    print(f"{arguments.out}: {rows.count} × {width} {dtype}")
    return 0


def _embed(arguments, lines, rows):
    """Embed the lines; the width and type of the result. What needs the range of all rows is written to OUT."""
    names = ("prompt", "prompt_name", "truncate_dim", "normalize", "precision")
    chosen = {name: getattr(arguments, name) for name in names}
    with model.loaded(arguments) as encoder:
        from fastattn.models.precision import CALIBRATED

        stored = chosen | ({"precision": "float32"} if arguments.precision in CALIBRATED else {})
        nothing = encoder.encode([], **chosen)  # refuses options that are wrong
        reason = rows.resume(lines, encoder.encode([], **stored), model.made(arguments, **stored))
        if reason:
            files.note(f"{rows.path}: {reason}: begins anew")
        elif rows.count:
            files.note(f"{rows.path}: continues behind line {rows.count}")
        with files.writing(arguments.out):
            rows.extend(lines, lambda texts: encoder.encode(texts, **stored, **_how(arguments)))
            if arguments.precision in CALIBRATED:
                _write_quantized(arguments, rows, nothing)
            else:
                rows.finish()
    return nothing.shape[1], nothing.dtype


def _how(arguments):
    return {"batch_size": arguments.batch_size, "show_progress": False}


def _write_quantized(arguments, rows, nothing):
    """Write OUT, of rows in float32, in a type that needs their range."""
    from fastattn.models.precision import quantized, ranges_of

    ranges = [ranges_of(block) for block in rows.blocks()]
    ranges = ranges_of(np.concatenate(ranges)) if rows.count > 1 else None
    with files.created(arguments.out) as out:
        out.write(header((rows.count, nothing.shape[1]), nothing.dtype))
        for block in rows.blocks():
            out.write(quantized(block, arguments.precision, ranges))


def _interrupted(lines, rows):
    """Say what is kept. What came from a stream cannot be continued."""
    if lines.size is None:
        rows.remove()
    elif rows.count:
        files.note(f"{rows.path} keeps {rows.count} rows, from which the same command continues")


def _array(name):
    if Path(name).suffix.lower() not in (".npy", ""):
        raise argparse.ArgumentTypeError(f"{name!r} does not end in .npy")
    return name
