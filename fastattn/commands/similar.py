"""Print the lines of a file that are most similar to a text in meaning, the most similar first.

Each line shows the cosine of the two embeddings, the line number and the text, separated by tabs. Blank lines are
skipped.
"""

import sys

import numpy as np

from fastattn.commands import files, model, options


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("query", type=model.text, metavar="QUERY", help="a text")
    parser.add_argument("file", metavar="FILE", help="one text per line, in UTF-8; - is standard input")
    parser.add_argument("-n", type=options.count, default=10, metavar="N", help="how many lines (default: 10)")
    model.add_arguments(parser)


def run(arguments):
    """Print the most similar lines."""
    numbered = [(number, line) for number, line in enumerate(files.lines(arguments.file), 1) if line.strip()]
    with model.loaded(arguments) as encoder:
        query = encoder.encode(arguments.query, normalize=True)
        cosines = encoder.encode([line for _, line in numbered], normalize=True) @ query
    nearest = np.argsort(-cosines, kind="stable")[: arguments.n]
    _print(f"{cosines[i]:.4f}\t{numbered[i][0]}\t{numbered[i][1]}" for i in nearest)
    return 0


def _print(lines):
    """Print to standard output in UTF-8, like the input; its reader may stop early."""
    with files.written():
        try:
            for line in lines:
                sys.stdout.buffer.write(f"{line}\n".encode())
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            files.to_nowhere()
