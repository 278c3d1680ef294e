"""The rule that the error of a result must keep: the one yardstick of `check`, of `bench` and of the tests.

The contract: the error against the oracle is at most twice that of the straightforward NumPy formula in the same
precision, plus one unit in the last place. It is taken row by row, along the last axis, relative to the largest
magnitude that the oracle has in the row: lest a small row hide its errors beside a large one. The formula's error is
that of its worst row, the unit in the last place that of each row's largest magnitude.

Inputs are rounded to their type beforehand, and the oracle is given the rounded ones, in more digits than the type
has. Where keys and values or a weight are quantised, the oracle has the exact ones and the formula those that were
rounded to integers row by row. Large results are judged on samples of their rows, since the oracle stores every score.
"""

import functools
import math
import operator
from dataclasses import dataclass, replace

import numpy as np

from fastattn import reference
from fastattn.commands.measuring import formulas

#: By dtype: an engine whose error is beyond this share of the largest value computes something else, or in less.
#: float16 that is computed in bfloat16, as by OpenVINO unless it is told otherwise, errs by 5e-3.
PLAUSIBLE = {"float32": 1e-3, "float64": 1e-11, "float16": 3e-3, "bfloat16": 3e-2, "int8": 5e-2}

#: The largest integer of a quantised type.
LEVELS = {"int8": 127}

#: The arguments that may be stored in another type than the first one.
STORED = ("key", "value", "weight")


@dataclass(frozen=True)
class Verdict:
    """How far a result is from the oracle, how far it may be, and how far another engine's may be.

    Error and allowance are those of the element that is closest to its allowance, or farthest beyond it. An engine's
    may be any element's: `largest`, which is that error where nothing else is said.
    """

    error: float
    allowed: float
    tolerable: float
    largest: float | None = None
    place: tuple = ()

    @property
    def kept(self):
        """Whether the rule is kept; an error that is NaN does not keep it, nor one that nothing bounds."""
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
    """A part of a case's result: where it is, and for each returned array what oracle and formula say.

    Whatever is stored in fewer bits than the result has is named in `stored`.
    """

    index: object
    oracle: tuple
    formula: tuple
    stored: str = ""


def expected(case, sampled=False):
    """What a case's result must be: all of it in one part, or samples of a large one in several."""
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
    """What the reference says, in more digits than `dtype` has: in float64 it would err as float64 results do."""
    if dtype == "float64":
        arguments, options = widened(arguments), widened(options)
    return getattr(reference, operation)(*arguments, **options)


def widened(x):
    """Every array of float64, in tuples, lists and dicts as well, as long double; all else as it is."""
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


def judge(result, parts):
    """The verdict on a result; the worst one, when the operation returns several arrays."""
    results = _as_tuple(result)
    if len(results) != len(parts[0].oracle):
        raise ValueError(f"the result is {len(results)} arrays, not {len(parts[0].oracle)}")
    return max((_judge(results[n], n, parts) for n in range(len(results))), key=operator.attrgetter("share"))


def _as_tuple(result):
    """A result as a tuple of arrays, for operations that return one and for those that return several."""
    return result if isinstance(result, tuple) else (result,)


def _judge(result, n, parts):
    """The verdict on the n-th returned array; what has fewer axes than the first is a number for each row of that."""
    for part in parts:
        got, formula = result[part.index], part.formula[n]
        if (got.shape, got.dtype) != (formula.shape, formula.dtype):
            raise ValueError(f"the result is {got.dtype} {got.shape}, not {formula.dtype} {formula.shape}")
    compared = [(result[part.index], part.formula[n], part.oracle[n]) for part in parts]
    if parts[0].oracle[n].ndim < parts[0].oracle[0].ndim:
        compared = [as_one_row(*zip(*compared, strict=True))]
    tolerable = PLAUSIBLE[parts[0].stored or result.dtype.name] * max(_largest(oracle) for _, _, oracle in compared)
    return replace(judge_rows(compared), tolerable=float(tolerable))


def _largest(oracle):
    """The largest finite magnitude."""
    return np.max(_magnitudes(oracle), initial=0)


def as_one_row(*kinds):
    """Arrays, or sequences of arrays, each as a row; of numbers that have no row of their own to set a magnitude."""
    return tuple(np.concatenate([np.reshape(x, (1, -1)) for x in arrays], axis=1) for arrays in kinds)


def judge_rows(compared):
    """The verdict on an array by its parts: (result, formula, oracle) of each, whose rows lie along the last axis.

    Where the formula has no finite number, it is not asked.
    """
    magnitudes = [_magnitudes(oracle) for _, _, oracle in compared]
    by_formula = max(map(_of_formula, compared, magnitudes))
    verdicts = list(map(functools.partial(_worst, by_formula), compared, magnitudes))
    worst = max(verdicts, key=operator.attrgetter("share"))
    return replace(worst, largest=max(verdict.largest for verdict in verdicts))


def _magnitudes(oracle):
    """Of each row the largest finite one."""
    return np.max(np.abs(oracle), axis=-1, keepdims=True, where=np.isfinite(oracle), initial=0)


def _of_formula(compared, magnitude):
    """The formula's worst error, relative to the magnitude of its row."""
    _, formula, oracle = compared
    errors = _errors(formula, oracle) / np.where(magnitude == 0, 1, magnitude)
    return np.max(errors, initial=0, where=np.isfinite(errors))


def _worst(by_formula, compared, magnitude):
    """The verdict on the element that uses most of its allowance."""
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
