"""Each allocation of every call fails in turn, and scratch memory ends at a page that may not be touched: nothing is
half written, leaked or read beyond its end."""

import os
from pathlib import Path

import pytest

from fastattn import _runtime
from support import allocations
from support.processes import output

ROUNDS = 12

# What an allocation that fails may not do: end the process, or be told as anything but a MemoryError.
FAILING = f"""
import ctypes, gc, sys, threading, traceback
sys.path.insert(0, sys.argv[1])
import numpy as np
from support.every_call import CALLS, nothing

allocator = ctypes.CDLL(None)

def parts(result):
    return [np.asarray(x) for x in (result if isinstance(result, tuple) else (result,))]

def attempt(call, out, n):
    # (the result or an error, whether an allocation failed), in a thread without scratch memory
    found = []
    def work():
        allocator.refuse(n)
        try:
            found.append(call(out))
        except BaseException as error:
            found.append(error)
        found.append(allocator.refuse(0) == 0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found

def is_of_memory(error):
    if isinstance(error, MemoryError):
        return True
    # NumPy's reductions and iterators do not say that it was memory.
    said = str(error) + traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, SystemError) and "without" in said and ("numpy" in said or "function where" in said)

def attempts(call, shape):
    expected, n, failed = parts(call(nothing(*shape))), 0, 0
    while True:
        n += 1
        out = nothing(*shape)
        result, some_failed = attempt(call, out, n)
        if isinstance(result, BaseException):
            if not is_of_memory(result):
                raise result
            # The tuple of two results may be what there is no memory for.
            assert np.isnan(out).all() or np.array_equal(out, expected[0]), "half written"
            failed += 1
        else:  # of what the call can do without, or after its last one
            assert all(np.array_equal(a, b) for a, b in zip(parts(result), expected)), "another result"
        if not some_failed:
            return failed

def live():
    gc.collect()
    return allocator.live_blocks()

for name, (call, shape) in CALLS.items():
    failed = attempts(call, shape)
    assert failed, name
    before = live()
    for _ in range({ROUNDS}):
        attempts(call, shape)
    print(name, failed, live() - before, sep=";")
"""

TESTS = str(Path(__file__).parents[1])


def in_a_process(code):
    return output(code, TESTS, LD_PRELOAD=allocations.library(), OMP_NUM_THREADS="2").splitlines()


def test_any_allocation_may_fail():
    lines = [line.split(";") for line in in_a_process(FAILING)]
    assert len(lines) > 15
    # Python keeps some errors for later, but not one more with each round.
    assert {name: int(leaked) for name, _, leaked in lines if int(leaked) >= ROUNDS} == {}


# The calling thread does alone what members of the team have no memory for.
OF_MEMBERS = """
import os, time
import numpy as np
import fastattn

x = np.random.default_rng(0).normal(size=(8, 4, 130, 32)).astype(np.float32)

def call(threads):
    return fastattn.scaled_dot_product_attention(x, x, x, num_threads=threads)

expected = call(1)
allocator.refuse_others(1)
deadline = time.monotonic() + 60
while not allocator.refuse_others(1) and len(os.sched_getaffinity(0)) > 1:
    assert time.monotonic() < deadline, "no member asked"
    assert np.array_equal(call(2), expected)
for _ in range(20):
    assert np.array_equal(call(2), expected)
allocator.refuse_others(0)
for _ in range(20):
    assert np.array_equal(call(2), expected)
print("right")
"""


@pytest.mark.skipif(not _runtime.has_openmp(), reason="a serial build")
def test_members_without_memory():
    assert in_a_process(allocations.BEGIN + OF_MEMBERS) == ["right"]


# Arrays that begin or end beside such a page, too, with sizes around those of vectors and tiles.
FENCED = """
import ctypes, sys, threading
sys.path.insert(0, sys.argv[1])
import numpy as np
import fastattn
from fastattn._runtime import on_target
from support.arrays import placed
from support.dtypes import ALL

ctypes.CDLL(None).fence(1)
rng = np.random.default_rng(0)
errors = []

def calls(n, dtype, at):
    def array(name, *shape, kind=dtype):
        return placed(name, rng.normal(size=shape).astype(kind), at)

    heads, few = array("query", 1, 4, n, n), array("few", 1, 4, 1, n)
    key, value = array("key", 1, 2, n + 3, n), array("value", 1, 2, n + 3, n + 1)
    mask, bias = placed("mask", rng.random((n, n + 3)) < 0.8, at), array("bias", 4, 2 * n + 1)
    x, weight, vector = array("x", 3, n), array("weight", n + 2, n), array("vector", n)
    outputs = array("outputs", n + 2)
    residual, other, columns = array("residual", 3, n + 2), array("other", 3, n), array("columns", n, 5)
    angles, turned = array("angles", n, n), array("turned", 2, n, 2 * n + 1)
    int8 = placed("int8", np.ones((n + 2, n), np.int8), at), array("scales", n + 2, kind=np.float32)
    attention = fastattn.scaled_dot_product_attention
    yield "out", attention, (heads, key, value), {"is_causal": True}
    yield "out", attention, (heads, key, value, mask), {"position_bias": bias, "softcap": 3.0}
    yield "out", attention, (few, key, value), {}
    keys = 1024 + n  # in two parts
    parts = array("rows", 1, 1, 53, n), array("keys", 1, 1, keys, n), array("values", 1, 1, keys, n + 1)
    yield "out", attention, parts, {}
    many = [array(f"many {i}", 6, 1, rows, n) for i, rows in enumerate((2, 3, 3))]
    yield "out", attention, many, {}
    yield "out", fastattn.attention_weights, (heads, key), {"window": (n, n)}
    ends = [0, 1, n]
    packed = [x[0].swapaxes(0, 1)[:n] for x in (heads, key, value)]
    yield "out", fastattn.varlen_attention, (*packed, ends, ends), {}
    yield "out", fastattn.softmax, (x,), {}
    yield "out", fastattn.softmax, (columns, 0), {}
    yield "out", fastattn.log_softmax, (x[..., ::-1],), {}
    yield "out", fastattn.layer_norm, (x, vector, vector), {}
    yield "pair", fastattn.add_rms_norm, (x, other, vector), {}
    yield "out", fastattn.linear, (x, weight, outputs), {"residual": residual, "activation": "gelu"}
    yield "out", fastattn.linear, (x, int8, outputs), {}
    yield "out", fastattn.rotary_embedding, (turned, angles, angles), {}
    if dtype != np.float64:
        yield "out", fastattn.linear, (x, fastattn.pack(int8), outputs), {}
    yield "out", fastattn.linear, (x, fastattn.pack(weight), outputs), {}

def run(kind, call, arguments, options, at):
    try:
        result = call(*arguments, **options)
        if kind == "pair":
            outs = tuple(placed(i, x, at) for i, x in enumerate(result))
            again = call(*arguments, **options, out=outs)
        else:
            result, again = (result,), (call(*arguments, **options, out=placed("out", result, at)),)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(result, again))
    except BaseException as error:
        errors.append((call, error))

count = 0
for target in fastattn.targets():
    with on_target(target):
        for dtype in ALL:
            for n in SIZES:
                for at in "start", "end":
                    for call in calls(n, dtype, at):
                        thread = threading.Thread(target=run, args=(*call, at))  # its scratch is as large as it asks
                        thread.start()
                        thread.join()
                        count += 1
assert not errors, errors[0]
print(count)
"""


@pytest.mark.parametrize("sizes", [(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 49, 65)])
def test_nothing_beyond_arrays_and_scratch_is_touched(sizes):
    [count] = in_a_process(FENCED.replace("SIZES", str(sizes)))
    assert int(count) > 1000


# A thread's block serves calls that need less, and grows for those that need more: by whole lines of a cache.
GROWING = """
import ctypes
import numpy as np
import fastattn

ctypes.CDLL(None).fence(1)
for dtype in np.float32, np.float64:
    for length in range(1, 400):
        x = np.linspace(-1, 1, length, dtype=dtype)
        backwards = fastattn.softmax(x[::-1], out=np.empty_like(x)[::-1])
        assert np.allclose(backwards[::-1], fastattn.softmax(x), 1e-5), length
print("right")
"""


def test_scratch_that_grows():
    assert in_a_process(GROWING) == ["right"]


# Members have scratch memory of their own: each call runs in a child, whose members are new, until one of them has
# asked for some, or for two seconds. Calls of two arrays take turns: nothing may be left of one in the other.
FENCED_MEMBERS = """
import ctypes, os, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
import fastattn
from support.dtypes import HALF, WIDE

allocator = ctypes.CDLL(None)
allocator.fence(1)
rng = np.random.default_rng(0)

def pair(dtype, *shape):
    return [rng.normal(size=shape).astype(dtype) for _ in range(2)]

def calls(dtype):
    queries, row, keys = pair(dtype, 2, 4, 90, 24), pair(dtype, 4, 8, 1, 24), pair(dtype, 4, 8, 1100, 24)
    rows, wide, weight = pair(dtype, 300, 301), pair(dtype, 300, 600), rng.normal(size=(270, 301)).astype(dtype)
    few, tall = pair(dtype, 8, 301), rng.normal(size=(2400, 301)).astype(dtype)
    int8 = rng.integers(-127, 128, (270, 301)).astype(np.int8), np.ones(270, np.float32)
    angles = rng.normal(size=(300, 150)).astype(dtype)
    attention, linear = fastattn.scaled_dot_product_attention, fastattn.linear
    yield "attention", queries, lambda x, threads: attention(x, x, x, num_threads=threads)
    yield "parts", keys, lambda x, threads: attention(row[0], x, x, num_threads=threads)
    yield "weights", queries, lambda x, threads: fastattn.attention_weights(x, x, num_threads=threads)
    weights = {"plain": weight, "int8": int8, "packed": fastattn.pack(weight), "packed int8": fastattn.pack(int8)}
    for name, w in weights.items():
        yield name, rows, lambda x, threads, w=w: linear(x, w, num_threads=threads)
    for name, w in ("few rows", tall), ("few rows, packed", fastattn.pack(tall)):  # all items have the same rows
        yield name, few, lambda x, threads, w=w: linear(x, w, num_threads=threads)
    strided = [x[:, ::2] for x in wide]
    yield "softmax", strided, lambda x, threads: fastattn.softmax(x, num_threads=threads)
    yield "norm", strided, lambda x, threads: fastattn.add_layer_norm(x, x, num_threads=threads)
    turned = [x[None, :, ::2] for x in wide]
    yield "rotary", turned, lambda x, threads: fastattn.rotary_embedding(x, angles, angles, num_threads=threads)

def first(result):
    return result[0] if isinstance(result, tuple) else result

def in_a_child(arrays, call):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        expected, deadline = [first(call(x, 1)) for x in arrays], time.monotonic() + 2
        former, turn = allocator.asked_by_others(), 0
        while turn < 12 or (allocator.asked_by_others() == former and time.monotonic() < deadline):
            assert np.array_equal(first(call(arrays[turn % 2], 2)), expected[turn % 2]), "another result"
            turn += 1
        os._exit(ALONE if allocator.asked_by_others() == former else 0)
    except AssertionError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(1)

ALONE, count = 2, 0
for dtype in WIDE[0], HALF[0]:
    for name, arrays, call in calls(dtype):
        status = in_a_child(arrays, call)
        assert status in (0, ALONE << 8), (dtype, name, status)
        count += status == 0
print(count)
"""


@pytest.mark.skipif(not _runtime.has_openmp(), reason="a serial build")
def test_members_touch_nothing_beyond_their_scratch():
    [shared] = in_a_process(FENCED_MEMBERS)
    assert int(shared) or os.cpu_count() == 1
