"""Draw the pictures of docs/performance from the tables of its pages.

    python benchmarks/picture.py     # after a page has been measured again

A panel for each row: for each engine its time, and a bar of its speed relative to fastattn. The picture of
random shapes has a panel for each kind of call: how many of its ratios are in which range.
"""

import functools
from html import escape

from report import FOLDER

#: Name of a picture: its page, its title, and panels of (title, section of the page, the row's first cells).
PICTURES = {
    "speed": (
        "operations",
        "Speed against other engines, float32",
        (
            ("Attention: BERT, 128 tokens", "Attention", "attention bert-128 1×12×128×64 float32"),
            ("Attention: GPT, 1024 tokens", "Attention", "attention gpt-1024 1×12×1024×64 causal float32"),
            ("Attention: Llama, 2048 tokens", "Attention", "attention llama-2048 1×32/8×2048×128 causal float32"),
            ("Decoding: 1 token of 4096", "Attention", "attention decode-4096 1×32/8×1→4096×128 float32"),
            ("Linear, GELU: 512×768→3072", "Linear layers", "linear gelu out= 512×768→3072 float32"),
            ("Softmax: 12288×1024", "Rows, written into a given array", "softmax out= 12288×1024 float32"),
            ("Layer norm: 4096×768", "Rows, written into a given array", "layer_norm out= 4096×768 float32"),
            ("Rotary: 32×2048×128", "Rows, written into a given array", "rotary_embedding out= 1×32×2048×128 float32"),
        ),
    ),
    "encoder": (
        "encoder",
        "MiniLM-L6 from token ids (batch × tokens)",
        tuple(
            (f"{dtype}: {shape}", f"From token ids, {dtype}", shape)
            for dtype in ("float32", "bfloat16")
            for shape in ("1×16", "1×128", "8×64", "32×128")
        ),
    ),
}

#: The same for a distribution: its page, its title, and the section of the page.
DISTRIBUTIONS = {"random-shapes": ("random-shapes", "PyTorch's time over fastattn's, share of shapes", "Ratios")}

#: Layout: panels in a row, size of a panel; start of bars, length of fastattn's, distance between bars.
COLUMNS, WIDTH, HEIGHT = 4, 245, 118
BARS, UNIT, STEP = 100, 72, 20
#: The same of a distribution.
TALL, LONG, NARROW = 160, 110, 14
#: Number of ranges, from the first, in which fastattn is slower or as fast.
SLOWER = 4

#: Colours that are legible on white and on black, and better ones if the colour scheme is known.
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #6e7781 }
.title { font-size: 15px; font-weight: 600 } .panel { font-weight: 600 } .end { text-anchor: end }
.ours { fill: #e8590c } .other { fill: #9aa4ae }
@media (prefers-color-scheme: light) { text { fill: #57606a } .title, .panel, .first { fill: #24292f } }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } .title, .panel, .first { fill: #e6edf3 } \
.other { fill: #59636e } }"""


def draw(name):
    """A picture, as the text of an SVG file."""
    page, title, *content = PICTURES[name] if name in PICTURES else DISTRIBUTIONS[name]
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    make, about, height = (_panels, "longer is faster · ", HEIGHT) if name in PICTURES else (_ranges, "", TALL)
    panels = make(text, *content)
    parts = [_text(0, 16, title, "title"), _text(0, 36, about + measured_on(text))]
    for n, panel in enumerate(panels):
        parts += panel(WIDTH * (n % COLUMNS), 70 + height * (n // COLUMNS))
    return _picture(title, parts, 60 + height * -(-len(panels) // COLUMNS))


def _picture(title, parts, height):
    size = f'width="{COLUMNS * WIDTH}" height="{height}" viewBox="0 0 {COLUMNS * WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(title)}</title>'
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", *parts, "</svg>\n"])


def _panels(text, panels):
    """A function of (left, top) for each panel, to its parts."""
    rows = read(text)
    return [functools.partial(_panel, label, rows[section, key]) for label, section, key in panels]


def _ranges(text, section):
    """The same for a distribution: a panel for each kind of call, of all its types."""
    table = text.partition(f"## {section}\n\n")[2].partition("\n\n")[0]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    first = next(n for n, cell in enumerate(header) if cell.startswith("below "))
    kinds = {}
    for row in rows:
        kinds.setdefault(row[0], []).append([int(cell) for cell in row[first:]])
    sums = {kind: [sum(counts) for counts in zip(*found, strict=True)] for kind, found in kinds.items()}
    return [functools.partial(_distribution, kind, header[first:], counts) for kind, counts in sums.items()]


def _distribution(kind, ranges, counts, left, top):
    yield _text(left, top, kind, "panel")
    for n, (label, count) in enumerate(zip(ranges, counts, strict=True)):
        y, share = top + 18 + NARROW * n, count / sum(counts)
        yield _text(left + BARS - 8, y, label, "end")
        yield _bar(left + BARS, y, LONG * share, 10, "other" if n < SLOWER else "ours")
        yield _text(left + BARS + LONG * share + 5, y, f"{share:.0%}" if count else "")


def _panel(label, times, left, top):
    yield _text(left, top, label, "panel")
    for n, (engine, time) in enumerate(times.items()):
        y, ours = top + 18 + STEP * n, engine == "fastattn"
        yield _text(left + BARS - 8, y, engine, "end first" if ours else "end")
        length = UNIT * seconds(times["fastattn"]) / seconds(time) if time != "—" else 0
        if length:
            yield _bar(left + BARS, y, length, 13, "ours" if ours else "other")
        yield _text(left + BARS + length + 5, y, time, "first" if ours else "")


def _bar(x, y, length, height, style):
    return f'<rect x="{x}" y="{y - 10}" width="{length:.1f}" height="{height}" rx="2" class="{style}"/>'


def _text(x, y, text, style=""):
    style = f' class="{style}"' if style else ""
    return f'<text x="{x:.4g}" y="{y}"{style}>{escape(text)}</text>'


def read(text):
    """{(section, the cells before fastattn's): {engine: time}} of all tables of a page that compare engines."""
    rows, section, header = {}, "", None
    for line in text.splitlines():
        if line.startswith("## "):
            section, header = line.removeprefix("## "), None
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if header is None:
                header = cells
                first = header.index("fastattn") if "fastattn" in header else len(header)
                end = next((n for n, cell in enumerate(header) if cell.startswith("vs. ")), first)
            else:
                times = (cell.split(" · ")[0] for cell in cells[first:end])
                rows[section, " ".join(cells[:first])] = dict(zip(header[first:end], times, strict=True))
    return rows


def measured_on(text):
    """Processor, target, threads and date, from the line at the end of a page."""
    processor, *facts, date = text.rstrip().rpartition("\n")[2].replace("(R)", "").split(" · ")
    shown = [fact for fact in facts if fact.startswith(("target ", "threads "))]
    return " · ".join([processor, *shown, date])


def seconds(text):
    """12.3 µs as a number."""
    number, unit = text.split()
    return float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]


if __name__ == "__main__":
    for name, (page, *_) in (PICTURES | DISTRIBUTIONS).items():
        if (FOLDER / f"{page}.md").exists():
            (FOLDER / f"{name}.svg").write_text(draw(name), encoding="utf-8")
