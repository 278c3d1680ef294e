"""Layer and RMS normalisation over the last axis, with or without a residual, split into items for the threads."""

cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn cimport _arguments as arguments
from fastattn._core cimport arrays, costs, strides
from fastattn._core.arrays cimport Array
from fastattn._core.targets cimport FA_F32, beyond_cache, fa_kernels, fa_normalization, fa_size_of, fa_type, kernels_of
from fastattn._core.threads cimport run, threads_for

np.import_array()

cdef enum:
    X, OUT, RESIDUAL, TOTAL  # rows of Axes.stride


cdef struct Plan:
    fa_normalization call
    strides.Axes outer  # all axes but the last and the one of the rows
    ptrdiff_t rows, item_rows, row_items, items
    ptrdiff_t row_work  # in elements
    const char *x
    const char *residual
    char *out
    char *total
    const fa_kernels *kernels


cdef bint contiguous(
    const Plan *p, int array, ptrdiff_t row, ptrdiff_t element, const void *data, ptrdiff_t size
) noexcept nogil:
    """Whether the rows of an array can be read in place: contiguous and aligned."""
    cdef ptrdiff_t bits = <ptrdiff_t>data | row
    cdef int i
    for i in range(p.outer.count):
        bits |= p.outer.stride[array][i]
    return element == size and bits % size == 0


cdef void lay_out(Plan *p) noexcept nogil:
    cdef strides.Axes *outer = &p.outer
    cdef fa_normalization *call = &p.call
    cdef int last
    cdef ptrdiff_t itemsize = fa_size_of(call.type)
    strides.simplify(outer, 4)
    p.rows, call.x_row_stride, call.residual_row_stride, call.out_row_stride, call.total_row_stride = 1, 0, 0, 0, 0
    if outer.count:
        last = outer.count = outer.count - 1
        p.rows = outer.length[last]
        call.x_row_stride, call.residual_row_stride = outer.stride[X][last], outer.stride[RESIDUAL][last]
        call.out_row_stride, call.total_row_stride = outer.stride[OUT][last], outer.stride[TOTAL][last]
    call.contiguous_x = contiguous(p, X, call.x_row_stride, call.x_stride, p.x, itemsize)
    call.contiguous_out = contiguous(p, OUT, call.out_row_stride, call.out_stride, p.out, itemsize)
    call.contiguous_residual = contiguous(
        p, RESIDUAL, call.residual_row_stride, call.residual_stride, p.residual, itemsize
    )
    call.contiguous_total = contiguous(p, TOTAL, call.total_row_stride, call.total_stride, p.total, itemsize)
    p.row_work = call.length + costs.NORMALIZATION_ROW
    p.item_rows = max(1, (costs.STREAMED_ITEM_ELEMENTS if call.nontemporal else costs.ITEM_ELEMENTS) // p.row_work)
    p.row_items = (p.rows + p.item_rows - 1) // p.item_rows
    p.items = strides.total(outer) * p.row_items


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t block = index // p.row_items, row = index % p.row_items * p.item_rows
    cdef const char *residual = NULL
    cdef char *total = NULL
    if p.residual != NULL:
        residual = p.residual + strides.offset(&p.outer, RESIDUAL, block) + row * p.call.residual_row_stride
        total = p.total + strides.offset(&p.outer, TOTAL, block) + row * p.call.total_row_stride
    p.kernels.normalize_rows(
        &p.call,
        p.x + strides.offset(&p.outer, X, block) + row * p.call.x_row_stride,
        residual,
        p.out + strides.offset(&p.outer, OUT, block) + row * p.call.out_row_stride,
        total,
        min(p.item_rows, p.rows - row),
        memory,
    )


cdef bint run_call(Plan *p, int asked) noexcept nogil:
    cdef double nanoseconds = <double>p.rows * strides.total(&p.outer) * p.row_work / costs.NORMALIZATION_ELEMENTS
    return run(run_item, p, p.items, threads_for(asked, p.items, nanoseconds), p.kernels.normalization_scratch(&p.call))


cdef void fill(Plan *p, const Normalization *given) noexcept nogil:
    """Addresses and strides."""
    cdef fa_normalization *call = &p.call
    cdef const Array *x = &given.x
    cdef const Array *residual = &given.residual
    cdef const Array *total = &given.total
    cdef bint more = residual.data != NULL
    cdef int i
    p.outer.count = x.ndim - 1
    for i in range(p.outer.count):
        p.outer.length[i] = x.shape[i]
        p.outer.stride[X][i], p.outer.stride[OUT][i] = x.strides[i], given.out.strides[i]
        p.outer.stride[RESIDUAL][i] = residual.strides[i] if more else 0
        p.outer.stride[TOTAL][i] = total.strides[i] if more else 0
    call.type, call.length = <fa_type>x.type, x.shape[x.ndim - 1]
    call.x_stride, call.out_stride = arrays.element_stride(x), arrays.element_stride(&given.out)
    call.residual_stride = arrays.element_stride(residual) if more else x.itemsize
    call.total_stride = arrays.element_stride(total) if more else x.itemsize
    call.weight, call.bias = given.weight.data, given.bias.data
    call.weight_type = FA_F32 if call.weight == NULL else <fa_type>given.weight.type
    call.bias_type = FA_F32 if call.bias == NULL else <fa_type>given.bias.type
    call.eps, call.centred = given.eps, given.centred
    call.nontemporal = call.length >= 64 and beyond_cache(arrays.size(x) * x.itemsize)
    p.x, p.out, p.residual, p.total = x.data, given.out.data, residual.data, total.data
    p.kernels = kernels_of(call.type)


cdef bint run_normalization(const Normalization *call) noexcept nogil:
    """Run a call whose arguments have been checked; False if there is no memory left."""
    cdef Plan p
    if arrays.size(&call.x) == 0:
        return True
    fill(&p, call)
    lay_out(&p)
    return run_call(&p, call.num_threads)


cdef bint run_on(Normalization *call, np.ndarray x, np.ndarray residual, np.ndarray weight, np.ndarray bias,
                 np.ndarray out, np.ndarray total):
    """The same for arrays of NumPy; all but x and out may be None."""
    cdef bint done
    arguments.by_address(&call.x, x)
    arguments.by_address(&call.residual, residual)
    arguments.by_address(&call.weight, weight)
    arguments.by_address(&call.bias, bias)
    arguments.by_address(&call.out, out)
    arguments.by_address(&call.total, total)
    with nogil:
        done = run_normalization(call)
    return done


def normalize(x, weight, bias, eps, out, num_threads, bint centred):
    """See fastattn.normalization: layer_norm (centred) and rms_norm."""
    cdef Normalization call
    cdef np.ndarray a = arguments.rows_array("x", x)
    cdef np.ndarray w = arguments.vector_like("weight", weight, a, "x")
    cdef np.ndarray b = arguments.vector_like("bias", bias, a, "x")
    call.eps, call.centred = arguments.non_negative("eps", eps), centred
    call.num_threads = arguments.thread_limit(num_threads)
    cdef np.ndarray result = arguments.output("out", out, a.ndim, a.shape, a, "x")
    cdef np.ndarray target = result if out is None else arguments.detached_output(result, (a,), (w, b))
    return arguments.finish("normalization", run_on(&call, a, None, w, b, target, None), result, target, out)


def add_normalize(x, residual, weight, bias, eps, out, num_threads, bint centred):
    """See fastattn.normalization: add_layer_norm (centred) and add_rms_norm."""
    cdef Normalization call
    cdef np.ndarray a = arguments.rows_array("x", x)
    cdef np.ndarray r = arguments.operand_like("residual", residual, a, "x")
    cdef np.ndarray w = arguments.vector_like("weight", weight, a, "x")
    cdef np.ndarray b = arguments.vector_like("bias", bias, a, "x")
    call.eps, call.centred = arguments.non_negative("eps", eps), centred
    call.num_threads = arguments.thread_limit(num_threads)
    if out is None:
        out = (None, None)
    if not isinstance(out, tuple):
        raise TypeError(f"out must be a tuple (y, total) of arrays, got {type(out).__name__}")
    if len(out) != 2:
        raise ValueError(f"out must hold two arrays, (y, total), got {len(out)}")
    cdef np.ndarray result = arguments.output("out[0]", out[0], a.ndim, a.shape, a, "x")
    cdef np.ndarray total = arguments.output("out[1]", out[1], a.ndim, a.shape, a, "x")
    if arguments.share_memory(result, total):
        raise ValueError("out must hold two arrays that do not overlap, got arrays that share memory")
    cdef np.ndarray target = arguments.detached_output(result, (a, r), (w, b))
    cdef np.ndarray total_target = arguments.detached_output(total, (a, r), (w, b))
    cdef bint done = run_on(&call, a, r, w, b, target, total_target)
    return (
        arguments.finish("normalization", done, result, target, out[0]),
        arguments.finish("normalization", done, total, total_target, out[1]),
    )
