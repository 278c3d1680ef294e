"""The only module that checks the user's arguments.

Each function takes the name and the value of an argument and returns it in the form that the compiled half needs, or
raises: TypeError for a wrong type, ValueError for a wrong shape or value. The message names the argument, what is
needed and what it got. Compiled, because some calls take less than a microsecond in all.
"""

import importlib

import numpy as np

from fastattn import _dtypes
from fastattn._core import targets

cimport numpy as np
from cpython.bool cimport PyBool_Check
from cpython.float cimport PyFloat_Check
from cpython.long cimport PyLong_Check
from libc.math cimport isfinite
from libc.stddef cimport ptrdiff_t
from libc.string cimport memcmp

from fastattn._core cimport arrays
from fastattn._core.arrays cimport Array
from fastattn._core.foreign cimport from_buffer, from_capsule, from_table
from fastattn._core.packed cimport Packed
from fastattn._core.strides cimport MOST_AXES
from fastattn._core.targets cimport (
    FA_ACTIVATIONS,
    FA_F64,
    FA_I8,
    FA_MASK_BOOL,
    FA_NO_ACTIVATION,
    FA_TYPES,
    current_target,
    fa_activation_name,
    fa_type,
    fa_type_name,
)

np.import_array()


# --- arrays ---

cdef np.ndarray array(str name, object x):
    return <np.ndarray>x if type(x) is np.ndarray else other_array(name, x, False)


cpdef np.ndarray array_to_write(str name, object x):
    """The array to write the result into, or None."""
    return <np.ndarray>x if x is None or type(x) is np.ndarray else other_array(name, x, True)


cpdef object adopted(str name, object x):
    """Another library's array as a NumPy array; anything else as it is."""
    return x if x is None or type(x) is np.ndarray or not is_foreign(x) else array(name, x)


cdef np.ndarray other_array(str name, object x, bint writes):
    """A subclass of ndarray, or another library's array as a NumPy array in the same memory."""
    if not isinstance(x, np.ndarray):
        x = foreign_array(name, x, writes)
    if type(x) is not np.ndarray and hasattr(x, "mask"):
        raise TypeError(f"{name} must be a plain numpy.ndarray, got {type(x).__name__} with a mask")
    return <np.ndarray>x


cpdef tuple tokens(object query, object key, object value):
    """Query, key and value of a layer as arrays: by default key is query, and value is key."""
    cdef np.ndarray q = real_array("query", query), k = q, v
    if key is not None and key is not query:
        k = real_array("key", key)
    v = k
    if value is not None and value is not key:
        v = q if value is query else real_array("value", value)
    return q, k, v


cpdef bint is_foreign(object x):
    """Whether x is another library's array: one that has `__dlpack__` or `__array__`. NumPy's scalars have the latter.
    """
    kind = type(x)
    return (hasattr(kind, "__dlpack__") or hasattr(kind, "__array__")) and not isinstance(x, (np.ndarray, np.generic))


cdef np.ndarray foreign_array(str name, object x, bint writes):
    """An array of another library, in its own memory; only `__array__` may copy what is not written."""
    if not is_foreign(x):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(x).__name__}")
    try:
        return shared_array(x, writes)
    except MemoryError:
        raise
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        came = type(x).__name__ + (f" of {x.dtype}" if hasattr(x, "dtype") else "")
        reason = str(error).partition("\n")[0]  # PyTorch adds a list of C++ functions
        raise kind(f"{name} must be an array that NumPy can share, got {came}: {reason}") from error


cdef np.ndarray shared_array(object x, bint writes):
    kind = type(x)
    table = getattr(kind, "__dlpack_c_exchange_api__", None)
    a = from_buffer(x) if table is None else None
    if a is not None:
        return a
    if table is not None or hasattr(kind, "__dlpack__"):
        check_memory_holds_values(x)
        return from_table(x, table) if table is not None else from_capsule(capsule_of(x))
    a = x.__array__(copy=False) if writes else x.__array__()
    if not isinstance(a, np.ndarray):
        raise TypeError(f"its __array__ returns {type(a).__name__}")
    return a


cdef int check_memory_holds_values(object x) except -1:
    """Raise for tensors of PyTorch that are more than their memory; its C functions do not look."""
    if getattr(x, "requires_grad", False):
        raise ValueError("it requires a gradient, which is not computed here; pass x.detach()")
    is_neg = getattr(x, "is_neg", None)
    if is_neg is not None and is_neg():
        raise ValueError("its memory holds the negative of it; pass x.resolve_neg()")
    return 0


cdef object capsule_of(object x):
    try:
        return x.__dlpack__(max_version=(1, 0))
    except TypeError:  # an exporter that knows no versions
        return x.__dlpack__()


cdef str REALS = _dtypes.listed(_dtypes.REALS)
cdef enum:
    MOST_TYPES = 16
    USER_DEFINED = 256  # the first of the types that other packages register (NPY_USERDEF)

# By fa_type: NumPy's type number (-1 for int8, which is no real, and for a type of another package until the first
# array of it is seen), and that of the type of its sums.
cdef int[MOST_TYPES] numbers
cdef int[MOST_TYPES] sums
KERNEL_TYPES = {fa_type_name(<fa_type>_i).decode(): _i for _i in range(<int>FA_TYPES)}
for _row in _dtypes.TYPES:
    _known = _row in _dtypes.REALS and not _row.package
    numbers[<int>KERNEL_TYPES[_row.kernels]] = np.dtype(_row.name).num if _known else -1
    sums[<int>KERNEL_TYPES[_row.kernels]] = np.dtype(_row.computed_in).num


cdef fa_type type_of(np.ndarray x):
    """The type of x's elements; FA_TYPES if the kernels do not support it."""
    cdef int number = np.PyArray_TYPE(x), i
    for i in range(<int>FA_TYPES):
        if numbers[i] == number:
            return <fa_type>i
    return FA_TYPES if number < USER_DEFINED else type_by_name(x)


cdef fa_type type_by_name(np.ndarray x):
    """The same for a type that another package registers."""
    row = _dtypes.BY_NAME.get(x.dtype.name)
    if row is None or not row.package:
        return FA_TYPES
    numbers[<int>KERNEL_TYPES[row.kernels]] = np.PyArray_TYPE(x)
    return <fa_type><int>KERNEL_TYPES[row.kernels]


cdef void by_address(Array *a, np.ndarray x) noexcept:
    """What the code without Python needs to know of an array, or of None; valid as long as the array is."""
    cdef int number
    if x is None:
        a.data, a.ndim = NULL, 0
        return
    number = np.PyArray_TYPE(x)
    a.type = FA_MASK_BOOL if number == np.NPY_BOOL else FA_I8 if number == np.NPY_INT8 else <int>type_of(x)
    place(a, x)


cdef bint is_real(np.ndarray x):
    return type_of(x) != FA_TYPES and np.PyArray_ISNOTSWAPPED(x)


cpdef np.ndarray real_array(str name, object x):
    """An array of one of the types that the kernels support."""
    cdef np.ndarray a = array(name, x)
    if not is_real(a):
        raise TypeError(f"{name} must have dtype {REALS} in native byte order, got {described(a)}")
    return a


cdef np.ndarray real_array_like(str name, object x, np.ndarray model, str model_name):
    """Likewise, of the type of `model` or a narrower one."""
    cdef np.ndarray a = real_array(name, x)
    if np.PyArray_ITEMSIZE(a) > np.PyArray_ITEMSIZE(model):
        raise TypeError(
            f"{name} must not be wider than {model_name} ({model.dtype}), got dtype {a.dtype}; convert one of them"
        )
    return a


cdef int computed_in(np.ndarray x):
    """NumPy's number of the type of an array's sums: float32, or float64 for float64."""
    return sums[<int>type_of(x)]


cdef object computed_dtype(np.ndarray x):
    return np.PyArray_DescrFromType(computed_in(x))


cdef np.ndarray parameter_like(str name, object x, np.ndarray model, str model_name):
    """An array that is converted before use: of the type that `model` is computed in, or a narrower one."""
    cdef np.ndarray a = real_array(name, x)
    if np.PyArray_ITEMSIZE(a) > np.PyArray_ITEMSIZE(model) and computed_in(a) != computed_in(model):
        raise TypeError(
            f"{name} must not be wider than {computed_dtype(model)}, in which {model_name} ({model.dtype}) is "
            f"computed, got dtype {a.dtype}; convert it"
        )
    return a


cdef np.ndarray bool_array(str name, object x):
    cdef np.ndarray a = array(name, x)
    if np.PyArray_TYPE(a) != np.NPY_BOOL:
        raise TypeError(f"{name} must have dtype bool, got {described(a)}")
    return a


cdef np.ndarray vector_like(str name, object x, np.ndarray model, str model_name):
    """None, or a contiguous parameter with an element for each one of the model's last axis."""
    if x is None:
        return None
    cdef np.ndarray a = parameter_like(name, x, model, model_name)
    cdef ptrdiff_t length = model.shape[model.ndim - 1]
    if a.ndim != 1 or a.shape[0] != length:
        raise ValueError(f"{name} must have shape ({length},), the last axis of {model_name}, got {shape_of(a)}")
    return a if np.PyArray_ISCARRAY_RO(a) else np.PyArray_FROMANY(a, np.PyArray_TYPE(a), 0, 0, np.NPY_ARRAY_CARRAY_RO)


cdef np.ndarray operand_like(str name, object x, np.ndarray model, str model_name):
    """An array of the model's shape and type."""
    cdef np.ndarray a = real_array(name, x)
    if np.PyArray_TYPE(a) != np.PyArray_TYPE(model):
        raise TypeError(f"{name} must have dtype {model.dtype}, like {model_name}, got dtype {a.dtype}")
    if not np.PyArray_SAMESHAPE(a, model):
        raise ValueError(f"{name} must have {model_name}'s {shape_of(model)}, got {shape_of(a)}")
    return a


cdef np.ndarray output(str name, object out, int ndim, const np.npy_intp *shape, np.ndarray model, str model_name):
    """The output array, of this shape and the model's type: the caller's or, for None, a new one."""
    if out is None:
        return new_array(model, ndim, shape)
    cdef np.ndarray a = array_to_write(name, out)
    cdef int i
    if np.PyArray_TYPE(a) != np.PyArray_TYPE(model) or not np.PyArray_ISNOTSWAPPED(a):
        raise TypeError(f"{name} must have dtype {model.dtype}, like {model_name}, got {described(a)}")
    if a.ndim != ndim or any([a.shape[i] != shape[i] for i in range(ndim)]):
        needed = tuple([shape[i] for i in range(ndim)])
        raise ValueError(f"{name} must have shape {needed}, got {shape_of(a)}")
    if not np.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name} must be writable, got a read-only array")
    if overlaps_itself(a):
        raise ValueError(
            f"{name} must not overlap itself, got {shape_of(a)} with strides {(<object>a).strides}, in which elements "
            f"share memory"
        )
    return a


cdef np.ndarray new_array(np.ndarray model, int ndim, const np.npy_intp *shape):
    """A new array of the model's type and, if it has as many axes, in its memory order (NumPy's order="K")."""
    if ndim != model.ndim or np.PyArray_IS_C_CONTIGUOUS(model):
        return np.PyArray_EMPTY(ndim, <np.npy_intp *>shape, np.PyArray_TYPE(model), 0)
    return np.empty_like(model, shape=tuple([shape[i] for i in range(ndim)]), subok=False)


cdef bint overlaps_itself(np.ndarray a) except -1:
    """Whether two elements share memory, as in arrays of as_strided (those of numpy.broadcast_to are not writable).

    Only if the axes do not nest is every element checked.
    """
    cdef int count
    cdef ptrdiff_t[MOST_AXES] steps, lengths
    cdef Array x
    if np.PyArray_IS_C_CONTIGUOUS(a) or np.PyArray_SIZE(a) == 0:
        return False
    place(&x, a)
    count = arrays.sort_axes(&x, steps, lengths)
    if arrays.nested(&x, steps, lengths, count):
        return False
    return steps[0] == 0 or elements_overlap(a, steps, lengths, count)


cdef bint elements_overlap(np.ndarray a, const ptrdiff_t *steps, const ptrdiff_t *lengths, int count) except -1:
    """The same, element by element: there are more than fit in the memory that they span, or two are too close."""
    cdef int i
    cdef double span = np.PyArray_ITEMSIZE(a)
    for i in range(count):
        span += <double>steps[i] * (lengths[i] - 1)
    if <double>np.PyArray_NBYTES(a) > span:
        return True
    offsets = np.zeros(1, np.int64)
    for i in range(count):
        offsets = (offsets[:, np.newaxis] + steps[i] * np.arange(lengths[i])).ravel()
    offsets.sort()
    return (np.diff(offsets) < np.PyArray_ITEMSIZE(a)).any()


cdef str shape_of(np.ndarray x):
    return f"shape {(<object>x).shape}"


cdef str described(np.ndarray x):
    return f"dtype {x.dtype.str if not np.PyArray_ISNOTSWAPPED(x) else x.dtype}"


cpdef tuple states(object outs, object lses, object out):
    """Results and log-sum-exps of parts, as two lists of the same length, and the output array or None."""
    cdef np.ndarray part, lse, first
    if isinstance(outs, np.ndarray) and outs.ndim == 0 or not hasattr(outs, "__len__"):
        raise TypeError(f"outs must be a sequence of arrays, got {type(outs).__name__}")
    if isinstance(lses, np.ndarray) and lses.ndim == 0 or not hasattr(lses, "__len__"):
        raise TypeError(f"lses must be a sequence of arrays, got {type(lses).__name__}")
    if not len(outs) or len(outs) != len(lses):
        raise ValueError(f"outs and lses must hold the same number of parts, at least 1, got {len(outs)}, {len(lses)}")
    outs = [real_array(f"outs[{i}]", x) for i, x in enumerate(outs)]
    lses = [real_array(f"lses[{i}]", x) for i, x in enumerate(lses)]
    first = outs[0]
    if first.ndim < 1:
        raise ValueError("outs[0] must have at least one axis, got shape ()")
    for i in range(len(outs)):
        part, lse = operand_like(f"outs[{i}]", outs[i], first, "outs[0]"), lses[i]
        if np.PyArray_TYPE(lse) != computed_in(first):
            needed = computed_dtype(first)
            raise TypeError(f"lses[{i}] must have dtype {needed} with {first.dtype} in outs, got dtype {lse.dtype}")
        needed = (<object>part).shape[: part.ndim - 1]
        if (<object>lse).shape != needed:
            raise ValueError(f"lses[{i}] must have shape {needed}, got {shape_of(lse)}")
    return outs, lses, None if out is None else output("out", out, first.ndim, first.shape, first, "outs[0]")


cdef np.ndarray rows_array(str name, object x):
    """Rows to normalise: an array whose last axis is not empty."""
    cdef np.ndarray a = real_array(name, x)
    if a.ndim == 0 or a.shape[a.ndim - 1] == 0:
        raise ValueError(f"{name} must have a last axis of at least one element, got {shape_of(a)}")
    return a


cdef np.ndarray mask_like(str name, object where, np.ndarray x):
    """A mask broadcast to x's shape, or None."""
    if where is None:
        return None
    cdef np.ndarray mask = bool_array(name, where)
    shape = (<object>x).shape
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to x's {shape_of(x)}, got {shape_of(mask)}") from None


# --- shapes of attention ---

cdef int unfit(str name, np.ndarray x, str needed, str advice="") except -1:
    raise ValueError(f"{name} must have {needed}, got {shape_of(x)}{advice}")


# Names of axes in messages, by their number counted from the end.
cdef tuple AXIS_NAMES = ("", "last axis", "last axis but one", "last axis but two")


cdef str other_order(np.ndarray query, np.ndarray key, np.ndarray value, int heads, int tokens):
    """Advice for arrays that do not match, but would if heads and tokens were swapped."""
    cdef ptrdiff_t kv_heads = length(key, tokens)
    if (
        min(query.ndim, key.ndim, value.ndim) < 3 or kv_heads == 0 or length(query, tokens) % kv_heads
        or length(value, tokens) != kv_heads or length(value, heads) != length(key, heads)
    ):
        return ""
    theirs, axes = ("(..., tokens, heads, size)", "-2, -3") if heads == 3 else ("(heads, tokens, size)", "0, 1")
    return f"; if all three are {theirs}, pass x.swapaxes({axes}) of each"


cdef int fit(np.ndarray query, np.ndarray key, np.ndarray value, int heads, int tokens) except -1:
    """The checks that padded and packed sequences share: sizes, numbers of heads and of keys."""
    cdef ptrdiff_t kv_heads = length(key, heads)
    if length(query, 1) == 0:
        unfit("query", query, "a head size (last axis) of at least 1")
    if length(key, 1) != length(query, 1):
        unfit("key", key, f"the head size of query, {length(query, 1)}, as its last axis")
    if length(value, tokens) != length(key, tokens):
        unfit("value", value, f"as many rows as key, {length(key, tokens)}, in its {AXIS_NAMES[tokens]}")
    if length(value, heads) != kv_heads:
        unfit("value", value, f"as many heads as key, {kv_heads}, in its {AXIS_NAMES[heads]}")
    if length(query, heads) % kv_heads if kv_heads else length(query, heads):
        unfit(
            "query", query, f"a multiple of key's {kv_heads} heads in its {AXIS_NAMES[heads]}",
            other_order(query, key, value, heads, tokens),
        )
    return 0


cdef int attention_shape(np.ndarray query, np.ndarray key, np.ndarray value, np.npy_intp *shape) except -1:
    """Check the three arrays together; write the result's shape and return its number of axes."""
    cdef int ndim = max(query.ndim, key.ndim, value.ndim), i
    if query.ndim < 2:
        unfit("query", query, "at least 2 axes (..., queries, head size)")
    if key.ndim < 2:
        unfit("key", key, "at least 2 axes (..., keys, head size)")
    if value.ndim < 2:
        unfit("value", value, "at least 2 axes (..., keys, value size)")
    fit(query, key, value, 3, 2)
    for i in range(ndim - 3):
        shape[i] = 1
        broadcast("query", query, ndim - i, &shape[i])
        broadcast("key", key, ndim - i, &shape[i])
        broadcast("value", value, ndim - i, &shape[i])
    if ndim > 2:
        shape[ndim - 3] = length(query, 3)
    shape[ndim - 2], shape[ndim - 1] = length(query, 2), length(value, 1)
    return ndim


cdef int broadcast(str name, np.ndarray x, int from_the_end, np.npy_intp *common) except -1:
    cdef ptrdiff_t own = length(x, from_the_end)
    if common[0] == 1:
        common[0] = own
    elif own != 1 and own != common[0]:
        unfit(name, x, f"leading axes that broadcast with the others' (where these have {common[0]}, it has {own})")
    return 0


cdef int weights_shape(np.ndarray query, np.ndarray key, np.npy_intp *shape) except -1:
    """The same for the weights, (..., Hq, Sq, Sk)."""
    cdef int ndim = attention_shape(query, key, key, shape)
    shape[ndim - 1] = length(key, 2)
    return ndim


cdef int packed_shape(np.ndarray query, np.ndarray key, np.ndarray value, np.npy_intp *shape) except -1:
    """The same for packed sequences: (Tq, Hq, Dv) from (Tq, Hq, D), (Tk, Hkv, D) and (Tk, Hkv, Dv)."""
    cdef np.ndarray x
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 3:
            unfit(name, x, "3 axes (tokens, heads, size)")
    fit(query, key, value, 2, 3)
    shape[0], shape[1], shape[2] = length(query, 3), length(query, 2), length(value, 1)
    return 3


cdef str tokens_first(np.ndarray x, ptrdiff_t kv_heads):
    """Advice for an array that may be (batch, tokens, heads, size)."""
    if x.ndim != 4 or x.shape[1] % kv_heads == 0 or x.shape[2] == 0 or x.shape[2] % kv_heads:
        return ""
    return "; if it is (batch, tokens, heads, size), pass x.swapaxes(1, 2)"


cdef int cached_shape(
    np.ndarray query, np.ndarray keys, np.ndarray values, ptrdiff_t batch, np.npy_intp *shape
) except -1:
    """The same for queries (B, Hq, Sq, D) on a cache's pages, (pages, Hkv, tokens, D) and (pages, Hkv, tokens, Dv)."""
    cdef ptrdiff_t kv_heads = keys.shape[1]
    if query.ndim != 4 or query.shape[0] != batch or query.shape[1] % kv_heads or query.shape[3] != keys.shape[3]:
        unfit(
            "query", query, f"shape ({batch}, a multiple of {kv_heads} heads, queries, {keys.shape[3]})",
            tokens_first(query, kv_heads),
        )
    if np.PyArray_ITEMSIZE(keys) > np.PyArray_ITEMSIZE(query):
        raise TypeError(f"query must not be narrower than the cache ({keys.dtype}), got dtype {query.dtype}")
    shape[0], shape[1], shape[2], shape[3] = query.shape[0], query.shape[1], query.shape[2], values.shape[3]
    return 0


# --- options of attention ---

cdef np.ndarray attention_mask(str name, object mask, np.ndarray query, int ndim, const np.npy_intp *scores):
    """A bool or real mask that broadcasts to the scores and does not enlarge them, or None."""
    if mask is None:
        return None
    cdef np.ndarray a = array(name, mask)
    cdef int i
    if np.PyArray_TYPE(a) != np.NPY_BOOL:
        if not is_real(a):
            raise TypeError(
                f"{name} must have dtype bool, {REALS} in native byte order, got {described(a)}"
                + (padding(name, a, ndim, scores) or f"; where 1 attends pass {name}.astype(bool)")
                * np.PyArray_ISINTEGER(a)
            )
        parameter_like(name, a, query, "query")
    if a.ndim > ndim or any([length(a, i) not in (1, scores[ndim - i]) for i in range(1, a.ndim + 1)]):
        needed = tuple([scores[i] for i in range(ndim)])
        unfit(
            name, a, f"a shape that broadcasts to {needed}, (..., heads, queries, keys)", padding(name, a, ndim, scores)
        )
    return a


cdef str padding(str name, np.ndarray mask, int ndim, const np.npy_intp *scores):
    """Advice for a mask (batch, keys), as tokenizers return it for padded texts."""
    if ndim != 4 or mask.ndim != 2 or mask.shape[0] != scores[0] or mask.shape[1] != scores[3]:
        return ""
    return f"; if it is (batch, keys), pass {name}{'.astype(bool)' * np.PyArray_ISINTEGER(mask)}[:, None, None, :]"


cdef np.ndarray per_head(
    str name, object x, np.ndarray query, bint each, int lead, const np.npy_intp *shape, ptrdiff_t heads
):
    """A number for each head, or for each head of each sequence: contiguous, in the type of sums; always a copy."""
    cdef np.ndarray a = parameter_like(name, x, query, "query")
    leading = tuple([shape[i] for i in range(lead)])
    if (<object>a).shape not in ((heads,), (*leading, heads)):
        needed = f"({heads},) or {(*leading, heads)}" if each else f"({heads},)"
        unfit(name, a, f"shape {needed}, a number for each query head")
    return np.array(a, dtype=computed_dtype(query), order="C")


cdef np.ndarray attention_sinks(str name, object sinks, np.ndarray query, ptrdiff_t heads):
    if sinks is None:
        return None
    cdef np.ndarray a = per_head(name, sinks, query, False, 0, NULL, heads)
    wrong = np.isnan(a) | np.isposinf(a)
    if wrong.any():
        raise ValueError(f"{name} must be finite, or -inf for none, got {a[wrong][0]}")
    return a


cdef np.ndarray attention_slopes(
    str name, object slopes, np.ndarray query, int lead, const np.npy_intp *shape, ptrdiff_t heads
):
    if slopes is None:
        return None
    cdef np.ndarray a = per_head(name, slopes, query, True, lead, shape, heads)
    wrong = ~np.isfinite(a)
    if wrong.any():
        raise ValueError(f"{name} must be finite, got {a[wrong][0]}")
    return a


cdef np.ndarray position_bias(str name, object x, np.ndarray query, ptrdiff_t heads):
    """A row for each query head, in the type of sums and in C order."""
    cdef np.ndarray a = parameter_like(name, x, query, "query")
    if a.ndim != 2 or a.shape[0] != heads or a.shape[1] % 2 == 0:
        unfit(name, a, f"shape ({heads}, 2 * R + 1), for each query head a bias for each distance from -R to R")
    return np.PyArray_FROMANY(a, computed_in(query), 2, 2, np.NPY_ARRAY_CARRAY_RO | np.NPY_ARRAY_FORCECAST)


cdef np.ndarray per_sequence(str name, object x, int lead, const np.npy_intp *shape):
    """None, or an int64 for each sequence: of the leading axes' shape, or one for all of shape ()."""
    if x is None:
        return None
    cdef np.ndarray a
    cdef int i
    if isinstance(x, (list, tuple)):
        x = listed(name, x)
    if PyLong_Check(x) or not (isinstance(x, np.ndarray) or is_foreign(x)):
        a = np.PyArray_EMPTY(0, <np.npy_intp *>shape, np.NPY_INT64, 0)
        (<np.npy_int64 *>np.PyArray_DATA(a))[0] = integer(name, x, "an int or an integer array")
        return a
    a = integer_array(name, x)
    if a.ndim > lead or any([length(a, i) not in (1, shape[lead - i]) for i in range(1, a.ndim + 1)]):
        unfit(name, a, f"a shape that broadcasts to {tuple([shape[i] for i in range(lead)])}, the leading axes")
    if a.ndim == 0:
        return a
    if a.ndim == lead and np.PyArray_IS_C_CONTIGUOUS(a) and not any([a.shape[i] != shape[i] for i in range(lead)]):
        return a  # the usual case: it saves 4 microseconds of a decoding step
    return np.ascontiguousarray(np.broadcast_to(a, tuple([shape[i] for i in range(lead)])))


cdef np.ndarray integer_array(str name, object x):
    """As int64; always a copy, so that nobody can change it between its check and its use."""
    cdef np.ndarray a = array(name, x)
    if not np.PyArray_ISINTEGER(a):
        raise TypeError(f"{name} must have an integer dtype, got {described(a)}")
    if np.PyArray_TYPE(a) == np.NPY_UINT64 and a.size and a.max() >= 1 << 63:
        raise ValueError(f"{name} must fit 64 bits with a sign, got {a.max()}")
    return np.array(a, dtype=np.int64)


cdef int length_within(str name, ptrdiff_t length, ptrdiff_t keys) except -1:
    if not 0 <= length <= keys:
        raise ValueError(f"{name} must lie between 0 and the number of keys, {keys}, got {length}")
    return 0


cpdef np.ndarray boundaries(str name, object x, np.ndarray rows, str rows_name):
    """Cumulative lengths of packed sequences."""
    cdef np.ndarray a = integer_array(name, listed(name, x) if isinstance(x, (list, tuple)) else x)
    if a.ndim != 1 or a.shape[0] == 0:
        unfit(name, a, "shape (sequences + 1,)")
    cdef const np.npy_int64 *at = <const np.npy_int64 *>np.PyArray_DATA(a)
    cdef ptrdiff_t i, end = rows.shape[0]
    if at[0] != 0 or at[a.shape[0] - 1] != end:
        raise ValueError(
            f"{name} must run from 0 to {end}, the rows of {rows_name}, got {at[0]} to {at[a.shape[0] - 1]}"
        )
    for i in range(1, a.shape[0]):
        if at[i] < at[i - 1]:
            raise ValueError(f"{name} must never decrease, got {at[i - 1]} before {at[i]}")
    return a


cdef int as_many(str name, np.ndarray x, np.ndarray model, str model_name) except -1:
    if x.shape[0] != model.shape[0]:
        unfit(name, x, f"as many elements as {model_name}, {model.shape[0]}")
    return 0


cdef int attention_window(str name, object window, ptrdiff_t *left, ptrdiff_t *right) except -1:
    """Check (left, right), each None or not negative, and lower the present bounds to them; -1 is unbounded."""
    if window is None:
        return 0
    if not isinstance(window, (tuple, list, np.ndarray)):
        raise TypeError(f"{name} must be a pair (left, right) of ints or None, got {type(window).__name__}")
    if isinstance(window, np.ndarray) and window.ndim != 1:
        raise TypeError(f"{name} must be a pair (left, right) of ints or None, got an array of {window.ndim} axes")
    if len(window) != 2:
        raise ValueError(f"{name} must be a pair (left, right), got {len(window)} elements")
    side(name, window[0], left)
    side(name, window[1], right)
    return 0


cdef int side(str name, object reach, ptrdiff_t *bound) except -1:
    if reach is None:
        return 0
    cdef ptrdiff_t keys = integer(name, reach, "a pair of ints or None")
    if keys < 0:
        raise ValueError(f"{name} must be a pair of ints that are not negative, or None, got {keys}")
    if bound[0] < 0 or keys < bound[0]:
        bound[0] = keys
    return 0


cdef double positive(str name, object x) except -1:
    cdef double value = finite(name, x)
    if value <= 0:
        raise ValueError(f"{name} must be greater than 0, got {x}")
    return value


# --- rotary embedding ---

cdef np.ndarray rotary_array(str name, object x):
    cdef np.ndarray a = real_array(name, x)
    if a.ndim < 2:
        unfit(name, a, "at least 2 axes (..., tokens, size)")
    return a


cdef np.ndarray rotary_table(str name, object table, np.ndarray x, bint by_position):
    """cos or sin: a row of a number per pair, for each position or, without positions, for each of x's tokens."""
    cdef np.ndarray a = parameter_like(name, table, x, "x")
    if by_position and a.ndim != 2:
        unfit(name, a, "2 axes (positions, pairs) if positions are given")
    if not by_position and (a.ndim < 2 or length(a, 2) != length(x, 2) or not fits_tokens(a, 1, x)):
        needed = ", ".join(map(str, (*tokens_of(x), "pairs")))
        unfit(name, a, f"shape ({needed}), or one that broadcasts to it in its leading axes")
    if 2 * length(a, 1) > length(x, 1):
        unfit(name, a, f"at most {length(x, 1) // 2} pairs (half of x's last axis) in its last axis{halved(a, x)}")
    return a


cdef str halved(np.ndarray table, np.ndarray x):
    """Advice for a table that may hold each number twice."""
    cdef ptrdiff_t pairs = length(table, 1) // 2
    if 2 * pairs != length(table, 1) or 2 * pairs > length(x, 1):
        return ""
    return f" (if it holds each number twice, as in transformers, pass half of it: [..., :{pairs}])"


cpdef int each_pair_once(str name, np.ndarray cos, np.ndarray sin, object rotary_dim) except -1:
    """Raise for tables of one shape that seem to hold the number of each pair twice, unless `rotary_dim` confirms them.

    The numbers of one row may be equal by chance, those of a whole table are not. Tables without rotation are accepted,
    as both readings agree, and so are zeros, which no model uses.
    """
    cdef ptrdiff_t columns = length(cos, 1), size, rows, row
    cdef bint halves = columns > 0 and columns % 2 == 0, pairs = halves
    if rotary_dim is not None:
        size = integer("rotary_dim", rotary_dim, "an int or None")
        if size != 2 * columns:
            raise ValueError(
                f"rotary_dim must be twice the number of columns of {name}, {2 * columns}, got {size}"
                + (f": pass {name}[..., :{columns // 2}] of a table that holds each twice" if size == columns else "")
            )
        return 0
    rows = rows_of(cos, sin)
    if rows:  # the last one first: the row of position 0 is always uniform
        repeats(cos, sin, rows - 1, &halves, &pairs)
    for row in range(rows - 1):
        if not (halves or pairs):
            return 0
        repeats(cos, sin, row, &halves, &pairs)
    if not (halves or pairs) or ((sin == 0).all() and ((cos == 1).all() or (cos == 0).all())):
        return 0
    part = f":{columns // 2}" if halves else "::2"
    raise ValueError(
        f"{name} must hold the number of each pair once, got {shape_of(cos)} with "
        f"{'equal halves' if halves else 'equal neighbours'} in all rows of it and of sin, as in transformers: pass "
        f"cos[..., {part}] and sin[..., {part}], or rotary_dim={2 * columns} if there really are {columns} pairs"
    )


cdef ptrdiff_t rows_of(np.ndarray cos, np.ndarray sin) noexcept:
    """Number of rows that do not repeat the same memory."""
    cdef ptrdiff_t rows = 1
    cdef int i
    for i in range(cos.ndim - 1):
        if cos.strides[i] or sin.strides[i] or cos.shape[i] == 0:
            rows *= cos.shape[i]
    return rows


cdef void repeats(np.ndarray cos, np.ndarray sin, ptrdiff_t row, bint *halves, bint *pairs) noexcept:
    """Clear `halves` unless the halves of a row are bitwise equal, and `pairs` unless all neighbours are."""
    cdef const char *c = <const char *>np.PyArray_DATA(cos)
    cdef const char *s = <const char *>np.PyArray_DATA(sin)
    cdef ptrdiff_t half = length(cos, 1) // 2, c_step = element_stride(cos), s_step = element_stride(sin), j, at
    cdef ptrdiff_t c_size = np.PyArray_ITEMSIZE(cos), s_size = np.PyArray_ITEMSIZE(sin)
    cdef int i
    for i in range(cos.ndim - 2, -1, -1):
        if cos.strides[i] or sin.strides[i]:
            at, row = row % cos.shape[i], row // cos.shape[i]
            c, s = c + at * cos.strides[i], s + at * sin.strides[i]
    for j in range(half):
        if halves[0] and (
            memcmp(c + j * c_step, c + (j + half) * c_step, c_size)
            or memcmp(s + j * s_step, s + (j + half) * s_step, s_size)
        ):
            halves[0] = False
        if pairs[0] and (
            memcmp(c + 2 * j * c_step, c + (2 * j + 1) * c_step, c_size)
            or memcmp(s + 2 * j * s_step, s + (2 * j + 1) * s_step, s_size)
        ):
            pairs[0] = False
        if not (halves[0] or pairs[0]):
            return


cdef np.ndarray rotary_positions(str name, object positions, np.ndarray x, ptrdiff_t rows):
    """A copy, so that nobody can change it between this check and its use."""
    cdef np.ndarray a = integers(name, positions), copy
    if not fits_tokens(a, 0, x):
        raise ValueError(f"{name} must broadcast to shape {tokens_of(x)}, that of x's tokens, got {shape_of(a)}")
    copy = np.PyArray_FROMANY(
        a, np.NPY_INTP, 0, 0, np.NPY_ARRAY_CARRAY | np.NPY_ARRAY_FORCECAST | np.NPY_ARRAY_ENSURECOPY
    )
    if not all_below(<const np.npy_intp *>np.PyArray_DATA(copy), np.PyArray_SIZE(copy), rows):
        raise ValueError(f"{name} must be at least 0 and below {rows}, the rows of cos, got {a.min()} to {a.max()}")
    return copy


cdef np.ndarray integers(str name, object x):
    """Anything that NumPy converts to an array of integers."""
    cdef np.ndarray a
    if isinstance(x, np.ndarray) or is_foreign(x):
        a = array(name, x)
    else:
        try:
            a = np.asarray(x)
        except ValueError:  # lists of different lengths
            raise ValueError(f"{name} must be an array of integers, got a ragged {type(x).__name__}") from None
    if not np.PyArray_ISINTEGER(a):
        raise TypeError(f"{name} must have an integer dtype, got {described(a)}")
    return a


cdef np.ndarray listed(str name, object x):
    """The same for a list or tuple, which NumPy converts to reals if it is empty or a number exceeds 64 bits."""
    cdef np.ndarray a
    try:
        return integers(name, x)
    except TypeError:
        a = np.array(x, object)
        if a.size == 0:
            return a.astype(np.int64)
        if all([isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in a.flat]):
            raise ValueError(f"{name} must fit 64 bits, got {max(a.flat, key=abs)}") from None
        raise


cdef bint all_below(const np.npy_intp *x, ptrdiff_t count, ptrdiff_t limit) noexcept nogil:
    """Whether 0 <= x[i] < limit. Unsigned integers too large for the type have become negative."""
    cdef ptrdiff_t i
    cdef size_t largest = 0
    for i in range(count):
        largest = max(largest, <size_t>x[i])
    return count == 0 or largest < <size_t>limit


cdef bint fits_tokens(np.ndarray a, int more, np.ndarray x) noexcept:
    """Whether a's axes without the last `more` broadcast to (..., tokens) of x."""
    cdef int axis, of_x  # counted from the end
    for axis in range(1, a.ndim - more + 1):
        of_x = 2 if axis == 1 else axis + 2
        if of_x > x.ndim or (length(a, axis + more) != 1 and length(a, axis + more) != length(x, of_x)):
            return False
    return True


cdef tuple tokens_of(np.ndarray x):
    """x's shape without heads and components: (..., tokens)."""
    shape = (<object>x).shape
    return (*shape[: max(0, x.ndim - 3)], shape[x.ndim - 2])


# --- linear layers ---

# The kernels' list of names; their numbers are one more, for FA_NO_ACTIVATION is 0.
ACTIVATIONS = tuple([fa_activation_name(_i).decode() for _i in range(1, FA_ACTIVATIONS)])
cdef dict activation_numbers = {None: FA_NO_ACTIVATION, **{_name: _i for _i, _name in enumerate(ACTIVATIONS, 1)}}


cdef int activation(str name, object x) except -1:
    if x is not None and not isinstance(x, str):
        raise TypeError(f"{name} must be a str or None, got {type(x).__name__}")
    number = activation_numbers.get(x)
    if number is None:
        names = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"{name} must be None or one of {names}, got {x!r}")
    return number


cdef np.ndarray rows_of_any_length(str name, object x):
    cdef np.ndarray a = real_array(name, x)
    if a.ndim == 0:
        unfit(name, a, "at least one axis")
    return a


cpdef tuple quantized_weight(str name, object weight):
    """The int8 values of a weight and their float32 scales; shapes are not checked."""
    cdef np.ndarray values, scales
    if len(weight) != 2:
        raise ValueError(f"{name} must be an array or a pair (values, scales), got a tuple of {len(weight)}")
    values = array(f"{name}[0]", weight[0])
    scales = array(f"{name}[1]", weight[1])
    if np.PyArray_TYPE(values) != np.NPY_INT8:
        raise TypeError(f"{name}[0] must have dtype int8 if there are scales, got {described(values)}")
    if np.PyArray_TYPE(scales) != np.NPY_FLOAT32 or not np.PyArray_ISNOTSWAPPED(scales):
        raise TypeError(f"{name}[1] must have dtype float32, got {described(scales)}")
    return values, scales


cdef tuple linear_weight(str name, object weight, np.ndarray x, str x_name):
    """A weight for rows of x: (array, None), or int8 with the scales of its rows."""
    cdef np.ndarray values, scales = None
    if isinstance(weight, tuple):
        values, scales = quantized_weight(name, weight)
    else:
        values = parameter_like(name, weight, x, x_name)
    if values.ndim != 2 or values.shape[1] != length(x, 1):
        unfit(name, values, f"shape (out_features, {length(x, 1)}), the latter the last axis of {x_name}")
    if scales is not None:
        if scales.ndim != 1 or scales.shape[0] != values.shape[0]:
            unfit(f"{name}[1]", scales, f"shape ({values.shape[0]},), a scale for each row of {name}[0]")
        scales = np.PyArray_FROMANY(scales, np.NPY_FLOAT32, 0, 0, np.NPY_ARRAY_CARRAY_RO)
    return values, scales


cdef Packed packed_weight(str name, object weight, np.ndarray x, str x_name):
    """A packed weight of the target in use for rows of x."""
    cdef Packed w = weight
    if w.made_for != current_target():
        raise ValueError(
            f"{name} must be packed for the target in use, {targets.current()!r}, got one for {w.target!r}: pack it "
            f"again"
        )
    if w.type == FA_F64 != type_of(x):
        raise TypeError(
            f"{name} must not be wider than float32, in which {x_name} ({x.dtype}) is computed, got dtype float64; "
            f"convert it"
        )
    if w.form.inputs != length(x, 1):
        raise ValueError(
            f"{name} must have shape (out_features, {length(x, 1)}), the latter the last axis of {x_name}, got shape "
            f"{w.shape}"
        )
    return w


cdef np.ndarray linear_bias(str name, object bias, ptrdiff_t features, bint gated, np.ndarray x, str x_name):
    """None, or a contiguous bias, of a gated weight two; converted to float64 if x is: those kernels load nothing else.
    """
    if bias is None:
        return None
    cdef np.ndarray a = parameter_like(name, bias, x, x_name)
    if gated:
        if a.ndim != 2 or a.shape[0] != 2 or a.shape[1] != features:
            unfit(name, a, f"shape (2, {features}), the gate's numbers and those of the weight")
    elif a.ndim != 1 or a.shape[0] != features:
        unfit(name, a, f"shape ({features},), a number for each row of the weight")
    cdef int number = np.NPY_FLOAT64 if np.PyArray_TYPE(x) == np.NPY_FLOAT64 else np.PyArray_TYPE(a)
    if np.PyArray_TYPE(a) == number and np.PyArray_ISCARRAY_RO(a):
        return a
    return np.PyArray_FROMANY(a, number, 0, 0, np.NPY_ARRAY_CARRAY_RO)


cdef np.ndarray shaped_like(str name, object x, int ndim, const np.npy_intp *shape, np.ndarray model, str model_name):
    """An array of this shape and the model's type."""
    cdef np.ndarray a = real_array(name, x)
    cdef int i
    if np.PyArray_TYPE(a) != np.PyArray_TYPE(model):
        raise TypeError(f"{name} must have dtype {model.dtype}, like {model_name}, got dtype {a.dtype}")
    if a.ndim != ndim or any([a.shape[i] != shape[i] for i in range(ndim)]):
        unfit(name, a, f"the result's shape {tuple([shape[i] for i in range(ndim)])}")
    return a


# --- caches ---

cpdef object storage_dtype(str name, object x):
    """The dtype of a cache, from a NumPy or ml_dtypes type or its name; int8 is quantised."""
    row = _dtypes.BY_NAME.get(x) if isinstance(x, str) else None
    if row is not None and row.package:
        try:
            x = getattr(importlib.import_module(row.package), row.name)
        except ImportError:
            raise ValueError(
                f"{name} must be a type that is installed, got {x!r}, which needs {row.package}: "
                f"pip install 'fastattn[{row.name}]'"
            ) from None
    needed = f"{name} must be {_dtypes.listed(_dtypes.TYPES)} in native byte order"
    if not isinstance(x, (str, type, np.dtype)):
        raise TypeError(f"{needed}, got {x!r}")
    try:
        dtype = np.dtype(x)
    except (TypeError, ValueError, SyntaxError):
        raise TypeError(f"{needed}, got {x!r}") from None
    if dtype.num != np.NPY_INT8 and not is_real(np.empty(0, dtype)):
        raise TypeError(f"{needed}, got {x!r}")
    return dtype


cpdef ptrdiff_t at_least_one(str name, object x) except -1:
    cdef ptrdiff_t number = integer(name, x)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


cdef np.ndarray cache_rows(str name, object x, ptrdiff_t batch, ptrdiff_t heads, ptrdiff_t tokens, ptrdiff_t size):
    """New keys or values, (batch, heads, tokens, size); any number of tokens where that is -1."""
    cdef np.ndarray a = real_array(name, x)
    if a.ndim != 4 or a.shape[0] != batch or a.shape[1] != heads or a.shape[3] != size or a.shape[2] != (
        a.shape[2] if tokens < 0 else tokens
    ):
        unfit(
            name, a, f"shape ({batch}, {heads}, {'tokens' if tokens < 0 else tokens}, {size})",
            tokens_first(a, heads) if a.ndim == 4 and a.shape[2] == heads else "",
        )
    return a


cpdef np.ndarray token_counts(str name, object x, ptrdiff_t sequences, ptrdiff_t tokens):
    """Number of valid tokens of each sequence; all of them for None."""
    cdef np.npy_intp shape = sequences
    cdef np.ndarray given = per_sequence(name, x, 1, &shape)
    if given is None:
        given = np.array(tokens, dtype=np.int64)
    if given.size and not 0 <= given.min() <= given.max() <= tokens:
        raise ValueError(
            f"{name} must lie between 0 and the number of tokens, {tokens}, got {given.min()} to {given.max()}"
        )
    return np.broadcast_to(given, sequences)


cdef np.ndarray cache_table(str name, object x, np.ndarray key, ptrdiff_t positions):
    """cos or sin: a row for each position up to the last token's."""
    cdef np.ndarray a = parameter_like(name, x, key, "key")
    if a.ndim != 2 or a.shape[0] < positions or 2 * a.shape[1] > length(key, 1):
        unfit(
            name, a, f"shape (positions, pairs) with at least {positions} positions, for all tokens of key, and at "
            f"most {length(key, 1) // 2} pairs, half of key's last axis{halved(a, key) if a.ndim else ''}"
        )
    return a


cdef np.ndarray indices(str name, object x, ptrdiff_t count, ptrdiff_t limit):
    """`count` integers below `limit`; always a copy."""
    cdef np.ndarray a = np.array(integers(name, x), dtype=np.int64)
    if a.ndim != 1 or a.shape[0] != count:
        unfit(name, a, f"shape ({count},)")
    if count and not 0 <= a.min() <= a.max() < limit:
        raise ValueError(f"{name} must be at least 0 and below {limit}, got {a.min()} to {a.max()}")
    return a


# --- numbers ---

cdef ptrdiff_t integer(str name, object x, str needed="an int") except? -1:
    if not PyLong_Check(x) or PyBool_Check(x):
        if not isinstance(x, np.integer):
            raise TypeError(f"{name} must be {needed}, got {type(x).__name__}")
    try:
        return <ptrdiff_t>x
    except OverflowError:
        raise ValueError(f"{name} must fit 64 bits, got {x}") from None


cdef double finite(str name, object x) except? -1:
    if PyBool_Check(x) or not (PyFloat_Check(x) or PyLong_Check(x) or isinstance(x, (np.floating, np.integer))):
        raise TypeError(f"{name} must be a float, got {type(x).__name__}")
    cdef double value
    try:
        value = <double>x
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got {x}") from None
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {x}")
    return value


cpdef double non_negative(str name, object x) except -1:
    cdef double value = finite(name, x)
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {x}")
    return value


cpdef bint flag(str name, object x) except -1:
    if x is True:
        return True
    if x is False:
        return False
    if not isinstance(x, np.bool):
        raise TypeError(f"{name} must be a bool, got {type(x).__name__}")
    return bool(x)


cpdef int thread_limit(object num_threads) except -1:
    """The caller's limit; 0 for None."""
    if num_threads is None:
        return 0
    cdef ptrdiff_t count = integer("num_threads", num_threads)
    if count < 1:
        raise ValueError(f"num_threads must be at least 1, got {count}")
    return <int>min(count, 1 << 20)


cdef int axis_of(object axis, int ndim) except -1:
    cdef ptrdiff_t index = integer("axis", axis)
    if not -ndim <= index < ndim:
        raise ValueError(f"axis must lie between {-ndim} and {ndim - 1} for an array of {ndim} axes, got {index}")
    return <int>(index + ndim if index < 0 else index)


# --- memory ---

cdef bint share_memory(np.ndarray a, np.ndarray b) noexcept:
    """Whether the two may share an element: their address ranges overlap."""
    cdef Array x, y
    place(&x, a)
    place(&y, b)
    return arrays.share_memory(&x, &y)


cdef bint same_place(np.ndarray a, np.ndarray b) noexcept:
    """Whether the arrays are the same, element by element: a row-wise operation may then work in place."""
    cdef Array x, y
    place(&x, a)
    place(&y, b)
    return x.data == y.data and np.PyArray_TYPE(a) == np.PyArray_TYPE(b) and arrays.same_axes(&x, &y)


cdef np.ndarray detached_output(np.ndarray result, tuple rows, tuple others):
    """The array to compute a result in: its own or, if that would overwrite input that is still needed, a new one.

    The result may be exactly one of `rows`, whose rows are read before the same row of the result is written. Any other
    overlap with them or with `others` (arrays or None) needs a new array.
    """
    cdef np.ndarray x
    for x in rows:
        if x is not None and share_memory(result, x) and not same_place(result, x):
            return new_array(result, result.ndim, result.shape)
    for x in others:
        if x is not None and share_memory(result, x):
            return new_array(result, result.ndim, result.shape)
    return result


cdef object finish(str operation, bint done, np.ndarray result, np.ndarray target, object out):
    """End a call: copy the result to its array if needed and return it, or the caller's `out` that holds it.

    MemoryError without scratch memory.
    """
    if not done:
        raise MemoryError(f"no scratch memory for {operation}")
    if target is not result:
        result[...] = target
    return result if out is None else out
