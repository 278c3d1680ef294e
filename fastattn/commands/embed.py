"""Embed the lines of a file: row i of the .npy file is the embedding of line i + 1.

A line is a text in UTF-8. Empty lines are embedded, too, so that rows and lines correspond. The result is float32, of
shape (lines, embedding size), and replaces OUT only when it is complete.
"""

import argparse
from pathlib import Path

from numpy.lib import format as npy

from fastattn.commands import files, model, options


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="one text per line; - is standard input")
    parser.add_argument("-o", dest="out", type=_array, required=True, metavar="OUT", help="the .npy file to write")
    model.add_arguments(parser)
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
    texts = files.lines(arguments.file)
    with files.created(arguments.out) as out:
        with model.loaded(arguments) as encoder:
            embeddings = encoder.encode(texts, batch_size=arguments.batch_size, normalize=arguments.normalize)
        # np.save would not report that the last kilobytes did not fit on a full disk.
        npy.write_array_header_1_0(out, npy.header_data_from_array_1_0(embeddings))
        out.write(embeddings)
    print(f"{arguments.out}: {len(embeddings)} × {encoder.embedding_size} float32")
    return 0


def _array(name):
    if Path(name).suffix.lower() not in (".npy", ""):
        raise argparse.ArgumentTypeError(f"{name!r} does not end in .npy")
    return name
