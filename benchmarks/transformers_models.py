"""Time models of transformers with fastattn's attention against "sdpa", and write docs/performance/transformers.md.

    python benchmarks/transformers_models.py                    # print the tables; an hour, or half with --rounds 3
    python benchmarks/transformers_models.py --only "decode"    # some rows
    python benchmarks/transformers_models.py --dtype float32    # one type
    python benchmarks/transformers_models.py --page             # also write the page

Both contenders run in processes of their own, with the same number of threads, in turns. Times are medians of rounds,
ratios medians of the rounds' ratios. Results are compared with those of "sdpa" in float32. Losses are shown in bold.
"""

import contextlib
import functools
from dataclasses import replace

import fastattn
from compare import parse
from fastattn.commands import options
from fastattn.commands.measuring import dtypes, machine, tables
from fastattn.commands.measuring.engines import Engine, Pace, contest
from fastattn.commands.measuring.results import geometric_mean
from laboratory import shared
from laboratory.hugging_face import ALLOWED, CASES, MODELS
from laboratory.peers import PEERS
from report import TURNS, Page, deliver

PAGE = Page(
    "transformers",
    "Models of Hugging Face transformers",
    f"""\
Whole models with `attn_implementation="fastattn"` and with "sdpa", PyTorch's attention, which is the default.
{TURNS}""",
    "transformers_models.py",
)

CONTENDERS = ("transformers-fastattn", "transformers-sdpa")

#: The order of the table: what models do, and the heading.
SECTIONS = {"prefill": "A pass over all tokens", "decode": "A step of decoding", "generate": "Generation"}

LEGEND = """\
Shapes: batch × tokens; padded sequences have a quarter of the tokens to all of them. A step decodes one token of each
sequence after so many; a generation has as many new tokens as its prompt. Models have random weights:
{models}.
**Bold** where fastattn is slower. Errors are relative to "sdpa" in float32; allowed are {allowed}."""


@shared.run()
def main(argv=None):
    """Measure, print the tables, and write them where requested."""
    add_types = functools.partial(options.add_dtype, default="all of them", known=tuple(ALLOWED))
    arguments = parse(argv, __doc__, add_types)
    threads = arguments.threads or fastattn.get_num_threads()
    if absent := {name for contender in CONTENDERS for name in PEERS[contender].absent}:
        raise SystemExit(f"this needs {', '.join(sorted(absent))}: pip install '.[bench]'")
    facts = machine.describe(["numpy", "torch", "transformers"], threads)
    types, pace = dtypes.present(arguments.dtype or ALLOWED), Pace(arguments.rounds, arguments.seconds)
    cases = [case for case in CASES if arguments.only.search(f"{case.model} {case.does} {case.shape}")]
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tables.Progress(len(cases) * len(types)))
        engines = [stack.enter_context(Engine(name, threads)) for name in reversed(CONTENDERS)]
        found = {}
        for case in (replace(case, dtype=dtype) for case in cases for dtype in types):
            progress.step(case.name)
            found[case] = contest([(engine, [case]) for engine in engines], pace)[::-1]
    data = {"machine": facts, "results": [_as_json(case, *outcomes) for case, outcomes in found.items()]}
    deliver(render(found, facts), data, arguments, PAGE)


def _as_json(case, ours, theirs):
    return {
        "case": case.name,
        "fastattn": ours.seconds,
        "sdpa": theirs.seconds,
        "speedup": ours.faster_than(theirs),
        "error": ours.error,
        "failures": [outcome.failure for outcome in (ours, theirs) if outcome.failure],
    }


def render(found, facts):
    """The tables as Markdown, one for each thing that models do, then the facts of the machine."""
    blocks = []
    for does, title in SECTIONS.items():
        rows = {case: outcomes for case, outcomes in found.items() if case.does == does}
        if rows:
            header = ("", "shape", "dtype", "fastattn", "sdpa", "vs. sdpa", "error")
            lines = [_line(case, *outcomes) for case, outcomes in rows.items()]
            mean = geometric_mean(ours.faster_than(theirs) for ours, theirs in rows.values())
            blocks += [f"## {title}", tables.markdown(header, lines, "lllrrrr")]
            blocks += [f"Geometric mean: {tables.ratio(mean)}."]
    failures = [
        f"{case.name}: {outcome.failure}." for case, pair in found.items() for outcome in pair if outcome.failure
    ]
    models = "; ".join(f"{name} {_described(*MODELS[name])}" for name in MODELS)
    allowed = ", ".join(f"{tables.scientific(error)} in {dtype}" for dtype, error in ALLOWED.items())
    return "\n\n".join([*blocks, LEGEND.format(models=models, allowed=allowed), *failures, machine.line(facts)])


def _line(case, ours, theirs):
    ratio = ours.faster_than(theirs)
    shown = f"**{tables.ratio(ratio)}**" if ratio < 1 else tables.ratio(ratio)
    error = tables.scientific(ours.error) if ours.kept else f"**{tables.scientific(ours.error)}**"
    times = [tables.duration(outcome.seconds) for outcome in (ours, theirs)]
    return [case.model, case.shape, case.dtype, *times, shown, error]


def _described(name, options):
    """A model's size in words."""
    words = [f"{options['num_hidden_layers']} layers of {options.get('hidden_size', 768)}, 12 heads"]
    if "num_key_value_heads" in options:
        words.append(f"{options['num_key_value_heads']} for keys and values")
    if "sliding_window" in options:
        words.append(f"a window of {options['sliding_window']}")
    return f"({', '.join(words)})"


if __name__ == "__main__":
    main()
