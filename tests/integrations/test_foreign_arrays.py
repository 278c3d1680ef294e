"""Arrays of other libraries are taken wherever NumPy's are, in their own memory; `out` of any kind is written in place.

Most run with arrays of no library at all (support/foreign.py); those of PyTorch and JAX where they are installed.
"""

import array
import gc
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import fastattn
from fastattn import _arguments
from fastattn._core.foreign import DEVICES
from fastattn.nn import MultiHeadAttention, TransformerEncoder, TransformerEncoderLayer, quantize
from support import dtypes, foreign
from support.foreign import COPIED, CUDA, CUDA_HOST, KINDS, LENT, READ_ONLY, WRITABLE, Buffer, WithCapsule, WithTable


@pytest.fixture(autouse=True)
def nothing_stays_lent():
    yield
    if LENT:
        gc.collect()  # what an error's traceback holds
    assert not LENT


def tensors(x):
    torch = pytest.importorskip("torch")
    x = np.ascontiguousarray(x)
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == "bfloat16" else torch.from_numpy(x)


def jax_arrays(x):
    return pytest.importorskip("jax").numpy.asarray(x)


LIBRARIES = (tensors, jax_arrays)
every_kind = pytest.mark.parametrize("kind", [*KINDS, *LIBRARIES], ids=lambda kind: kind.__name__)
every_writable_kind = pytest.mark.parametrize("kind", [*WRITABLE, tensors], ids=lambda kind: kind.__name__)


# Calls, with each array made by `a` from NumPy's


def random(*shape, seed=0, dtype=np.float32):
    return dtypes.random(np.random.default_rng(seed), np.dtype(dtype), *shape)


def attention(a, out, dtype):
    query, key, value = (random(*shape, dtype=dtype) for shape in ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)))
    computed = dtypes.computed_in(query.dtype)
    return fastattn.scaled_dot_product_attention(
        a(query), a(key), a(value), a(random(2, 1, 3, 5, dtype=computed)), is_causal=True, q_offset=a(np.array([1, 2])),
        sinks=a(random(4, dtype=computed)), alibi_slopes=a(random(2, 4, dtype=computed)),
        position_bias=a(random(4, 5, dtype=computed)), kv_lengths=a(np.array([5, 3])), out=out(2, 4, 3, 6),
        return_lse=True,
    )  # fmt: skip


def varlen(a, out, dtype):
    query, key, value = random(7, 4, 8, dtype=dtype), random(9, 2, 8, dtype=dtype), random(9, 2, 6, dtype=dtype)
    bounds = np.array([0, 3, 7], np.int32), np.array([0, 5, 9], np.int32)
    return fastattn.varlen_attention(a(query), a(key), a(value), *map(a, bounds), out=out(7, 4, 6))


def weights(a, out, dtype):
    query, key, seen = random(4, 3, 8, dtype=dtype), random(2, 5, 8, dtype=dtype), random(3, 5) > 0
    return fastattn.attention_weights(a(query), a(key), a(seen), out=out(4, 3, 5))


def merged(a, out, dtype):
    outs, lses = random(2, 4, 6, dtype=dtype), random(2, 4, dtype=dtypes.computed_in(np.dtype(dtype)))
    return fastattn.merge_states([a(x) for x in outs], [a(x) for x in lses], out=out(4, 6))


def softmax(a, out, dtype):
    return fastattn.softmax(a(random(3, 40, dtype=dtype)), where=a(random(40) > -1), out=out(3, 40))


def layer_norm(a, out, dtype):
    x, weight, bias = random(3, 8, dtype=dtype), *random(2, 8, dtype=dtype)
    return fastattn.layer_norm(a(x), a(weight), a(bias), out=out(3, 8))


def add_rms_norm(a, out, dtype):
    x, residual = random(2, 3, 8, dtype=dtype)
    return fastattn.add_rms_norm(a(x), a(residual), a(random(8, dtype=dtype)), out=(out(3, 8), out(3, 8)))


def linear(a, out, dtype):
    x, weight, bias, residual = (random(*shape, dtype=dtype) for shape in ((3, 5), (4, 5), (4,), (3, 4)))
    return fastattn.linear(a(x), a(weight), a(bias), residual=a(residual), out=out(3, 4))


def linear_int8(a, out, dtype):
    weight = tuple(a(x) for x in quantize(a(random(4, 5, dtype=dtype))))
    return fastattn.linear(a(random(3, 5, dtype=dtype)), weight, out=out(3, 4))


def packed(a, out, dtype):
    weight, gate = random(2, 4, 5, dtype=dtype)
    return fastattn.linear(a(random(3, 5, dtype=dtype)), fastattn.pack(a(weight), gate=a(gate)), out=out(3, 4))


def rotary(a, out, dtype):
    x, cos, sin = random(4, 3, 8, dtype=dtype), *random(2, 9, 4, dtype=dtype)
    return fastattn.rotary_embedding(a(x), a(cos), a(sin), positions=a(np.array([2, 8, 0])), out=out(4, 3, 8))


def cached(cache, ids, a, out, dtype):
    key, value, query = (random(2, heads, 5, 8, dtype=dtype) for heads in (2, 2, 4))
    cos, sin = random(2, 9, 4, dtype=dtype)
    cache.append(*ids, a(key), a(value), kv_lengths=a(np.array([3, 5])), cos=a(cos), sin=a(sin))
    return cache.attend(*ids, a(query), a(random(2, 1, 5, 5) > -1), is_causal=True, out=out(2, 4, 5, 8))


def cache(a, out, dtype):
    return cached(fastattn.KVCache(2, 2, 9, 8, dtype=dtype), [], a, out, dtype)


def ring(a, out, dtype):
    kept = fastattn.KVCache(2, 2, 9, 8, dtype=dtype, window=9)
    found = cached(kept, [], a, out, dtype)
    kept.reorder(a(np.array([1, 0])))
    kept.truncate(a(np.array([2, 1])))
    assert kept.lengths.tolist() == [2, 1]
    return found


def paged(a, out, dtype):
    pages = fastattn.PagedKVCache(9, 4, 2, 8, dtype=dtype)
    ids = a(np.array([pages.allocate(), pages.allocate()]))
    return cached(pages, [ids], a, out, dtype)


def layer_weights(dtype):
    shapes = {
        "self_attn.in_proj_weight": (24, 8), "self_attn.out_proj.weight": (8, 8), "linear1.weight": (12, 8),
        "linear2.weight": (8, 12), "norm1.weight": (8,), "norm2.weight": (8,),
    }  # fmt: skip
    return {name: random(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


def self_attention(a, out, dtype):
    named = {name: a(x) for name, x in layer_weights(dtype).items() if name.startswith("self_attn")}
    module = MultiHeadAttention.from_state_dict(named, "self_attn.", num_heads=2, bias=False)
    x, (cos, sin) = a(random(3, 5, 8, dtype=dtype)), random(2, 9, 2, dtype=dtype)
    assert np.array_equal(module(x, x), module(x))
    lengths = a(np.array([5, 2, 0]))
    seen = module.attention_weights(x, cos=a(cos), sin=a(sin), kv_lengths=lengths)
    y = module(x, cos=a(cos), sin=a(sin), kv_lengths=lengths, residual=x, out=out(3, 5, 8))
    return y, seen


def layer(a, out, dtype):
    named = {name: a(x) for name, x in layer_weights(dtype).items()}
    module = TransformerEncoderLayer.from_state_dict(named, num_heads=2, bias=False)
    return module(a(random(3, 5, 8, dtype=dtype)), a(random(3, 1, 1, 5) > 0), out=out(3, 5, 8))


def packed_layer(a, out, dtype):
    named = {f"layers.0.{name}": a(x) for name, x in layer_weights(dtype).items()}
    module = TransformerEncoder.from_state_dict(named, num_heads=2, bias=False)
    return module(a(random(7, 8, dtype=dtype)), cu_seqlens=a(np.array([0, 3, 7])), out=out(7, 8))


def encoder(a, out, dtype):
    named = {f"layers.{i}.{name}": a(x) for i in range(2) for name, x in layer_weights(dtype).items()}
    named["norm.weight"] = a(random(8, dtype=dtype))
    module = TransformerEncoder.from_state_dict(named, num_heads=2, bias=False)
    return module(a(random(3, 5, 8, dtype=dtype)), out=out(3, 5, 8))


CALLS = (
    attention, varlen, weights, merged, softmax, layer_norm, add_rms_norm, linear, linear_int8, packed, rotary, cache,
    ring, paged, self_attention, layer, packed_layer, encoder,
)  # fmt: skip


def unchanged(x):
    return x


def none(*shape):
    return None


def arrays_in(found):
    return [x for part in found for x in arrays_in(part)] if isinstance(found, tuple | list) else [found]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@every_kind
def test_results_are_those_of_numpy_arrays(kind, call, dtype):
    if kind is jax_arrays and dtype == np.float64:
        pytest.skip("JAX has it only if asked")
    found, expected = (arrays_in(call(a, none, dtype)) for a in (kind, unchanged))
    assert all(type(x) is np.ndarray for x in found)
    assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@every_writable_kind
def test_out_is_written_and_returned(kind, call, dtype):
    made, memory = [], []

    def out(*shape):
        memory.append(np.full(shape, 7, dtype))
        made.append(kind(memory[-1]))
        return made[-1]

    found, expected = arrays_in(call(unchanged, out, dtype)), arrays_in(call(unchanged, none, dtype))
    for i, x in enumerate(made):
        assert found[i] is x
        assert np.array_equal(memory[i], expected[i])


@pytest.mark.parametrize("kind", [*KINDS, tensors], ids=lambda kind: kind.__name__)
def test_cross_attention(kind):
    module = MultiHeadAttention.from_state_dict(
        {name: x for name, x in layer_weights(np.float32).items() if name.startswith("self_attn")}, "self_attn.",
        num_heads=2, bias=False,
    )  # fmt: skip
    query, key = random(3, 5, 8), random(3, 5, 8, seed=1)
    given = kind(query), kind(key)
    for which in ((0, 1), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 0, 0)):
        theirs, ours = ([x[i] for i in which] for x in (given, (query, key)))
        assert np.array_equal(module(*theirs), module(*ours))
        assert np.array_equal(module.attention_weights(*theirs[:2]), module.attention_weights(*ours[:2]))


def test_overlap_is_seen():
    """Of `out` with an input in the same memory, whatever kinds they are of."""
    memory = random(40)
    expected = fastattn.softmax(memory[:30].reshape(5, 6))
    fastattn.softmax(WithTable(memory[:30].reshape(5, 6)), out=WithCapsule(memory[3:33].reshape(5, 6)))
    assert np.array_equal(memory[3:33].reshape(5, 6), expected)


# Memory


def shared(kind, x):
    return _arguments.adopted("x", kind(x))


@pytest.mark.parametrize("kind", [*KINDS, tensors], ids=lambda kind: kind.__name__)
def test_memory_is_shared(kind, dtype):
    x = random(3, 4, dtype=dtype)
    y = shared(kind, x)
    assert y.ctypes.data == x.ctypes.data
    assert (y.dtype, y.shape, y.strides) == (x.dtype, x.shape, x.strides)
    assert y.flags.aligned == x.flags.aligned
    assert y.flags.writeable == (kind not in KINDS or kind in WRITABLE)


VIEWS = {
    "negative strides": lambda x: x[::-1, :, ::-1],
    "zero strides": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "transposed": lambda x: x.swapaxes(0, 2),
    "every second": lambda x: x[:, ::2],
    "one axis": lambda x: x[0, 0],
    "no axis": lambda x: x[0, 0, 0, ...],
    "no elements": lambda x: x[:, :0],
    "read-only": lambda x: np.lib.stride_tricks.as_strided(x, writeable=False),
    "unaligned": lambda x: np.frombuffer(b"\xff" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_views(kind, view):
    x = view(random(3, 4, 5))
    y = shared(kind, x)
    assert np.array_equal(x, y)
    assert (y.shape, y.flags.aligned, y.flags.c_contiguous) == (x.shape, x.flags.aligned, x.flags.c_contiguous)
    assert not x.size or y.strides == x.strides
    assert not y.flags.writeable or x.flags.writeable
    if x.ndim:
        assert np.array_equal(fastattn.softmax(kind(x)), fastattn.softmax(x))


def test_views_of_tensors():
    x = tensors(random(3, 4))
    for view in (x.T, x[:, :0], x[::2, 1], x[:1].expand(3, 4)):
        assert np.array_equal(fastattn.softmax(view), fastattn.softmax(view.numpy()))


def test_strides_may_be_missing():
    """Before DLPack 1.2."""
    x = random(3, 4)
    for kind in (foreign.WithOldCapsule, WithCapsule):
        assert np.array_equal(_arguments.adopted("x", kind(x, strided=False)), x)


def test_memory_may_begin_before_the_first_element():
    x = random(3, 4)
    assert np.array_equal(_arguments.adopted("x", WithCapsule(x[1:], shift=16)), x[1:])


def test_pinned_memory_is_the_cpus():
    x = random(3, 4)
    assert np.array_equal(_arguments.adopted("x", WithTable(x, device=CUDA_HOST)), x)


@pytest.mark.parametrize("name", ["?", *"bhilqBHILQ", "e", "f", "d", "F", "D"])
def test_types_of_dlpack(name):
    x = np.arange(3).astype(name)
    y = shared(WithTable, x)
    assert y.dtype == x.dtype
    assert np.array_equal(x, y)


def test_buffers():
    x = random(12)
    given = Buffer(x)
    assert np.array_equal(fastattn.softmax(given), fastattn.softmax(x))
    assert fastattn.softmax(x, out=given) is given
    assert np.array_equal(np.frombuffer(given, np.float32), fastattn.softmax(x))
    given.append(0)  # nobody holds the buffer any longer


class Text(array.array):
    """A buffer of characters, which NumPy has no type for."""

    def __array__(self):
        raise TypeError("it holds text")


def test_buffers_of_other_types_are_let_go():
    given = Text("w" if "w" in array.typecodes else "u", "ab")
    assert refusal(lambda: fastattn.softmax(given), "x")[1].endswith("got Text: it holds text")
    given.append("c")


def test_memory_is_given_back():
    """After the call, or with the last array in it."""
    x = random(3, 4)
    y = WithTable(x)
    before = sys.getrefcount(y), sys.getrefcount(x)
    fastattn.softmax(y)
    assert not LENT
    for wrong in (random(3, 5), None):
        with pytest.raises((TypeError, ValueError)):
            fastattn.add_layer_norm(y, wrong)
    assert not LENT
    assert (sys.getrefcount(y), sys.getrefcount(x)) == before

    kept = _arguments.adopted("x", y)
    view = kept[1:]
    del kept
    assert len(LENT) == 1
    assert np.array_equal(view, x[1:])
    del view
    assert not LENT


def test_weights_that_are_not_copied_keep_their_memory():
    named = {name: x for name, x in layer_weights(np.float32).items() if name.startswith("self_attn")}
    given = {name: WithTable(x.copy()) for name, x in named.items()}
    module = MultiHeadAttention.from_state_dict(given, "self_attn.", num_heads=2, bias=False, pack=False)
    del given
    assert len(LENT) == 2
    x = random(2, 3, 8)
    expected = MultiHeadAttention.from_state_dict(named, "self_attn.", num_heads=2, bias=False, pack=False)(x)
    assert np.array_equal(module(x), expected)


# What is refused


def refusal(call, name):
    """The error of a call, which names the argument."""
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must .*got") as caught:
        call()
    said = caught.value
    caught.value.__cause__ = caught.value.__context__ = None
    return type(said), str(said)


@pytest.mark.parametrize(("device", "name"), [*DEVICES.items(), (99, "foreign")])
def test_other_devices(device, name):
    for kind in (WithCapsule, foreign.WithOldCapsule, WithTable):
        said = refusal(lambda kind=kind: fastattn.softmax(kind(random(3), device=device)), "x")
        reason = f"it is on a {name} device, not in the CPU's memory"
        assert said == (ValueError, f"x must be an array that NumPy can share, got {kind.__name__}: {reason}")
    out = random(3)
    refusal(lambda: fastattn.softmax(random(3), out=WithCapsule(out, device=CUDA)), "out")


@pytest.mark.parametrize(
    "fields",
    [{"code": 10, "bits": 8}, {"code": 3}, {"code": 255}, {"bits": 4}, {"bits": 128}, {"bits": 48}, {"lanes": 4}],
    ids=str,
)
def test_types_that_numpy_lacks(fields):
    kind, said = refusal(lambda: fastattn.softmax(WithTable(random(3), **fields)), "x")
    assert kind is TypeError
    assert said.endswith("got WithTable: NumPy has no such dtype")


def test_types_that_an_operation_lacks():
    kind, said = refusal(lambda: fastattn.softmax(WithTable(np.arange(3))), "x")
    assert kind is TypeError
    assert said.endswith("got dtype int64")


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (WithCapsule, {"major": 2}, "it has version 2 of DLPack, and 1 is known here"),
        (WithTable, {"major": 2}, "it has version 2 of DLPack, and 1 is known here"),
        (foreign.WithUnknownTable, {}, "its table of functions is not of version 1 of DLPack"),
        (WithTable, {"data": False}, "it has no memory"),
    ],
)
def test_what_dlpack_cannot_say(kind, fields, reason):
    said = refusal(lambda: fastattn.softmax(kind(random(3), **fields)), "x")
    assert said == (ValueError, f"x must be an array that NumPy can share, got {kind.__name__}: {reason}")


def test_too_many_axes():
    class ManyAxes(foreign.Foreign):
        def __dlpack__(self):
            described, owned = foreign.tensor(self.x)
            described.ndim = 65
            address = foreign.lend(foreign.Unversioned, tensor=described, owned=owned)
            return foreign.PyCapsule_New(address, b"dltensor", None)

    _, said = refusal(lambda: fastattn.softmax(ManyAxes(random(3))), "x")
    assert said.endswith("it has 65 axes, and NumPy's arrays have at most 64")


class OneCapsule(WithCapsule):
    """That returns the same one again."""

    def __dlpack__(self, **options):
        self.capsule = getattr(self, "capsule", None) or super().__dlpack__(**options)
        return self.capsule


def test_used_capsules():
    x = OneCapsule(random(3))
    fastattn.softmax(x)
    assert foreign.PyCapsule_GetName(x.capsule) == b"used_dltensor_versioned"
    _, said = refusal(lambda: fastattn.softmax(x), "x")
    assert said.endswith("its __dlpack__ does not return a new DLPack capsule")


class NoArray:
    def __array__(self):
        return [1.0, 2.0]


class Masked:
    def __array__(self):
        return np.ma.masked_array(np.ones(3), mask=[0, 1, 0])


class Raising:
    def __init__(self, error):
        self.error = error

    def __dlpack__(self, **_):
        raise self.error


def test_what_is_no_array_after_all():
    assert refusal(lambda: fastattn.softmax(NoArray()), "x")[1].endswith("its __array__ returns list")
    assert refusal(lambda: fastattn.softmax(Masked()), "x")[1].endswith("got MaskedArray with a mask")


@pytest.mark.parametrize("error", [BufferError, RuntimeError, TypeError, ValueError])
def test_errors_of_the_exporter(error):
    error = error("no\nPyTorch adds C++ functions")
    kind, said = refusal(lambda: fastattn.softmax(Raising(error)), "x")
    assert kind is (TypeError if isinstance(error, TypeError) else ValueError)
    assert said == "x must be an array that NumPy can share, got Raising: no"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_errors_that_are_not_of_the_argument(error):
    with pytest.raises(error):
        fastattn.softmax(Raising(error()))


@pytest.mark.parametrize(
    "x", [np.float32(1), [1.0], (1.0,), memoryview(b"1234"), "text", 1.0, WithCapsule, np.ma.ones(3)], ids=repr
)
def test_other_objects_are_refused_as_before(x):
    kind, said = refusal(lambda: fastattn.softmax(x), "x")
    assert kind is TypeError
    assert "a numpy.ndarray, got" in said or "a plain numpy.ndarray, got MaskedArray" in said


@pytest.mark.parametrize("flag", [READ_ONLY, COPIED])
@pytest.mark.parametrize("kind", [WithCapsule, WithTable], ids=lambda kind: kind.__name__)
def test_out_that_would_not_be_written(kind, flag):
    """Read-only memory, and a copy, which the caller would never see."""
    out = random(3)
    assert refusal(lambda: fastattn.softmax(random(3), out=kind(out, flags=flag)), "out") == (
        ValueError,
        "out must be writable, got a read-only array",
    )
    assert np.array_equal(out, random(3))


def test_out_without_a_version():
    """Nothing says that it may be written."""
    _, said = refusal(lambda: fastattn.softmax(random(3), out=foreign.WithOldCapsule(random(3))), "out")
    assert said == "out must be writable, got a read-only array"


class Copying:
    """An `__array__` that always copies."""

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("a copy is needed")
        return np.ones(3)


class Silent:
    """An `__array__` that does not say whether it copies."""

    def __array__(self):
        return np.ones(3)


def test_out_that_copies():
    assert np.array_equal(fastattn.softmax(Copying()), fastattn.softmax(Silent()))
    assert refusal(lambda: fastattn.softmax(np.ones(3), out=Copying()), "out")[1].endswith("a copy is needed")
    assert refusal(lambda: fastattn.softmax(np.ones(3), out=Silent()), "out")[0] is TypeError


@pytest.mark.parametrize("kind", [WithTable, tensors], ids=lambda kind: kind.__name__)
def test_out_of_another_type_or_shape(kind):
    for out in (random(3, dtype=np.float64), random(3, dtype=np.float16), random(4), random(1, 3)):
        kept = out.copy()
        refusal(lambda out=out: fastattn.softmax(random(3), out=kind(out)), "out")
        assert np.array_equal(out, kept)


NAMED = {
    "query": lambda bad: fastattn.scaled_dot_product_attention(bad, random(3, 8), random(3, 8)),
    "key": lambda bad: fastattn.scaled_dot_product_attention(random(3, 8), bad, random(3, 8)),
    "value": lambda bad: fastattn.scaled_dot_product_attention(random(3, 8), random(3, 8), bad),
    "attn_mask": lambda bad: fastattn.scaled_dot_product_attention(random(3, 8), random(3, 8), random(3, 8), bad),
    "q_offset": lambda bad: fastattn.scaled_dot_product_attention(*random(3, 2, 3, 8), q_offset=bad),
    "kv_lengths": lambda bad: fastattn.scaled_dot_product_attention(*random(3, 2, 3, 8), kv_lengths=bad),
    "sinks": lambda bad: fastattn.scaled_dot_product_attention(*random(3, 2, 3, 8), sinks=bad),
    "alibi_slopes": lambda bad: fastattn.scaled_dot_product_attention(*random(3, 2, 3, 8), alibi_slopes=bad),
    "position_bias": lambda bad: fastattn.scaled_dot_product_attention(*random(3, 2, 3, 8), position_bias=bad),
    "cu_seqlens_k": lambda bad: fastattn.varlen_attention(*random(3, 2, 3, 8), np.array([0, 2]), bad),
    r"outs\[1\]": lambda bad: fastattn.merge_states([random(3, 8), bad], random(2, 3)),
    r"lses\[0\]": lambda bad: fastattn.merge_states([random(3, 8)], [bad]),
    "where": lambda bad: fastattn.softmax(random(3), where=bad),
    "residual": lambda bad: fastattn.linear(random(2, 3), random(4, 3), residual=bad),
    r"weight\[1\]": lambda bad: fastattn.linear(random(2, 3), (np.ones((4, 3), np.int8), bad)),
    "positions": lambda bad: fastattn.rotary_embedding(random(3, 8), *random(2, 9, 4), positions=bad),
    "gate": lambda bad: fastattn.pack(random(3, 4), gate=bad),
    r"out\[1\]": lambda bad: fastattn.add_layer_norm(random(2, 3), random(2, 3), out=(random(2, 3), bad)),
}


@pytest.mark.parametrize("name", NAMED)
def test_errors_name_the_argument(name):
    assert "CUDA" in refusal(lambda: NAMED[name](WithTable(random(2, 3), device=CUDA)), name)[1]


@pytest.mark.parametrize("cache", [fastattn.KVCache(1, 2, 9, 8), fastattn.KVCache(1, 2, 9, 8, window=3)], ids=repr)
def test_errors_of_caches(cache):
    bad, good = WithTable(random(1, 2, 1, 8), device=CUDA), random(1, 2, 1, 8)
    for name, call in {
        "key": lambda: cache.append(bad, good),
        "value": lambda: cache.append(good, bad),
        "query": lambda: cache.attend(bad),
    }.items():
        refusal(call, name)
    assert cache.lengths.tolist() == [0]


def test_errors_of_layers():
    named = {name: x for name, x in layer_weights(np.float32).items() if name.startswith("self_attn")}
    bad, good = WithTable(random(1, 2, 8), device=CUDA), random(1, 2, 8)
    module = MultiHeadAttention.from_state_dict(named, "self_attn.", num_heads=2, bias=False)
    for i, name in enumerate(("query", "key", "value", "attn_mask")):
        refusal(lambda i=i: module(*[good] * i, bad), name)
    name = "self_attn.out_proj.weight"
    refusal(lambda: MultiHeadAttention.from_state_dict(named | {name: bad}, "self_attn.", num_heads=2), name)
    layer = TransformerEncoderLayer.from_state_dict(layer_weights(np.float32), num_heads=2, bias=False)
    refusal(lambda: layer(bad), "x")
    refusal(lambda: layer(good, out=bad), "out")


# PyTorch


def test_tensors_that_require_gradients():
    torch = pytest.importorskip("torch")
    x = torch.ones(3, 4, requires_grad=True)
    for call, name in ((lambda: fastattn.softmax(x), "x"), (lambda: fastattn.softmax(random(3, 4), out=x), "out")):
        kind, said = refusal(call, name)
        assert kind is ValueError
        assert said.endswith("of torch.float32: it requires a gradient, which is not computed here; pass x.detach()")
    assert np.allclose(fastattn.softmax(x.detach()), 0.25)
    with torch.no_grad():
        refusal(lambda: fastattn.softmax(x), "x")


def test_tensors_that_are_more_than_their_memory():
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    refusal(lambda: fastattn.softmax(x), "x")
    assert np.allclose(fastattn.softmax(x.resolve_neg()), torch.softmax(x, -1))
    for bad in (x.to("meta"), x.resolve_neg().to_sparse(), torch._efficientzerotensor((3, 4))):
        said = refusal(lambda bad=bad: fastattn.softmax(bad), "x")[1]
        assert "\n" not in said
    assert refusal(lambda: fastattn.softmax(x.resolve_neg().to(torch.float8_e5m2)), "x")[0] is TypeError


def test_tensors_of_bfloat16_need_ml_dtypes():
    pytest.importorskip("torch")
    code = [
        "import sys; sys.modules['ml_dtypes'] = None",
        "import fastattn, torch; fastattn.softmax(torch.ones(3)); fastattn.softmax(torch.ones(3).bfloat16())",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True)
    assert done.stderr.strip().endswith("bfloat16 needs ml_dtypes: pip install 'fastattn[bfloat16]'")


# JAX


def test_jax_arrays_are_read_only():
    out = jax_arrays(random(3))
    _, said = refusal(lambda: fastattn.softmax(random(3), out=out), "out")
    assert said == "out must be writable, got a read-only array"
    assert np.array_equal(out, random(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, bool, np.int32])
def test_jax_arrays_are_not_copied(dtype):
    x = jax_arrays(random(64, 64).astype(dtype))
    y = _arguments.adopted("x", x)
    assert y.ctypes.data == x.unsafe_buffer_pointer()
    assert y.dtype == dtype
