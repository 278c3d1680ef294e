"""Draw how much each token of a text attends to the others, in one head of a model.

A row is an attending token, a column an attended one; the weights of a row sum to 1. Tokens are shown as in the
vocabulary. Layers and heads count from 0; negative numbers count from the last one.
"""

import sys
from pathlib import Path

from fastattn.commands import files, model, options


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("text", type=model.text, metavar="TEXT", help="a text")
    parser.add_argument("--layer", type=int, required=True, metavar="L", help="which layer")
    parser.add_argument("--head", type=int, required=True, metavar="H", help="which of its heads")
    parser.add_argument(
        "-o", dest="out", type=options.picture, required=True, metavar="OUT", help="a .png, .svg or .pdf"
    )
    model.add_arguments(parser)


def run(arguments):
    """Draw the map."""
    try:
        from fastattn.commands import heatmap
    except ImportError as error:
        raise SystemExit(f"attention-map needs {error.name}: pip install 'fastattn[plot]'") from None
    format = Path(arguments.out).suffix[1:].lower()
    with files.created(arguments.out) as out:
        with model.loaded(arguments) as encoder:
            tokens, weights = encoder.attention_map(arguments.text, arguments.layer, arguments.head)
        if len(tokens) > heatmap.MOST:
            raise SystemExit(f"a map has at most {heatmap.MOST} tokens, TEXT has {len(tokens)}")
        layer, head = arguments.layer % encoder.num_layers, arguments.head % encoder.num_heads
        missing = heatmap.save(out, format, tokens, weights, f"Layer {layer}, head {head}")
    if missing and sys.stderr:
        print(f"no font on this machine has {missing}: drawn as boxes", file=sys.stderr)
    print(f"{arguments.out}: {len(tokens)} × {len(tokens)} tokens")
    return 0
