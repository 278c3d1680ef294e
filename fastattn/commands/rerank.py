"""Print the lines of a file that answer a text best, by a cross-encoder, the best first.

Each line shows the score of the pair, the line number and the text, separated by tabs. Blank lines are skipped. A
cross-encoder reads both texts together, which is more exact than comparing embeddings and takes time for every line:
have `similar` find some hundred lines first.
"""

import heapq

from fastattn.commands import files, model, options


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("query", type=model.text, metavar="QUERY", help="a text")
    parser.add_argument("file", metavar="FILE", help="one text per line, in UTF-8; - is standard input")
    parser.add_argument("-n", type=options.count, default=10, metavar="N", help="how many lines (default: 10)")
    model.add_arguments(parser, of="CrossEncoder")
    model.add_prompt(parser, "QUERY")
    parser.add_argument(
        "--batch-size",
        type=options.count,
        metavar="N",
        help="maximum number of pairs at a time (default: as many as have 4096 tokens); does not affect scores",
    )


def run(arguments):
    """Print the best lines."""
    with files.Lines(arguments.file) as lines, model.loaded(arguments, "CrossEncoder") as encoder:
        if encoder.num_labels != 1:
            raise SystemExit(f"--model: it must have one label, got {encoder.num_labels}: {', '.join(encoder.labels)}")
        found = heapq.nlargest(arguments.n, _scored(arguments, lines, encoder))
    files.print_lines(f"{score:.4f}\t{-number}\t{line}" for score, number, line in found)
    return 0


def _scored(arguments, lines, encoder):
    """(score, negative line number, line) of the lines that are not blank."""
    from fastattn.models.pipeline import windows

    how = {name: getattr(arguments, name) for name in ("prompt", "prompt_name", "batch_size")}
    number = 0
    for texts in windows(lines):
        numbered = [(i, line) for i, line in enumerate(texts, number + 1) if line.strip()]
        number += len(texts)
        scores = encoder.predict([(arguments.query, line) for _, line in numbered], **how)
        yield from ((score, -i, line) for score, (i, line) in zip(scores.tolist(), numbered, strict=True))
