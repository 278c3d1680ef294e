"""Measure the largest errors: of the functions inside the kernels, and of every operation as a share of the rule.

    python benchmarks/accuracy.py             # print the tables; takes about two minutes
    python benchmarks/accuracy.py --page      # write docs/performance/accuracy.md

Needs mpmath, for the error function of float64.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

import fastattn
from fastattn import _runtime, reference
from fastattn.commands import check
from fastattn.commands.measuring import dtypes, tables
from report import Page, print_or_write

PAGE = Page(
    "accuracy",
    "Accuracy",
    """\
The largest errors that were found, by type and target, and where; targets that agree in all of a table share a column
of it. First the functions inside the kernels, each as an operation reaches it, in units in the last place of the exact
result: in float32 every 4099th bit pattern, in 16 bits all of them, in float64 random numbers of every magnitude. Exact
results below 1024 times the smallest normal number of the type that is computed in are left out: they may be 0, where a
factor would be subnormal. In 16 bits `gelu` is by a shorter polynomial, and softcap's results are float32: logarithms
of a sum of exponentials, which on AMX are wrong by up to 8.6e-5 if all is bfloat16. Activations fall to 0 for negative
x, and the next layer adds them to larger numbers: a second line has their largest error where the result is below 1, in
units of eps; softcap has it, too.

Then every operation over the cases of `python -m fastattn check`, as a share of what the [contract](../contract.md)
allows: twice the error of the NumPy formula in the same type, and a unit in the last place.""",
    "accuracy.py",
)

#: Every so many bit patterns of float32.
STEP = 4099

#: Numbers drawn for float64.
DRAWN = 20_000

#: Smallest normal numbers; below that, results are not compared.
LEAST = 1024

CAP = 30.0


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of real numbers: how a call reaches it, its exact values, and the range of its argument.

    `exact` gets numbers in a wider type; `call` returns an array of float32 or wider if the operation does so. Errors
    are taken relative to the result, and absolutely as well if it falls to 0.
    """

    name: str
    reached: str
    call: Callable
    exact: Callable
    lowest: float = -math.inf
    highest: float = math.inf
    falls_to_zero: bool = False


def _second_weight(x):
    """The weight of x beside 0."""
    return fastattn.softmax(np.stack([np.zeros_like(x), x], axis=1))[:, 1]


def _second_attention_weight(x):
    """The same by attention: for each x a query of one component, and the keys 0 and 1."""
    keys = np.array([[0], [1]], x.dtype)
    return fastattn.attention_weights(x[:, None], keys, scale=1.0)[:, 1]


def _capped(x):
    """The softcap of a score, which is the logarithm of the sum over a single key."""
    one = np.ones((1, 1), x.dtype)
    return fastattn.scaled_dot_product_attention(x[:, None], one, one, scale=1.0, softcap=CAP, return_lse=True)[1]


def _activated(activation):
    """A linear layer of one weight, 1."""
    return lambda x: fastattn.linear(x[:, None], np.ones((1, 1), x.dtype), activation=activation)[:, 0]


def _exact_gelu(x):
    """By Python's erfc for what has at most 32 bits, by mpmath for more."""
    if x.dtype != np.longdouble:
        return reference.linear(x[:, None], np.ones((1, 1)), activation="gelu")[:, 0]
    import mpmath  # here, so that the script can be imported without it

    near = np.clip(x, -60, 60)  # beyond, it is 0 or x
    with mpmath.workprec(120):
        values = (mpmath.mpf(float(n)) * mpmath.erfc(-mpmath.mpf(float(n)) / mpmath.sqrt(2)) / 2 for n in near)
        values = np.array([np.longdouble(mpmath.nstr(value, 25)) for value in values])
    return np.where(x > 60, x, values)


def _exact_activation(activation):
    return lambda x: reference.linear(x[:, None], np.ones((1, 1), x.dtype), activation=activation)[:, 0]


def _exact_weight(x):
    """e^x / (1 + e^x) for x <= 0."""
    return np.exp(x) / (1 + np.exp(x))


FUNCTIONS = (
    Function("e^x / (1 + e^x)", "softmax", _second_weight, _exact_weight, highest=0),
    Function("e^x / (1 + e^x)", "attention_weights", _second_attention_weight, _exact_weight, highest=0),
    Function("30 tanh(x / 30)", "softcap", _capped, lambda x: CAP * np.tanh(x / CAP), falls_to_zero=True),
    Function("x Φ(x)", "gelu", _activated("gelu"), _exact_gelu, falls_to_zero=True),
    Function(
        "x σ(1.6 (x + 0.045 x³))",
        "gelu_tanh",
        _activated("gelu_tanh"),
        _exact_activation("gelu_tanh"),
        falls_to_zero=True,
    ),
    Function("x σ(x)", "silu", _activated("silu"), _exact_activation("silu"), falls_to_zero=True),
)


@functools.cache
def arguments(dtype):
    """Finite numbers of that type, over all of its range, and the points at which 2^n changes."""
    bits = np.dtype(f"u{dtype.itemsize}")
    if dtype.itemsize == 8:
        rng = np.random.default_rng(0)
        magnitudes = np.concatenate([rng.uniform(0, 40, DRAWN), 10.0 ** rng.uniform(-320, 308, DRAWN // 10)])
        x = np.concatenate([magnitudes, -magnitudes])
    else:
        step = STEP if dtype.itemsize == 4 else 1
        x = np.arange(0, 2 ** (8 * dtype.itemsize), step, dtype=np.uint64).astype(bits).view(dtype)
    edges = [math.log(2) * n / 2 for n in range(-300, 300)]
    x = np.concatenate([x, np.array(edges).astype(dtype)])
    with np.errstate(invalid="ignore"):
        return x[np.isfinite(x.astype(np.float64))]


@dataclasses.dataclass(frozen=True)
class Found:
    """The largest error, in units, and the argument that gives it."""

    error: float
    at: float

    def __str__(self):
        error = tables.digits(self.error) if self.error < 1e6 else f"{self.error:.1e}"
        return f"{error} at {self.at:.9g}"


def largest_errors(function, dtype, x, exact):
    """{measure: the largest error of a function over x on the current target}."""
    result = function.call(x)
    least = LEAST * float(np.finfo(dtypes.wide(dtype)).tiny)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(result.dtype)
        errors = np.abs(result.astype(exact.dtype) - exact)
        units = {"last place": np.spacing(np.abs(rounded)).astype(exact.dtype)}
    if function.falls_to_zero:
        units["eps, below 1"] = np.where(np.abs(exact) < 1, np.spacing(result.dtype.type(1)), np.inf)
    compared = np.isfinite(rounded.astype(np.float64)) & (np.abs(exact) >= least)
    return {measure: _largest(np.where(compared, errors, 0) / unit, x) for measure, unit in units.items()}


def _largest(errors, x):
    place = int(np.argmax(errors))
    return Found(float(errors[place]), float(x[place]))


def of_functions(names=None):
    """{(function, dtype, measure): {target: what was found}}."""
    found = {}
    for dtype, function in itertools.product(_types(names), FUNCTIONS):
        x = arguments(dtype)
        x = x[(x >= dtype.type(function.lowest)) & (x <= dtype.type(function.highest))]
        with np.errstate(over="ignore", under="ignore"):
            exact = function.exact(x.astype(np.longdouble if dtype == np.float64 else np.float64))
        for target in fastattn.targets():
            with _runtime.on_target(target):
                for measure, largest in largest_errors(function, dtype, x, exact).items():
                    found.setdefault((function, dtype.name, measure), {})[target] = largest
    return found


def _types(names):
    return [dtypes.named(name) for name in names or dtypes.NEEDS if not dtypes.absent(name)]


def of_operations():
    """{(operation, types): {target: the line of `check`}}."""
    found = {}
    jobs = check.plan()
    with tables.Progress(len(jobs)) as progress:
        for job in jobs:
            for line in check.lines_of(*job, progress):
                found.setdefault((line.operation, line.dtype), {})[line.target] = line
    return found


def by_type(header, align, found):
    """Tables in Markdown, one for each type, of {type: {leading cells: {target: cell}}}.

    Targets that agree in all cells of a table share a column of it: in most types they share kernels.
    """
    parts = []
    for dtype, rows in found.items():
        columns = {}
        for target in fastattn.targets():
            columns.setdefault(tuple(cells[target] for cells in rows.values()), []).append(target)
        lines = [(*leading, *cells) for leading, cells in zip(rows, zip(*columns, strict=True), strict=True)]
        names = [", ".join(targets) for targets in columns.values()]
        parts += [f"### {dtype}", tables.markdown((*header, *names), lines, align + "r" * len(names))]
    return parts


def table():
    """The tables of functions and of operations, in Markdown."""
    functions, operations = {}, {}
    for (function, dtype, measure), by_target in of_functions().items():
        leading = (function.name, f"`{function.reached}`", measure)
        functions.setdefault(dtype, {})[leading] = {target: str(found) for target, found in by_target.items()}
    for (operation, dtype), lines in of_operations().items():
        shares = {target: line.error / line.allowed for target, line in lines.items()}
        leading = (f"`{operation}`", lines[max(shares, key=shares.get)].worst)
        operations.setdefault(dtype, {})[leading] = {target: f"{share:.2f}" for target, share in shares.items()}
    parts = (
        "## Functions",
        *by_type(("function", "reached by", "unit"), "lll", functions),
        "## Operations, as a share of what is allowed",
        *by_type(("operation", "closest case"), "ll", operations),
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    print_or_write(table, PAGE, __doc__)
