"""Print the lines of a file that are nearest to a text in meaning, the nearest first.

Each with the cosine of the two embeddings and the number of the line, tabs between them. Blank lines are left out.
"""

import sys

import numpy as np

from fastattn.commands import files, model, options


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("query", type=model.text, metavar="QUERY", help="a text")
    parser.add_argument("file", metavar="FILE", help="one text a line, in UTF-8; - is standard input")
    parser.add_argument("-n", type=options.count, default=10, metavar="N", help="how many lines (default: 10)")
    model.add_arguments(parser)


def run(arguments):
    """Print the nearest lines."""
    numbered = [(number, line) for number, line in enumerate(files.lines(arguments.file), 1) if line.strip()]
    with model.loaded(arguments) as encoder:
        query = encoder.encode(arguments.query, normalize=True)
        cosines = encoder.encode([line for _, line in numbered], normalize=True) @ query
    nearest = np.argsort(-cosines, kind="stable")[: arguments.n]
    _print(f"{cosines[i]:.4f}\t{numbered[i][0]}\t{numbered[i][1]}" for i in nearest)
    return 0


def _print(lines):
    """To standard output, in UTF-8 as they came; its reader may have seen enough of them."""
    with files.written():
        try:
            for line in lines:
                sys.stdout.buffer.write(f"{line}\n".encode())
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            files.to_nowhere()
