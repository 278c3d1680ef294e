"""Print the lines of a file that are most similar to a text in meaning, the most similar first.

Each line shows the cosine of the two embeddings, the line number and the text, separated by tabs. Blank lines are
skipped.

The embeddings of FILE are kept beside it, in FILE.fastattn.npy (float32, a row for each line) and a record of what they
were made of, FILE.fastattn.npy.json. Lines that were appended are added. If the file was changed otherwise, or another
model or option is used, that is said, and the embeddings are made anew.
"""

import contextlib
import heapq
import itertools
from pathlib import Path

import numpy as np

from fastattn import linear
from fastattn.commands import files, model, options
from fastattn.commands.rows import Rows


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("query", type=model.text, metavar="QUERY", help="a text")
    parser.add_argument("file", metavar="FILE", help="one text per line, in UTF-8; - is standard input")
    parser.add_argument("-n", type=options.count, default=10, metavar="N", help="how many lines (default: 10)")
    model.add_arguments(parser)
    model.add_prompt(parser, "QUERY (default: the model's prompt for queries)", "query-prompt")
    model.add_prompt(parser, "every line (default: the model's prompt for documents)")
    parser.add_argument("--no-index", action="store_true", help="keep nothing beside FILE, and read nothing from there")


def run(arguments):
    """Print the most similar lines."""
    with files.Lines(arguments.file) as lines, model.loaded(arguments) as encoder:
        named = {"prompt": arguments.query_prompt, "prompt_name": arguments.query_prompt_name}
        query = encoder.encode_query(arguments.query, normalize=True, **named)
        found = heapq.nlargest(arguments.n, _compared(query, _embedded(arguments, lines, encoder)))
    files.print_lines(f"{cosine:.4f}\t{-number}\t{line}" for cosine, number, line in found)
    return 0


def _compared(query, embedded):
    """(cosine, negative line number, line) of the lines that are not blank, of which equal ones have equal cosines."""
    numbers = itertools.count(1)
    for rows, texts in embedded:
        cosines = linear(rows, query[np.newaxis])[:, 0].tolist()
        for cosine, number, line in zip(cosines, numbers, texts, strict=False):  # numbers have no end
            if line.strip():
                yield cosine, -number, line


def _embedded(arguments, lines, encoder):
    """The embeddings of lines, some at a time, with the lines: from the index, if there can be one."""
    options = {"prompt": arguments.prompt, "prompt_name": arguments.prompt_name, "normalize": True}
    rows = Rows(Path(f"{arguments.file}.fastattn.npy"))
    with contextlib.ExitStack() as stack:
        kept = not arguments.no_index and lines.size is not None
        if kept:
            try:
                stack.enter_context(rows.opened())
            except OSError as error:
                files.note(f"cannot write {rows.path}: {error.strerror or error}: nothing is kept")
                kept = False
        if not kept:
            from fastattn.models.pipeline import windows

            yield from ((encoder.encode_document(texts, **options), texts) for texts in windows(lines))
            return
        with files.writing(rows.path):
            _update(arguments, rows, lines, encoder, options)
        again = iter(stack.enter_context(files.Lines(arguments.file)))
        yield from ((block, itertools.islice(again, len(block))) for block in rows.blocks())


def _update(arguments, rows, lines, encoder, options):
    """Bring the index up to date, and say what was wrong with it."""
    like = encoder.encode_document([], **options)
    if reason := rows.resume(lines, like, model.made(arguments, **options)):
        files.note(f"{rows.path}: {reason}: made anew")
    known = rows.count
    added = rows.extend(lines, lambda texts: encoder.encode_document(texts, show_progress=False, **options))
    if known and added:
        files.note(f"{rows.path}: {added} lines added")
    if rows.count:
        rows.finish()
