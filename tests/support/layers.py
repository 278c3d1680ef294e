"""Linear layers with their answers, and how far a result may be from them."""

import numpy as np

import fastattn
from fastattn import _arguments, reference
from support.accuracy import assert_accurate, by_formula, by_oracle, matmul_of_target
from support.dtypes import computed_in, eps, random
from support.remembering import remembered
from support.targets import widens_int8
from support.telling import telling

INT8 = np.dtype(np.int8)
ACTIVATIONS = (None, *_arguments.ACTIVATIONS)

_linear_in_float64 = remembered(reference.linear)

# No activation is steeper than gelu at its steepest.
STEEPEST = 1.13


def layer(rng, dtype, rows, inputs, outputs, stored=None):
    """The arguments of a layer whose sums are about 1; `rows` is a number or a shape.

    Weight and bias may be `stored` in another type than x; int8 is a weight of values and scales, and leaves the bias.
    """
    rows = rows if isinstance(rows, tuple) else (rows,)
    weight = rng.normal(size=(outputs, inputs)) / np.sqrt(max(inputs, 1))
    kind = dtype if stored in (None, INT8) else stored
    return {
        "x": random(rng, dtype, *rows, inputs),
        "weight": quantised(weight) if stored == INT8 else weight.astype(kind),
        "bias": random(rng, kind, outputs),
        "residual": random(rng, dtype, *rows, outputs),
    }


def plain_and_int8(*arguments):
    """The same layer with a weight in x's own type and in int8."""
    for stored in (None, INT8):
        yield layer(*arguments, stored)


def quantised(weight):
    """(values, scales): whole multiples of each row's largest magnitude over 127; every other row upside down."""
    scales = np.abs(weight).max(axis=1, initial=0).astype(np.float32) / np.float32(127)
    scales[1::2] *= -1
    return np.rint(weight / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8), scales


def dequantised(weight, dtype):
    """A pair of values and scales multiplied in the type that rows of `dtype` are computed in; others as they are."""
    if not isinstance(weight, tuple):
        return weight
    values, scales = (part.astype(computed_in(dtype)) for part in weight)
    return values * scales[:, None]


def is_quantised(arrays):
    return isinstance(arrays["weight"], tuple)


def each(function, array):
    """The function of an array, or of both arrays of an int8 weight."""
    return tuple(map(function, array)) if isinstance(array, tuple) else function(array)


def first_outputs(arrays, count):
    """The layer that makes the first of the outputs."""
    residual = arrays["residual"][..., :count]
    first = {name: each(lambda x: x[:count], arrays[name]) for name in ("weight", "bias")}
    return arrays | first | {"residual": residual}


def answers(arrays, **options):
    """The results of the NumPy formula and of the oracle."""
    expected = by_oracle("linear", arrays["x"].dtype, **arrays, **options)
    plain = arrays | {"weight": dequantised(arrays["weight"], arrays["x"].dtype)}
    return by_formula("linear", **plain, **options, matmul=matmul_of_target()), expected


def assert_linear_accurate(arrays, *, outputs=None, out=None, num_threads=None, **options):
    """The layer on these arrays, held to the accuracy rule or, with int8 weights, to what is promised; its result.

    With `outputs` the result has the first ones alone, and is judged beside the others: those give rows a magnitude.
    """
    asked = arrays if outputs is None else first_outputs(arrays, outputs)
    result = fastattn.linear(**asked, **options, out=out, num_threads=num_threads)
    if is_quantised(arrays):
        assert_close_enough(result, asked, **options)
    if not is_quantised(arrays) or widens_int8():
        formula, expected = answers(arrays, **options)
        whole = expected.astype(result.dtype)
        whole[..., :outputs] = result
        with telling(operation="linear", **asked, **options):
            assert_accurate(whole, formula, expected)
    return result


def assert_close_enough(result, arrays, *, activation=None):
    """That a result is the oracle's but for roundings, in any order and, beside int8, those of x to 8 bits."""
    before = _linear_in_float64(**arrays | {"residual": None})
    after = _linear_in_float64(**arrays | {"residual": None}, activation=activation)
    expected = _linear_in_float64(**arrays, activation=activation)
    dtype = arrays["x"].dtype
    # Numbers of 16 bits may be rounded to them after the product, after the activation and in the end.
    stored = sum(eps(dtype) * np.abs(x) + float(np.spacing(dtype.type(0))) for x in (before, after, expected))
    assert result.shape == expected.shape
    assert result.dtype == dtype
    error, allowed = np.abs(result - expected), stored + error_of_sums(arrays)
    with telling(operation="linear", **arrays, activation=activation):
        assert (error <= allowed).all(), f"{np.nanmax(error / allowed):.2f} of what is allowed"


def error_of_sums(arrays):
    """The most that each sum may be off, in float32 or float64, once an activation has made it steeper."""
    return STEEPEST * (_of_sums(arrays) + _of_quantisation(**arrays))


def _of_sums(arrays):
    """The most that float32 or float64 can do to each sum.

    An element passes as many additions as there are, at most; each errs by a part of the sum of all magnitudes.
    """
    total = _linear_in_float64(**{name: each(lambda x: np.abs(x.astype(float)), x) for name, x in arrays.items()})
    kind = computed_in(arrays["x"].dtype)
    return (arrays["x"].shape[-1] + 16) * (eps(kind) * total + float(np.spacing(kind.type(0))))


def _of_quantisation(x, weight, **_):
    """The most that rounding x to 8 bits can do to each sum; 0 with other weights than int8.

    A row is rounded to 255 steps between its least and its largest element, 0 among them; a step is 2^-126 at least.
    That is half a step of each element, times the sum of the magnitudes of a row of the weight. Steps are computed in
    float32, so an element just about halfway may go the wrong way.
    """
    if not isinstance(weight, tuple):
        return 0
    x = x.astype(float)
    step = np.maximum((x.max(-1, initial=0) - x.min(-1, initial=0)) / 255, 2.0**-126)
    values, scales = (np.abs(part.astype(float)) for part in weight)
    return 0.5001 * step[..., None] * scales * values.sum(axis=1)
