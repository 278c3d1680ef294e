"""The rule that the error of a result must keep.

The contract: the largest error against the float64 oracle is at most twice that of the straightforward
NumPy formula in the same precision, plus one unit in the last place of the oracle's largest value.
Inputs are rounded to their type beforehand, and the oracle is given the rounded ones. Where keys and values or a weight
are quantised, the oracle has the exact ones and the formula those that were rounded to integers row by row. Large
results are judged on samples of their rows, since the oracle stores every score.
"""

import contextlib
import math
import operator
from dataclasses import dataclass

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
    """How far a result is from the oracle, how far it may be, and how far another engine's may be."""

    error: float
    allowed: float
    tolerable: float

    @property
    def kept(self):
        """Whether the rule is kept; an error that is NaN does not."""
        return self.error <= self.allowed

    @property
    def plausible(self):
        """Whether this is the same operation in the same precision at all."""
        return self.error <= self.tolerable

    @property
    def share(self):
        """The part of the allowed error that was used; infinite for NaN."""
        return math.inf if math.isnan(self.error) else self.error / self.allowed


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
    oracle, formula = getattr(reference, case.operation), getattr(formulas, case.operation)
    with _oracle_beyond(case.dtype):
        return [
            Part(
                index,
                _as_tuple(oracle(**arguments, **options)),
                _as_tuple(formula(**_stored(case, arguments), **options)),
                case.kv_dtype if case.kv_dtype in LEVELS else "",
            )
            for index, arguments, options in case.parts(sampled)
        ]


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


@contextlib.contextmanager
def _oracle_beyond(dtype):
    """Let the oracle compute in more digits than `dtype` has: in its own float64 it errs as float64 results do."""
    kept = reference._REAL
    reference._REAL = np.longdouble if dtype == "float64" else kept
    try:
        yield
    finally:
        reference._REAL = kept


def _judge(result, n, parts):
    """The verdict on the n-th returned array; its parts stand for the whole, so the largest numbers of all count."""
    compared = [(result[part.index], part.formula[n], part.oracle[n]) for part in parts]
    for got, formula, _ in compared:
        if (got.shape, got.dtype) != (formula.shape, formula.dtype):
            raise ValueError(f"the result is {got.dtype} {got.shape}, not {formula.dtype} {formula.shape}")
    dtype = result.dtype
    # NumPy's maximum, unlike Python's, is NaN when any number is.
    scale = np.max([_largest(oracle) for _, _, oracle in compared])
    error = np.max([_error(got, oracle) for got, _, oracle in compared])
    formula_error = np.max([_error(formula, oracle) for _, formula, oracle in compared])
    ulp = np.spacing(dtype.type(scale))
    tolerable = PLAUSIBLE[parts[0].stored or dtype.name] * scale
    return Verdict(float(error), float(2 * formula_error + float(ulp)), float(tolerable))


def _largest(oracle):
    """The largest finite value."""
    return np.abs(oracle[np.isfinite(oracle)]).max(initial=0)


def _error(result, oracle):
    """The largest difference; equal infinities do not differ, and a NaN stays one."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(result - oracle)
    return np.where(result == oracle, 0, difference).max(initial=0)
