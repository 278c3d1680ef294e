"""Attention weights as a figure. Uses matplotlib without its global state."""

import warnings

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

MOST = 512  # tokens: drawing more takes hundreds of megabytes
DPI = 120

# The side of a cell in inches, for up to FEW tokens. With more, cells shrink, but the figure still grows.
CELL, FEW = 0.34, 24

INK, FAINT = "#1f2933", "#616e7c"
COLORS = LinearSegmentedColormap.from_list("weights", ["#f3f5f8", "#a9cbe8", "#3583c4", "#0b3566"])
LAST_RESORT = "Last Resort High-Efficiency"  # comes with matplotlib: a box for every character

# These override the user's settings: tokens are not formulas, text in an SVG stays text, files are reproducible.
SETTINGS = {"text.usetex": False, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "fastattn"}


def save(file, format, tokens, weights, title):
    """Draw weights (S, S), whose rows attend to columns, into a binary file; return the characters that no font has."""
    families, missing = _families("".join(tokens))
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # it is returned
        metadata = {"Date": None} if format == "svg" else None
        figure = _figure(tokens, weights, title, families)
        figure.savefig(file, format=format, dpi=DPI, bbox_inches="tight", pad_inches=0.2, metadata=metadata)
    return missing


def _figure(tokens, weights, title, families):
    """The cells fill the figure; everything else is outside of it, where ``bbox_inches="tight"`` includes it."""
    count = len(tokens)
    cell = CELL * min(1, (FEW / count) ** 0.4)
    side = cell * count
    larger = max(1, side / 10)  # factor for title, axis labels and colour bar
    figure = Figure((side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    mesh = axes.pcolormesh(weights, cmap=COLORS, vmin=0, edgecolors="white", linewidth=3 * cell, rasterized=count > 64)
    axes.set_title(title, loc="left", fontsize=13 * larger, fontweight="bold", color=INK, pad=12)
    axes.set_ylabel("attending (query)", fontsize=9 * larger, color=FAINT, labelpad=8)
    axes.set_xlabel("attended to (key)", fontsize=9 * larger, color=FAINT, labelpad=8)
    _label(axes, tokens, families, min(9.5, 0.65 * 72 * cell))
    _write_numbers(axes, weights, 0.28 * 72 * cell)
    _add_bar(figure, mesh, side, larger)
    return figure


def _label(axes, tokens, families, size):
    """Label rows and columns, from the upper left corner, with tokens; text sizes are in points."""
    places = np.arange(len(tokens)) + 0.5
    axes.set_ylim(len(tokens), 0)
    axes.set_yticks(places, tokens, family=families)
    axes.set_xticks(places, tokens, family=families, rotation=60, ha="left", rotation_mode="anchor")
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=size, labelcolor=INK)
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)


def _write_numbers(axes, weights, size):
    """Write the larger weights into their cells, if the text is legible."""
    for row, column in np.argwhere(weights >= 0.1) if size > 4.5 else ():
        weight = weights[row, column]
        color = "white" if weight > 0.5 * weights.max() else INK
        number = f"{weight:.2f}".removeprefix("0")
        axes.text(column + 0.5, row + 0.5, number, ha="center", va="center_baseline", fontsize=size, color=color)


def _add_bar(figure, mesh, side, larger):
    """Add the colour bar at the right."""
    gap, width, height = 0.25 * larger, 0.13 * larger, min(side, 4 * larger)
    axes = figure.add_axes((1 + gap / side, 1 - height / side, width / side, height / side))
    figure.colorbar(mesh, cax=axes).outline.set_visible(False)
    axes.tick_params(length=0, labelsize=8 * larger, labelcolor=FAINT)
    axes.set_ylabel("weight", fontsize=9 * larger, color=FAINT, labelpad=8)


def _families(text):
    """The font families that together cover a text, the usual ones first; and the characters that none has."""
    usual = FontProperties()
    families, missing = [*usual.get_family()], set(text) - _characters(findfont(usual))
    for font in fontManager.ttflist if missing else ():
        found = missing & _characters(font.fname) if font.name not in (*families, LAST_RESORT) else set()
        if found:
            families.append(font.name)
            missing -= found
    return families, "".join(sorted(missing))


def _characters(path):
    """The characters of a font, if it is scalable."""
    font = FT2Font(path)
    return set(map(chr, font.get_charmap())) if font.scalable else set()
