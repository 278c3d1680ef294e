"""The rule for the error of a result, used by `check`, `bench` and the tests.

The contract: the error against the reference (the oracle) is at most twice that of the straightforward NumPy formula in
the same precision, plus one unit in the last place. It is taken row by row, along the last axis, relative to the
oracle's largest magnitude in the row, so that a small row cannot hide its errors next to a large one. The formula's
error is that of its worst row, the unit in the last place that of each row's largest magnitude.

Inputs are rounded to their type first, and the oracle gets the rounded ones, in a wider type. If keys and values or a
weight are quantised, the oracle gets the exact ones and the formula the quantised ones. Large results are checked on
samples of their rows, since the oracle stores every score.
"""

import functools
import math
import operator
from dataclasses import dataclass, replace

import numpy as np

from fastattn import reference
from fastattn.commands.measuring import formulas

#: By dtype: an engine whose error exceeds this share of the largest value computes something else, or in a narrower
#: type. float16 computed in bfloat16, as OpenVINO does by default, has an error of 5e-3.
PLAUSIBLE = {"float32": 1e-3, "float64": 1e-11, "float16": 3e-3, "bfloat16": 3e-2, "int8": 5e-2}

#: The largest integer of a quantised type.
LEVELS = {"int8": 127}

#: The arguments that may have another type than the first one.
STORED = ("key", "value", "weight")


@dataclass(frozen=True)
class Verdict:
    """The error of a result, the allowed one, and the tolerable one for other engines.

    `error` and `allowed` are those of the element with the largest ratio of both. Other engines are held to `largest`,
    the largest error of any element (`error` by default).
    """

    error: float
    allowed: float
    tolerable: float
    largest: float | None = None
    place: tuple = ()

    @property
    def kept(self):
        """Whether the rule is kept; an error that is NaN does not keep it, nor one without a bound."""
        return self.error <= self.allowed < math.inf

    @property
    def plausible(self):
        """Whether this is the same operation in the same precision at all."""
        return (self.error if self.largest is None else self.largest) <= self.tolerable

    @property
    def share(self):
        """The part of the allowed error that was used; infinite for NaN."""
        share = self.error / self.allowed
        return math.inf if math.isnan(share) else share


@dataclass(frozen=True)
class Part:
    """A part of a case's result: its index and, for each returned array, the results of oracle and formula.

    `stored` names the quantised type of arguments, if there is one.
    """

    index: object
    oracle: tuple
    formula: tuple
    stored: str = ""


def expected(case, sampled=False):
    """The expected result of a case: all of it in one part, or samples of a large one in several."""
    formula = getattr(formulas, case.operation)
    return [
        Part(
            index,
            _as_tuple(oracle(case.operation, case.dtype, **arguments, **options)),
            _as_tuple(formula(**_stored(case, arguments), **options)),
            case.kv_dtype if case.kv_dtype in LEVELS else "",
        )
        for index, arguments, options in case.parts(sampled)
    ]


def oracle(operation, dtype, *arguments, **options):
    """The reference's result in a wider type than `dtype`: for float64, in long double."""
    if dtype == "float64":
        arguments, options = widened(arguments), widened(options)
    return getattr(reference, operation)(*arguments, **options)


def widened(x):
    """Convert every float64 array, also in tuples, lists and dicts, to long double."""
    if isinstance(x, dict):
        return {name: widened(part) for name, part in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(map(widened, x))
    return x.astype(np.longdouble) if getattr(x, "dtype", None) == np.float64 else x


def _stored(case, arguments):
    """The arguments as they are stored."""
    if case.kv_dtype not in LEVELS:
        return arguments
    return arguments | {name: quantised(arguments[name], LEVELS[case.kv_dtype]) for name in STORED if name in arguments}


def quantised(x, levels):
    """Each row rounded to whole multiples of its largest magnitude over `levels`."""
    scale = np.abs(x).max(-1, keepdims=True, initial=0) / x.dtype.type(levels)
    return np.rint(x / np.where(scale == 0, 1, scale)) * scale


def check(result, parts):
    """Check a result; the worst verdict if the operation returns several arrays."""
    results = _as_tuple(result)
    if len(results) != len(parts[0].oracle):
        raise ValueError(f"the result is {len(results)} arrays, not {len(parts[0].oracle)}")
    return max((_check_array(results[n], n, parts) for n in range(len(results))), key=operator.attrgetter("share"))


def _as_tuple(result):
    """A result as a tuple of arrays, for operations that return one and for those that return several."""
    return result if isinstance(result, tuple) else (result,)


def _check_array(result, n, parts):
    """Check the n-th returned array; one with fewer axes than the first holds a number for each row of that."""
    for part in parts:
        got, formula = result[part.index], part.formula[n]
        if (got.shape, got.dtype) != (formula.shape, formula.dtype):
            raise ValueError(f"the result is {got.dtype} {got.shape}, not {formula.dtype} {formula.shape}")
    compared = [(result[part.index], part.formula[n], part.oracle[n]) for part in parts]
    if parts[0].oracle[n].ndim < parts[0].oracle[0].ndim:
        compared = [as_one_row(*zip(*compared, strict=True))]
    tolerable = PLAUSIBLE[parts[0].stored or result.dtype.name] * max(_largest(oracle) for _, _, oracle in compared)
    return replace(check_rows(compared), tolerable=float(tolerable))


def _largest(oracle):
    """The largest finite magnitude."""
    return np.max(_magnitudes(oracle), initial=0)


def as_one_row(*kinds):
    """Join arrays, or sequences of arrays, to one row each: for numbers without a row of their own."""
    return tuple(np.concatenate([np.reshape(x, (1, -1)) for x in arrays], axis=1) for arrays in kinds)


def check_rows(compared):
    """Check an array by its parts, (result, formula, oracle) each, with rows along the last axis.

    Numbers of the formula that are not finite are ignored.
    """
    magnitudes = [_magnitudes(oracle) for _, _, oracle in compared]
    by_formula = max(map(_of_formula, compared, magnitudes))
    verdicts = list(map(functools.partial(_worst, by_formula), compared, magnitudes))
    worst = max(verdicts, key=operator.attrgetter("share"))
    return replace(worst, largest=max(verdict.largest for verdict in verdicts))


def _magnitudes(oracle):
    """The largest finite magnitude of each row."""
    return np.max(np.abs(oracle), axis=-1, keepdims=True, where=np.isfinite(oracle), initial=0)


def _of_formula(compared, magnitude):
    """The formula's worst error, relative to the magnitude of its row."""
    _, formula, oracle = compared
    errors = _errors(formula, oracle) / np.where(magnitude == 0, 1, magnitude)
    return np.max(errors, initial=0, where=np.isfinite(errors))


def _worst(by_formula, compared, magnitude):
    """The verdict on the element with the largest ratio of error to allowed error."""
    result, _, oracle = compared
    errors = _errors(result, oracle)
    allowed = np.broadcast_to(2 * by_formula * magnitude + _last_place(magnitude, result.dtype), errors.shape)
    if errors.size == 0:
        return Verdict(0.0, float(np.spacing(result.dtype.type(0))), math.inf, 0.0)
    with np.errstate(invalid="ignore"):
        shares = errors / allowed
    place = tuple(map(int, np.unravel_index(np.argmax(shares), shares.shape)))
    return Verdict(float(errors[place]), float(allowed[place]), math.inf, float(errors.max()), place)


def _last_place(magnitude, dtype):
    """A unit in the last place of each magnitude; below it for the largest number, above which there is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = magnitude.astype(dtype)
        above, below = np.spacing(rounded), rounded - np.nextafter(rounded, dtype.type(0))
    return np.where(np.isfinite(above), above, below).astype(magnitude.dtype)


def _errors(x, oracle):
    """The difference of each element; what is not finite must be the oracle's exactly, or is infinitely far from it."""
    finite = np.isfinite(oracle) & np.isfinite(x)
    same = (x == oracle) | (np.isnan(x) & np.isnan(oracle))
    differences = np.abs(np.subtract(x, oracle, out=np.zeros_like(oracle), where=finite))
    return np.where(finite | same, differences, np.inf)
