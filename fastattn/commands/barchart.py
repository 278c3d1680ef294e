"""Results of `bench` as a figure: a bar for the speed-up of each call. Uses matplotlib without its global state."""

import math

import matplotlib
from matplotlib.figure import Figure

from fastattn.commands.heatmap import DPI, FAINT, INK, SETTINGS
from fastattn.commands.measuring import tables

BAR = 0.3  # inches
WON, LOST = "#3583c4", "#c4563a"

#: Facts of the machine below the chart, and their units.
_FACTS = {"processor": "", "threads": " threads", "target": "", "date": ""}


def save(file, format, results, other, facts):
    """Draw the speed-up over the `other` engine into a binary file."""
    with matplotlib.rc_context(SETTINGS):
        metadata = {"Date": None} if format == "svg" else None
        figure = _figure([(result, result.speedup(other)) for result in results], facts)
        figure.savefig(file, format=format, dpi=DPI, bbox_inches="tight", pad_inches=0.2, metadata=metadata)


def _figure(bars, facts):
    """Bars begin at 1, where both are equally fast; a call that did not run has a row without a bar."""
    figure = Figure((8, BAR * len(bars)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xscale("log")
    known = [ratio for _, ratio in bars if not math.isnan(ratio)]
    axes.set_xlim(0.9 * min([1, *known]), 1.6 * max([1, *known]))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    for row, (result, ratio) in enumerate(bars):
        if not math.isnan(ratio):
            _draw(axes, row, result, ratio)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(bars)), [f"{result.case.name}  {result.case.shape}" for result, _ in bars])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(length=0, which="both", labelsize=8.5, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_title("Times as fast as NumPy", loc="left", fontsize=13, fontweight="bold", color=INK, pad=10)
    below = " · ".join(f"{facts[name]}{unit}" for name, unit in _FACTS.items())
    if any(_is_uncertain(result) for result, _ in bars):
        below += "\n~ rounds vary widely, or other processes used the processors"
    axes.set_xlabel(below, loc="left", fontsize=8, color=FAINT, labelpad=8)
    return figure


def _draw(axes, row, result, ratio):
    """A bar from 1 to the ratio, followed by the ratio and the library's time."""
    axes.barh(row, ratio - 1, left=1, height=0.7, color=WON if ratio >= 1 else LOST)
    label = f" {tables.ratio(ratio)}  {tables.duration(result.ours.seconds)}{' ~' * _is_uncertain(result)}"
    axes.text(max(ratio, 1), row, label, va="center", fontsize=8, color=INK)


def _is_uncertain(result):
    return result.scatters or result.disturbed
