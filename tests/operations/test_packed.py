"""Packed weights: linear with one is linear with the weight itself, to the bit; and what is made of bad ones."""

import copy
import json
import os
import pickle
import re
import threading

import numpy as np
import pytest

import fastattn
from fastattn import PackedWeight, _array_file, pack, reference
from fastattn._runtime import on_target
from fastattn.nn import quantize
from support.accuracy import assert_accurate, by_formula, matmul_of_target, wider
from support.arrays import LAYOUTS, WRITABLE_LAYOUTS, empty_laid_out, fenced, is_poison, laid_out, placed
from support.dtypes import ALL, HALF, WIDE, assert_equal, computed_in, eps, largest, readable
from support.layers import (
    ACTIVATIONS,
    INT8,
    assert_close_enough,
    dequantised,
    each,
    error_of_sums,
    first_outputs,
    layer,
    quantised,
)
from support.targets import widens_int8
from support.telling import telling

FLOAT64 = np.dtype(np.float64)

# Rows of x and what the weight is stored in: no weight is wider than float32 if x is not float64.
KINDS = [(dtype, stored) for dtype in ALL for stored in (*ALL, INT8) if dtype == FLOAT64 or stored != FLOAT64]
STORED = (*ALL, INT8)

each_kind = pytest.mark.parametrize(("dtype", "stored"), KINDS, ids=str)
each_stored = pytest.mark.parametrize("stored", STORED, ids=str)

pytestmark = pytest.mark.usefixtures("target")

INPUTS = (0, 1, 2, 19, 31, 33, 64, 127, 257, 513, 1030)

# Around the tiles of rows and, the last ones, around the items of many tiles.
ROWS = (*range(1, 34), 61, 119, 120, 121, 130)


def panel_of(stored, gated=False):
    """Outputs of a panel on the current target."""
    weight = quantised(np.zeros((1, 1))) if stored == INT8 else np.zeros((1, 1), stored)
    return pack(weight, gate=weight if gated else None).rows_of_a_panel


def outputs_around(panel):
    return (0, 1, panel // 2, panel - 1, panel, panel + 1, panel + panel // 2, 2 * panel + 1, 97, 5 * panel + 3)


def packed(arrays):
    """The layer with its weight packed."""
    return arrays | {"weight": pack(arrays["weight"])}


def random_weight(rng, stored, outputs, inputs):
    return layer(rng, FLOAT64 if stored == FLOAT64 else np.dtype(np.float32), 0, inputs, outputs, stored)["weight"]


def assert_same_bits(x, y):
    """Equal to the bit, but for which NaN it is."""
    if x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes():
        return
    assert_equal(x, y)
    x, y = readable(x), readable(y)
    np.testing.assert_array_equal(np.signbit(x[~np.isnan(x)]), np.signbit(y[~np.isnan(y)]))


def assert_same_weight(x, y):
    assert type(x) is type(y) or {type(x), type(y)} <= {tuple, type(quantize(np.zeros((1, 1))))}
    for one, other in zip(*((a if isinstance(a, tuple) else (a,)) for a in (x, y)), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def assert_as_with_the_weight_itself(arrays, **options):
    expected = fastattn.linear(**arrays, **options)
    result = fastattn.linear(**packed(arrays), **options)
    with telling(**arrays, **options):
        assert_same_bits(result, expected)
    return result


# Sizes


@pytest.mark.usefixtures("one_thread")
@each_kind
@pytest.mark.parametrize("inputs", INPUTS)
def test_sizes(rng, dtype, stored, inputs):
    """Each number of rows gives what they give among 130, with the weight as it was."""
    panel = panel_of(stored)
    whole = layer(rng, dtype, ROWS[-1], inputs, 5 * panel + 97, stored)
    for i, outputs in enumerate(outputs_around(panel)):
        arrays = first_outputs(whole, outputs)
        expected = fastattn.linear(**arrays)
        beside = packed(arrays)
        for rows in ROWS[i % 3 :: 3] if outputs else (1, 7):
            some = beside | {name: arrays[name][:rows] for name in ("x", "residual")}
            with telling(**some, outputs=outputs):
                assert_same_bits(fastattn.linear(**some), expected[:rows])


@each_kind
@pytest.mark.parametrize("rows", [(), (1,), (2, 7), (2, 3, 4, 5), (0,), (3, 0)], ids=str)
def test_dimensions(rng, dtype, stored, rows):
    assert_as_with_the_weight_itself(layer(rng, dtype, rows, 7, 70, stored))


@pytest.mark.parametrize("dtype", ALL[:1] + HALF, ids=str)
@pytest.mark.parametrize("inputs", [65_536 + 1037, 2 * 65_536 + 5])
def test_runs_of_integers(rng, dtype, inputs):
    """More products of 8 bits than a sum of 32 bits holds; runs are added in the same way in every block of outputs."""
    arrays = layer(rng, dtype, 9, inputs, 17, INT8)
    arrays["weight"][0][:2] = [[127], [-127]]
    arrays["x"][0] = 3
    assert_as_with_the_weight_itself(arrays)
    x, (values, scales) = arrays["x"], arrays["weight"]
    whole = fastattn.linear(x, (values, scales))
    for i in range(len(values)):
        one = slice(i, i + 1)
        assert_same_bits(fastattn.linear(x[:1], (values[one], scales[one])), whole[:1, one])


# Options


@pytest.mark.usefixtures("one_thread")
@each_kind
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("given", [(), ("bias",), ("residual",), ("bias", "residual")], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_options(rng, dtype, stored, activation, given, rows):
    for inputs in (5, 70, 300):
        arrays = layer(rng, dtype, rows, inputs, 3 * panel_of(stored) + 5, stored)
        arrays["x"] *= dtype.type(3)
        arrays = {name: arrays[name] for name in ("x", "weight", *given)}
        expected = assert_as_with_the_weight_itself(arrays, activation=activation)
        places = [np.empty_like(expected)]
        if "residual" in given:
            places.append(arrays["residual"])
        for out in places:
            assert fastattn.linear(**packed(arrays), activation=activation, out=out) is out
            assert_same_bits(out, expected)


@each_kind
@pytest.mark.parametrize("kind", ALL, ids=str)
def test_bias_of_other_types(rng, dtype, stored, kind):
    if kind == FLOAT64 != dtype:
        pytest.skip("wider than what it is computed in")
    arrays = layer(rng, dtype, 5, 70, 65, stored)
    assert_as_with_the_weight_itself(arrays | {"bias": arrays["bias"].astype(kind)}, activation="gelu")


# Values


@each_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-39, 1e36])
def test_values_of_x(rng, dtype, stored, bad):
    bad = min(bad, largest(dtype)) if np.isfinite(bad) else bad
    for inputs in (1, 5, 64, 300):
        arrays = layer(rng, dtype, 13, inputs, 50, stored)
        clean = fastattn.linear(**packed(arrays))
        arrays["x"][4, inputs // 2] = bad
        arrays["x"][11] = bad
        spoiled = assert_as_with_the_weight_itself(arrays)
        assert_same_bits(np.delete(spoiled, (4, 11), axis=0), np.delete(clean, (4, 11), axis=0))


@each_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e-39, 1e36])
def test_values_of_the_weight(rng, dtype, stored, bad):
    """A number spoils its own output alone, whatever else is in the panel."""
    if stored == INT8:
        pytest.skip("its values are whole numbers")
    bad = min(bad, largest(stored)) if np.isfinite(bad) else bad
    for inputs in (1, 70):
        arrays = layer(rng, dtype, 13, inputs, 50, stored)
        clean = fastattn.linear(**packed(arrays))
        arrays["weight"][7, inputs // 2] = bad
        spoiled = assert_as_with_the_weight_itself(arrays)
        assert_same_bits(np.delete(spoiled, 7, axis=1), np.delete(clean, 7, axis=1))


@pytest.mark.parametrize("dtype", ALL[:1] + HALF, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_numbers_near_the_largest_beside_int8(rng, dtype, rows):
    """Products overflow before they are scaled, their results do not."""
    for inputs in (6, 64, 301):
        arrays = layer(rng, dtype, rows + 1, inputs, 50, INT8)
        arrays["x"][::2] *= dtype.type(largest(dtype) / 16)
        del arrays["residual"]
        result = assert_as_with_the_weight_itself(arrays)
        assert_close_enough(result[::2], arrays | {"x": arrays["x"][::2]})


# To the bit: threads and company


SHARED = [(300, 65, 70), (130, 300, 200), (17, 1000, 300), (1, 768, 1500), (3, 5000, 90), (331, 40, 118)]
SHARED += [(203, 2146, 5), (77, 4097, 16), (150, 96, 40)]


@each_kind
@pytest.mark.parametrize("shape", SHARED, ids=str)
def test_any_number_of_threads_and_rows(rng, dtype, stored, shape):
    arrays = layer(rng, dtype, *shape, stored)
    expected = fastattn.linear(**arrays, activation="silu", num_threads=1)
    beside = packed(arrays)
    for num_threads in (1, 2, 7):
        result = fastattn.linear(**beside, activation="silu", num_threads=num_threads)
        assert_same_bits(result, expected)
    order = rng.permutation(shape[0])
    for rows in (order, slice(shape[0] // 3, shape[0] // 3 + 1)):
        some = {name: arrays[name][rows] for name in ("x", "residual")}
        assert_same_bits(fastattn.linear(**beside | some, activation="silu"), expected[rows])


def test_threads_that_share_a_weight(rng):
    arrays = packed(layer(rng, np.dtype(np.float32), 20, 300, 200))
    expected, found = fastattn.linear(**arrays, num_threads=1), []

    def work():
        found.extend(fastattn.linear(**arrays, num_threads=2) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 60
    for result in found:
        assert_same_bits(result, expected)


# Memory order


@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, dtype, stored, layout):
    """Of x, bias and residual, and of the weight that is packed."""
    for rows, inputs in (((4, 7), 13), ((1, 1), 70), ((2, 3), 64)):
        arrays = layer(rng, dtype, rows, inputs, 50, stored)
        arrays = {name: each(LAYOUTS[layout], array) for name, array in arrays.items()}
        before = {name: each(np.copy, array) for name, array in arrays.items()}
        assert_as_with_the_weight_itself(arrays, activation="gelu")
        for name, array in arrays.items():
            assert_same_weight(each(np.array, array), before[name])
        assert_same_weight(pack(arrays["weight"]).unpack(), before["weight"])


@each_kind
@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_out_layouts(rng, dtype, stored, layout):
    for outputs in (13, 65):
        arrays = layer(rng, dtype, (4, 7), 70, outputs, stored)
        expected = fastattn.linear(**arrays)
        beside, residual = packed(arrays), laid_out(arrays["residual"], layout)
        for given, out in (
            (beside, empty_laid_out(expected.shape, dtype, layout)),
            (beside | {"residual": residual}, residual),
        ):
            assert fastattn.linear(**given, out=out) is out
            assert_same_bits(np.array(out), expected)


STRIDES = {
    "every second element": lambda x: x.repeat(2, axis=1)[:, ::2],
    "every second row": lambda x: x.repeat(2, axis=0)[1::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "rows backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "rows 4 KB apart": lambda x: np.pad(x, ((0, 0), (0, 4096 // x.itemsize - x.shape[1])))[:, : x.shape[1]],
    "one row": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.usefixtures("one_thread")
@each_kind
@pytest.mark.parametrize("strides", STRIDES)
def test_strides(rng, dtype, stored, strides):
    for inputs in (64, 70, 256):
        arrays = layer(rng, dtype, 40, inputs, 70, stored)
        change = STRIDES[strides]
        weight = arrays["weight"]
        weight = (change(weight[0]), weight[1]) if stored == INT8 else change(weight)
        x, expected = change(arrays["x"]), fastattn.linear(**arrays | {"weight": weight, "x": change(arrays["x"])})
        for rows in (40, 5, 4, 1):
            some = {"x": x[:rows], "residual": arrays["residual"][:rows]}
            assert_same_bits(fastattn.linear(**arrays | some | {"weight": pack(weight)}), expected[:rows])


@each_kind
@pytest.mark.parametrize("at", ["start", "end"])
def test_nothing_outside_is_touched(rng, dtype, stored, at):
    """Not in packing, nor in computing, nor in unpacking."""

    sizes = ((1, 33, 37), (2, 37, 1), (9, 3, 65), (5, 64, 32), (1, 129, 8), (17, 70, 40), (43, 67, 5))
    for rows, inputs, outputs in sizes:
        arrays = layer(rng, dtype, rows, inputs, outputs, stored)
        expected = fastattn.linear(**arrays, num_threads=1)
        out = fenced("out").place(expected.shape, dtype, at)
        beside = packed({name: placed(name, array, at) for name, array in arrays.items()})
        assert_same_bits(fastattn.linear(**beside, out=out, num_threads=1), expected)


def test_out_is_what_was_packed(rng):
    """The weight was copied."""
    arrays = layer(rng, np.dtype(np.float32), 70, 70, 70)
    beside, expected = packed(arrays), fastattn.linear(**arrays)
    assert_same_bits(fastattn.linear(**beside, out=arrays["weight"]), expected)
    assert_same_bits(fastattn.linear(**beside), expected)


# Gates


def gated_layer(rng, dtype, rows, inputs, outputs, stored):
    """A layer and its gate: their biases are those of one call."""
    arrays, gate = (layer(rng, dtype, rows, inputs, outputs, stored) for _ in range(2))
    return arrays, gate


def gated(arrays, gate, activation, **options):
    """One call of what the two layers are packed to."""
    bias = None if "bias" not in arrays else np.stack([gate["bias"], arrays["bias"]])
    weight = pack(arrays["weight"], gate=gate["weight"])
    return fastattn.linear(arrays["x"], weight, bias, activation=activation, residual=arrays.get("residual"), **options)


def by_two_calls(linear, arrays, gate, activation):
    x = arrays["x"]
    result = linear(x, gate["weight"], gate.get("bias"), activation=activation)
    result = result * linear(x, arrays["weight"], arrays.get("bias"))
    return result if "residual" not in arrays else result + arrays["residual"]


# For rows of float64, scales are multiplied into the gate and the weight, where two layers multiply their sums.
GATED = [(dtype, stored) for dtype, stored in KINDS if dtype in WIDE and (dtype, stored) != (FLOAT64, INT8)]
NARROW = [(dtype, stored) for dtype, stored in KINDS if dtype in HALF]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("dtype", "stored"), GATED, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("inputs", [0, 3, 64, 257, 1030])
def test_gated(rng, dtype, stored, activation, inputs):
    """To the bit what two layers give, whose results need no rounding."""
    panel = panel_of(stored, True)
    for outputs in (1, panel - 1, panel, panel + 1, 5 * panel + 3):
        arrays, gate = gated_layer(rng, dtype, ROWS[-1], inputs, outputs, stored)
        arrays["x"] *= dtype.type(2)
        expected = by_two_calls(fastattn.linear, arrays | {"residual": 0}, gate, activation) + arrays["residual"]
        for rows in (1, 2, 4, 7, 33, ROWS[-1]):
            some = {name: arrays[name][:rows] for name in ("x", "residual")}
            with telling(**arrays | some, activation=activation):
                assert_same_bits(gated(arrays | some, gate, activation), expected[:rows])


@pytest.mark.parametrize(("dtype", "stored"), KINDS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("given", [(), ("bias", "residual")], ids=str)
def test_gated_as_defined(rng, dtype, stored, activation, given):
    for rows, inputs, outputs in ((9, 70, 150), (30, 130, 65)):
        whole = gated_layer(rng, dtype, rows, inputs, outputs, stored)
        arrays, gate = ({name: one[name] for name in ("x", "weight", *given)} for one in whole)
        gate["x"] = arrays["x"]
        gate.pop("residual", None)
        result = gated(arrays, gate, activation)
        assert_gated_close(result, arrays, gate, activation)
        for num_threads in (1, 2, 7):
            out = arrays["residual"].copy() if "residual" in given else np.empty_like(result)
            same = arrays | ({"residual": out} if "residual" in given else {})
            assert gated(same, gate, activation, out=out, num_threads=num_threads) is out
            assert_same_bits(out, result)


def assert_gated_close(result, arrays, gate, activation):
    """That a result is the oracle's, as near as the accuracy rule wants it or, beside int8, as roundings leave it."""
    dtype = arrays["x"].dtype
    wide = wider((arrays, gate)) if dtype == FLOAT64 else (arrays, gate)
    expected = by_two_calls(reference.linear, *wide, activation)
    assert result.dtype == dtype
    if not isinstance(arrays["weight"], tuple) or widens_int8():
        plain, plain_gate = (one | {"weight": dequantised(one["weight"], dtype)} for one in (arrays, gate))

        def formula(*arguments, **options):
            return by_formula("linear", *arguments, **options, matmul=matmul_of_target())

        assert_accurate(result, by_two_calls(formula, plain, plain_gate, activation), expected)
        return
    ups = {name: arrays[name] for name in arrays if name != "residual"}
    one, other = reference.linear(**gate, activation=activation), reference.linear(**ups)
    of_one, of_other = error_of_sums(gate), error_of_sums(ups)
    allowed = np.abs(one) * of_other + np.abs(other) * of_one + of_one * of_other
    allowed += 4 * eps(computed_in(dtype)) * np.abs(one * other) + eps(dtype) * np.abs(expected) + eps(dtype) ** 2
    assert (np.abs(result - expected) <= allowed).all()


def test_nan_of_a_gate_stays_in_its_output(rng, dtype):
    arrays, gate = gated_layer(rng, dtype, 13, 70, 50, dtype)
    clean = gated(arrays, gate, "silu")
    gate["weight"][7, 3] = arrays["weight"][9, 3] = np.nan
    spoiled = gated(arrays, gate, "silu")
    assert np.isnan(readable(spoiled[:, [7, 9]])).all()
    assert_same_bits(np.delete(spoiled, (7, 9), axis=1), np.delete(clean, (7, 9), axis=1))


# What it is


@each_stored
@pytest.mark.parametrize("has_gate", [False, True], ids=["plain", "gated"])
def test_unpack(rng, stored, has_gate):
    panel = panel_of(stored, has_gate)
    for outputs in (0, 1, panel, panel + 1, 2 * panel + 1):
        for inputs in (0, 1, 2, 3, 5, 64, 257):
            weight, gate = (random_weight(rng, stored, outputs, inputs) for _ in range(2))
            found = pack(weight, gate=gate if has_gate else None)
            assert found.shape == (outputs, inputs)
            assert found.dtype == stored
            assert found.gated is has_gate
            assert found.nbytes >= (1 + has_gate) * outputs * inputs * stored.itemsize
            if has_gate:
                assert_same_weight(found.unpack()[0], weight)
                assert_same_weight(found.unpack()[1], gate)
            else:
                assert_same_weight(found.unpack(), weight)


@each_stored
def test_every_bit_pattern_comes_back(stored):
    """NaN of every kind, subnormal numbers, both zeros."""
    patterns = np.arange(65536 if stored.itemsize > 1 else 256, dtype=f"u{stored.itemsize}")
    patterns <<= patterns.dtype.type(8 * max(stored.itemsize - 2, 0))
    values = patterns.view(stored).reshape(64 if stored.itemsize > 1 else 4, -1)
    weight = (values, np.ones(len(values), np.float32)) if stored == INT8 else values
    assert_same_weight(pack(weight).unpack(), weight)


def test_unpacked_arrays_are_the_callers(rng):
    weight = pack(random_weight(rng, INT8, 5, 7))
    values, scales = weight.unpack()
    values[:], scales[:] = 1, 2
    assert_same_weight(weight.unpack(), pack(weight.unpack()).unpack())
    assert not (weight.unpack().values == 1).all()
    assert not (weight.unpack().scales == 2).any()


@pytest.mark.parametrize("from_", ALL, ids=str)
@each_stored
def test_conversion(rng, from_, stored):
    values = rng.normal(size=(9, 20)).astype(from_)
    expected = quantize(values) if stored == INT8 else values.astype(stored)
    for name in (stored, stored.name, stored.type):
        assert_same_weight(pack(values, dtype=name).unpack(), expected)
    gate = values[::-1]
    found = pack(values, gate=gate, dtype=stored).unpack()
    assert_same_weight(found[0], expected)
    assert_same_weight(found[1], quantize(gate) if stored == INT8 else gate.astype(stored))


def test_int8_may_be_named(rng):
    weight = random_weight(rng, INT8, 9, 20)
    assert_same_weight(pack(weight, dtype="int8").unpack(), weight)


@each_stored
@pytest.mark.parametrize("has_gate", [False, True], ids=["plain", "gated"])
def test_rows(rng, stored, has_gate):
    panel = panel_of(stored, has_gate)
    outputs = 3 * panel + 5
    weight, gate = (random_weight(rng, stored, outputs, 33) for _ in range(2))
    whole = pack(weight, gate=gate if has_gate else None)
    x = rng.normal(size=(4, 33)).astype(stored if stored == FLOAT64 else np.float32)
    expected = fastattn.linear(x, whole, activation="silu")
    for first, last in ((0, panel), (panel, outputs), (panel, 3 * panel), (1, 2), (panel + 3, outputs - 1), (0, 0),
                        (outputs, outputs), (0, outputs)):  # fmt: skip
        part = whole.rows(first, last)
        assert part.shape == (last - first, 33)
        assert part.gated is has_gate
        assert_same_bits(fastattn.linear(x, part, activation="silu"), expected[:, first:last])
        if not has_gate:
            assert_same_weight(part.unpack(), each(lambda a, first=first, last=last: a[first:last], weight))
        if not has_gate and first % panel == 0 and last in (outputs, panel, 3 * panel):
            assert np.shares_memory(part.data, whole.data)
    for first, last in ((-1, 3), (3, 2), (0, outputs + 1)):
        with pytest.raises(ValueError, match="first and last must be"):
            whole.rows(first, last)


@each_stored
@pytest.mark.parametrize("has_gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("through", ["pickle", "copy", "deepcopy"])
def test_copies(rng, stored, has_gate, through):
    weight, gate = (random_weight(rng, stored, 21, 33) for _ in range(2))
    whole = pack(weight, gate=gate if has_gate else None)
    twin = {
        "pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy, "deepcopy": copy.deepcopy,
    }[through](whole)  # fmt: skip
    assert repr(twin) == repr(whole)
    for one, other in zip(*(x.unpack() if has_gate else (x.unpack(),) for x in (twin, whole)), strict=True):
        assert_same_weight(one, other)


def test_a_pickle_is_packed_for_whoever_loads_it(rng):
    weight = random_weight(rng, INT8, 21, 33)
    dumped = pickle.dumps(pack(weight))
    for name in fastattn.targets():
        with on_target(name):
            loaded = pickle.loads(dumped)
            assert loaded.target == name
            assert_same_weight(loaded.unpack(), weight)


@each_stored
def test_it_cannot_be_changed(rng, stored):
    weight = pack(random_weight(rng, stored, 5, 7))
    for name in ("shape", "dtype", "nbytes", "target", "gated", "data", "scales", "panel_bytes", "more"):
        with pytest.raises(AttributeError):
            setattr(weight, name, getattr(weight, name, None))
    for x in (weight.data, weight.scales):
        if x is not None:
            assert not x.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                x[:1] = 1


def test_it_is_a_copy(rng):
    for stored in STORED:
        weight = random_weight(rng, stored, 5, 7)
        found, before = pack(weight), each(np.copy, weight)
        for x in weight if isinstance(weight, tuple) else (weight,):
            x[:] = 1
        assert_same_weight(found.unpack(), before)


def test_repr(target):
    weight = np.zeros((3, 5), np.float32)
    assert repr(pack(weight)) == f"PackedWeight(shape=(3, 5), dtype=float32, target={target!r})"
    gate = quantize(weight)
    assert repr(pack(gate, gate=gate)) == f"PackedWeight(shape=(3, 5), dtype=int8, gated, target={target!r})"


# Bad arguments

ONES = np.ones((3, 5), np.float32)
INT8_ONES = np.ones((3, 5), np.int8), np.ones(3, np.float32)

BAD = [
    (TypeError, "weight must be a numpy.ndarray, got list", lambda: pack([[1.0]])),
    (TypeError, "weight must be a plain numpy.ndarray, got MaskedArray", lambda: pack(np.ma.ones((2, 3)))),
    (TypeError, "weight must have dtype float32, .* got dtype int64", lambda: pack(np.ones((2, 3), np.int64))),
    (TypeError, "weight must have dtype float32, .* got dtype int8", lambda: pack(INT8_ONES[0])),
    (TypeError, "weight must have dtype .* native byte order", lambda: pack(ONES.astype(ONES.dtype.newbyteorder()))),
    (ValueError, r"weight must have shape \(out_features, in_features\), got shape \(3,\)", lambda: pack(ONES[:, 0])),
    (ValueError, r"weight must have shape .* got shape \(1, 3, 5\)", lambda: pack(ONES[None])),
    (TypeError, "weight must be a numpy.ndarray, got PackedWeight", lambda: pack(pack(ONES))),
    (ValueError, r"weight must be an array or a pair .* got a tuple of 3", lambda: pack((*INT8_ONES, 1))),
    (ValueError, r"weight must be an array or a pair .* got a tuple of 0", lambda: pack(())),
    (TypeError, r"weight\[0\] must have dtype int8 .* got dtype float32", lambda: pack((ONES, INT8_ONES[1]))),
    (TypeError, r"weight\[0\] must be a numpy.ndarray, got list", lambda: pack(([[1]], INT8_ONES[1]))),
    (TypeError, r"weight\[0\] must be .* got MaskedArray", lambda: pack((np.ma.array(INT8_ONES[0]), INT8_ONES[1]))),
    (TypeError, r"weight\[1\] must have dtype float32, got dtype float64", lambda: pack((INT8_ONES[0], np.ones(3)))),
    (ValueError, r"weight\[0\] must have shape", lambda: pack((INT8_ONES[0][0], INT8_ONES[1]))),
    (ValueError, r"weight\[1\] must have shape \(3,\)", lambda: pack((INT8_ONES[0], np.ones(5, np.float32)))),
    (ValueError, r"weight\[1\] must have shape \(3,\)", lambda: pack((INT8_ONES[0], np.ones((3, 1), np.float32)))),
    *(
        (ValueError, r"weight\[1\] must be finite", lambda bad=bad: pack((INT8_ONES[0], np.float32([1, bad, 1]))))
        for bad in (np.nan, np.inf, -np.inf)
    ),
    (ValueError, "weight must be finite to be quantised", lambda: pack(ONES * np.float32(np.nan), dtype="int8")),
    (ValueError, "weight must be finite to be quantised", lambda: pack(ONES * np.float32(np.inf), dtype="int8")),
    (ValueError, "weight must be finite to be quantised", lambda: pack(np.full((2, 3), 1e39), dtype="int8")),
    (ValueError, "weight must be below 65520", lambda: pack(ONES * np.float32(65520), dtype="float16")),
    (ValueError, "gate must be below 65520", lambda: pack(ONES, gate=ONES * np.float32(1e9), dtype="float16")),
    (TypeError, "weight is int8 already", lambda: pack(INT8_ONES, dtype="float32")),
    (TypeError, "dtype must be .* got 'int32'", lambda: pack(ONES, dtype="int32")),
    (TypeError, "dtype must be .* got 7", lambda: pack(ONES, dtype=7)),
    (TypeError, "gate must be a numpy.ndarray, got list", lambda: pack(ONES, gate=[1])),
    (TypeError, "gate must have dtype float32, like weight", lambda: pack(ONES, gate=ONES.astype(np.float16))),
    (TypeError, "gate must have dtype float32, like weight", lambda: pack(ONES, gate=INT8_ONES)),
    (TypeError, "gate must have dtype int8, like weight", lambda: pack(INT8_ONES, gate=ONES)),
    (ValueError, r"gate must have weight's shape \(3, 5\)", lambda: pack(ONES, gate=ONES[:2])),
    (ValueError, r"gate must have weight's shape \(3, 5\)", lambda: pack(ONES, gate=ONES[:, :4])),
    (ValueError, r"gate\[1\] must be finite", lambda: pack(INT8_ONES, gate=(INT8_ONES[0], np.float32([1, 1, np.nan])))),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[message for _, message, _ in BAD])
def test_what_cannot_be_packed(error, message, call):
    with pytest.raises(error, match=f"^{message}"):
        call()


X = np.ones((2, 5), np.float32)
BAD_CALLS = {
    "inputs": (ValueError, r"weight must have shape \(out_features, 4\)", {"x": X[:, :4]}),
    "float64 weight": (
        TypeError, "weight must not be wider than float32", {"weight": lambda: pack(ONES.astype(float))},
    ),
    "scales again": (TypeError, "weight", {"weight": lambda: (pack(ONES), np.ones(3, np.float32))}),
    "bias": (ValueError, r"bias must have shape \(3,\)", {"bias": X[0]}),
    "bias of two": (ValueError, r"bias must have shape \(3,\)", {"bias": np.ones((2, 3), np.float32)}),
    "bias of one, gated": (
        ValueError, r"bias must have shape \(2, 3\)", {"bias": np.ones(3, np.float32), "weight": lambda: gate()},
    ),
    "bias of six, gated": (
        ValueError, r"bias must have shape \(2, 3\)", {"bias": np.ones(6, np.float32), "weight": lambda: gate()},
    ),
    "bias turned, gated": (
        ValueError, r"bias must have shape \(2, 3\)", {"bias": np.ones((3, 2), np.float32), "weight": lambda: gate()},
    ),
    "bias of float64": (TypeError, "bias must not be wider than float32", {"bias": np.ones(3)}),
    "residual": (ValueError, "residual must have", {"residual": X}),
    "activation": (ValueError, "activation must be", {"activation": "swish"}),
}  # fmt: skip


def gate():
    return pack(ONES, gate=ONES)


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(case):
    """Nothing is written."""
    error, message, changes = BAD_CALLS[case]
    arguments = {"x": X, "weight": lambda: pack(ONES)} | changes
    arguments["weight"] = arguments["weight"]()
    out = empty_laid_out((2, 3), arguments["x"].dtype, "aligned")
    with pytest.raises(error, match=f"^{message}"):
        fastattn.linear(**arguments, out=out)
    assert is_poison(out)


def test_a_weight_of_another_target(target):
    weights = {}
    for name in fastattn.targets():
        with on_target(name):
            weights[name] = pack(ONES)
            assert weights[name].target == name
    for name, weight in weights.items():
        if name == target:
            assert_equal(fastattn.linear(X, weight), np.full((2, 3), 5, np.float32))
            continue
        out = empty_laid_out((2, 3), np.float32, "aligned")
        said = f"^weight must be packed for the target in use, '{target}', got .*'{name}'"
        with pytest.raises(ValueError, match=said):
            fastattn.linear(X, weight, out=out)
        assert is_poison(out)
        assert_same_weight(weight.unpack(), ONES)


@pytest.mark.parametrize("shape", [(1, 1 << 58), (1 << 58, 1), (1 << 30, 1 << 29)], ids=str)
def test_weights_too_large(shape):
    with pytest.raises(MemoryError):
        pack(np.broadcast_to(np.float32(1), shape))


@each_kind
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_weights_of_nothing(rng, dtype, stored, shape):
    arrays = layer(rng, dtype, 4, shape[1], shape[0], stored)
    weight = pack(arrays["weight"])
    assert weight.shape == shape
    assert_same_weight(weight.unpack(), arrays["weight"])
    assert_as_with_the_weight_itself(arrays, activation="gelu")
    both = pack(arrays["weight"], gate=arrays["weight"])
    assert fastattn.linear(arrays["x"], both).shape == (4, shape[0])
    assert (fastattn.linear(arrays["x"], both) == 0).all()


# Files


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weight"


def some_weight(stored=INT8, gated=False, shape=(21, 33)):
    rng = np.random.default_rng(5)
    weight, gate = (random_weight(rng, stored, *shape) for _ in range(2))
    return pack(weight, gate=gate if gated else None)


REFUSED = r"^path must be a complete file that PackedWeight.save wrote, got '.*weight': "


@each_stored
@pytest.mark.parametrize("has_gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("mmap_mode", [None, "r", "c"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (21, 33), (130, 70)], ids=str)
def test_saved_and_loaded(tmp_path, path, stored, has_gate, mmap_mode, shape):
    weight = some_weight(stored, has_gate, shape)
    weight.save(path)
    written = path.read_bytes()
    loaded = PackedWeight.load(str(path), mmap_mode=mmap_mode)
    assert [x.name for x in tmp_path.iterdir()] == ["weight"]
    assert repr(loaded) == repr(weight)
    assert loaded.nbytes == weight.nbytes
    for one, other in zip(*(x.unpack() if has_gate else (x.unpack(),) for x in (loaded, weight)), strict=True):
        assert_same_weight(one, other)
    x = np.random.default_rng(0).normal(size=(7, shape[1])).astype(stored if stored == FLOAT64 else np.float32)
    assert_same_bits(fastattn.linear(x, loaded), fastattn.linear(x, weight))
    for array in (loaded.data, loaded.scales):
        assert array is None or not array.flags.writeable
        assert array is None or array.size == 0 or array.ctypes.data % 64 == 0
    again = path.with_name("again")
    loaded.save(again)
    assert again.read_bytes() == written == path.read_bytes()


def test_a_file_is_numpys_own(path, target):
    weight = some_weight()
    weight.save(path)
    arrays = []
    with open(path, "rb") as file:
        while file.peek(1):
            arrays.append(np.load(file))
            assert file.tell() % 64 == 0 or len(arrays) % 2
    assert json.loads(arrays[0].tobytes()) == {
        "format": "fastattn packed weight 1", "kind": "PackedWeight", "target": target,
        "layout": list(weight.layout), "dtype": "int8", "shape": [21, 33], "gated": False,
    }  # fmt: skip
    np.testing.assert_array_equal(arrays[2], weight.data)
    np.testing.assert_array_equal(arrays[4], weight.scales)


def test_parts_of_another_targets_weight_are_refused():
    weight = pack(np.ones((200, 8), np.float32))
    for name in fastattn.targets():
        if name != weight.target:
            with on_target(name), pytest.raises(ValueError, match=f"'{name}' is in use"):
                weight.rows(0, 64)


def test_nothing_makes_a_weight_writable():
    weight = some_weight()
    for x in (weight.data, weight.scales):
        with pytest.raises(ValueError, match="WRITEABLE"):
            x.flags.writeable = True
    for change in (
        lambda: weight.set_data(np.zeros_like(weight.data)),
        lambda: weight.set_scales(weight.scales.copy()),
        lambda: weight.move(np.ones(weight.shape, np.int8), None, False),
        lambda: weight.__init__(*weight.shape, weight.dtype, False),
    ):
        with pytest.raises(TypeError, match="must not be changed"):
            change()


def test_panels_must_have_their_size():
    """Kernels read as many bytes as the shape says, whatever array holds them."""
    weight = some_weight()
    bytes_of_panels = len(weight.data)
    empty = PackedWeight(*weight.shape, weight.dtype, False, allocate=False)
    for size in (0, bytes_of_panels - 1, bytes_of_panels + 1, 2 * bytes_of_panels):
        with pytest.raises(ValueError, match=f"data must have {bytes_of_panels} bytes, got {size}"):
            empty.set_data(np.zeros(size, np.uint8))
    for data in (np.zeros(2 * bytes_of_panels, np.uint8)[::2], weight.data[None], weight.data.view(np.int8)):
        with pytest.raises(TypeError, match="data must be bytes side by side"):
            empty.set_data(data)
    empty.set_data(weight.data)
    empty.set_scales(weight.scales)
    assert_same_weight(empty.unpack(), weight.unpack())


def test_a_mapped_file_may_be_replaced(path):
    some_weight().save(path)
    mapped = PackedWeight.load(path, mmap_mode="r")
    expected = mapped.unpack()
    mapped.save(path)
    some_weight(ALL[0]).save(path)
    assert_same_weight(mapped.unpack(), expected)


@pytest.mark.parametrize("mmap_mode", [None, "r", "c"])
@pytest.mark.parametrize("has_gate", [False, True], ids=["plain", "gated"])
def test_a_file_cut_short_anywhere(path, has_gate, mmap_mode):
    some_weight(INT8, has_gate, (3, 5)).save(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1, -1, -1 if len(whole) < 3000 else -7):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=REFUSED):
            PackedWeight.load(path, mmap_mode=mmap_mode)
    path.write_bytes(whole + b".")
    with pytest.raises(ValueError, match=f"{REFUSED}it has data after its end"):
        PackedWeight.load(path, mmap_mode=mmap_mode)


def loaded_or_refused(path):
    """(a weight, None), or (None, what the ValueError says)."""
    try:
        return PackedWeight.load(path, mmap_mode="r"), None
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("stored", [ALL[0], INT8], ids=str)
def test_bytes_changed_in_the_text(path, stored):
    """Any of them, and those of the arrays' own headers."""
    some_weight(stored, shape=(3, 5)).save(path)
    whole = path.read_bytes()
    header = whole.index(b"NUMPY", whole.index(b"NUMPY", 10) + 1) + 122
    for at in range(0, header, 2 if stored == INT8 else 3):
        spoiled = bytearray(whole)
        spoiled[at] ^= 1 << at % 7
        path.write_bytes(spoiled)
        loaded, refusal = loaded_or_refused(path)
        if loaded is None:
            assert re.match(REFUSED, refusal)
        else:  # fewer rows in as many panels
            assert _array_file.text(loaded._content()) in spoiled


def written(path, arrays=None, **changes):
    """A file with another text."""
    weight = some_weight()
    arrays = [weight.data, weight.scales] if arrays is None else arrays
    _array_file.write(path, weight._content() | changes, [(np.ascontiguousarray(x), None) for x in arrays])


# Which check comes first depends on the target's layout.
UNFIT = "(the shapes of its arrays do not match|its text is not written as save writes it|its shape is)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "fastattn packed weight 2"}, "it holds a PackedWeight in the format 'fastattn packed weight 2'"),
        ({"format": "fastattn cache 1"}, "it holds a PackedWeight in the format 'fastattn cache 1'"),
        ({"kind": "KVCache"}, "it holds a KVCache"),
        ({"target": "z80"}, "it is for the target 'z80', and '.*' is in use"),
        ({"target": None}, "it is for the target None"),
        ({"dtype": "int32"}, "its dtype must be"),
        ({"dtype": 3}, "its dtype must be"),
        ({"dtype": "float32"}, UNFIT),
        ({"shape": [21, 34, 1]}, ""),
        ({"shape": 21}, ""),
        ({"shape": [21, -1]}, r"its shape is \[21, -1\]"),
        ({"shape": [21.0, 33]}, r"its shape is \[21.0, 33\]"),
        ({"shape": [True, 33]}, r"its shape is \[True, 33\]"),
        ({"shape": [21, 1 << 70]}, "its shape is"),
        ({"shape": [21, 330]}, UNFIT),
        ({"shape": [1 << 32, 1 << 32]}, UNFIT),
        ({"shape": [(1 << 40) - 1, (1 << 40) - 1]}, UNFIT),
        ({"gated": 0}, "its text is not written as save writes it"),
        ({"gated": "no"}, "its text is not written as save writes it"),
        ({"gated": True}, UNFIT),
        ({"more": 1}, "its text is not written as save writes it"),
    ],
    ids=str,
)
def test_texts_that_are_not_right(path, changes, message):
    written(path, **changes)
    with pytest.raises(ValueError, match=REFUSED + message):
        PackedWeight.load(path)


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32), (1 << 36, 1 << 28), (1 << 39, 1 << 39)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8"])
def test_a_shape_beyond_all_memory(path, shape, dtype):
    """Its size in bytes is a multiple of 2^64."""
    written(path, [np.empty(0, np.uint8), np.empty(0, np.float32)], shape=list(shape), dtype=dtype)
    with pytest.raises(ValueError, match=REFUSED):
        PackedWeight.load(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("mmap_mode", [None, "r", "c"])
def test_scales_that_are_not_finite(path, bad, mmap_mode):
    weight = some_weight()
    scales = weight.scales.copy()
    scales[-1] = bad
    written(path, [weight.data, scales])
    with pytest.raises(ValueError, match=f"{REFUSED}it has scales that are not finite"):
        PackedWeight.load(path, mmap_mode=mmap_mode)


def test_missing_and_further_arrays(path):
    weight = some_weight()
    for arrays, message in (
        ([weight.data], ""),
        ([weight.scales, weight.data], "it has an array of"),
        ([weight.data, weight.scales[:-1]], "the shapes"),
        ([weight.data, weight.scales, weight.scales], "it has data after its end"),
        ([weight.data.reshape(1, -1), weight.scales], "the shapes"),
        ([weight.data[:-64], weight.scales], "the shapes"),
    ):
        written(path, arrays)
        with pytest.raises(ValueError, match=REFUSED + message):
            PackedWeight.load(path)


def test_a_file_for_another_target(path, target):
    for name in fastattn.targets():
        with on_target(name):
            some_weight().save(path)
        if name != target:
            with pytest.raises(ValueError, match=f"{REFUSED}it is for the target '{name}', and '{target}' is in use"):
                PackedWeight.load(path)


def test_other_files(path):
    with pytest.raises(FileNotFoundError):
        PackedWeight.load(path)
    for content in (b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=REFUSED):
            PackedWeight.load(path)
    fastattn.KVCache(1, 1, 4, 5).save(path)
    with pytest.raises(ValueError, match=f"{REFUSED}it holds a KVCache"):
        PackedWeight.load(path)
    some_weight().save(path)
    with pytest.raises(ValueError, match=r"KVCache.save wrote, got .* holds a PackedWeight"):
        fastattn.KVCache.load(path)
    with pytest.raises(ValueError, match=r"mmap_mode must .* got 'r\+'"):
        PackedWeight.load(path, mmap_mode="r+")


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs devices")
def test_devices():
    some_weight().save("/dev/null")
    with pytest.raises(ValueError, match=r"got '/dev/null': it is not a regular file"):
        PackedWeight.load("/dev/null")


def test_threads_that_save_to_one_path(tmp_path, path):
    """At any time there is a whole file, one of those that are saved."""
    weights = [some_weight(), some_weight(ALL[0], shape=(70, 33))]
    texts = {repr(weight): weight.data.tobytes() for weight in weights}
    weights[0].save(path)
    errors = []

    def work(weight):
        try:
            for _ in range(30):
                weight.save(path)
                found = PackedWeight.load(path)
                assert found.data.tobytes() == texts[repr(found)]
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(weight,)) for weight in weights]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert [x.name for x in tmp_path.iterdir()] == ["weight"]
