"""softmax and log_softmax: the rows along one axis of a strided array, split into items for the threads."""

cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn cimport _arguments as arguments
from fastattn._core cimport arrays, costs, strides
from fastattn._core.arrays cimport Array
from fastattn._core.targets cimport beyond_cache, fa_kernels, fa_size_of, fa_softmax, fa_type, kernels_of
from fastattn._core.threads cimport run, threads_for

np.import_array()

cdef enum:
    X, OUT, WHERE  # rows of Axes.stride


cdef struct Plan:
    fa_softmax call
    strides.Axes outer      # all axes but the one summed over and the one of the rows
    ptrdiff_t rows, item_rows, row_items, items
    ptrdiff_t row_work      # in elements
    const char *x
    const char *where
    char *out
    const fa_kernels *kernels
    bint columns            # neighbouring rows are adjacent in memory: one row per lane


cdef void lay_out(Plan *p) noexcept nogil:
    """Merge axes where possible; the one with the smallest stride becomes that of the rows."""
    cdef strides.Axes *outer = &p.outer
    cdef fa_softmax *call = &p.call
    cdef int last
    cdef ptrdiff_t itemsize = fa_size_of(call.type), elements
    strides.simplify(outer, 3)
    p.rows, call.x_row_stride, call.out_row_stride, call.where_row_stride = 1, 0, 0, 0
    if outer.count:
        last = outer.count = outer.count - 1
        p.rows = outer.length[last]
        call.x_row_stride, call.out_row_stride = outer.stride[X][last], outer.stride[OUT][last]
        call.where_row_stride = outer.stride[WHERE][last]
    p.columns = (
        p.where == NULL and p.rows > 1 and call.x_row_stride == itemsize and call.out_row_stride == itemsize
        and call.x_stride % itemsize == 0 and call.out_stride % itemsize == 0
        and <size_t>p.x % itemsize == 0 and <size_t>p.out % itemsize == 0
    )
    # A column takes 1.5 times as long as a long row of the same length.
    p.row_work = call.length + (call.length // 2 if p.columns else min(3 * call.length, costs.SOFTMAX_ROW))
    elements = costs.STREAMED_ITEM_ELEMENTS if call.nontemporal else costs.ITEM_ELEMENTS
    p.item_rows = max(1, elements // max(1, p.row_work))
    if p.columns:
        p.item_rows = (p.item_rows + 63) // 64 * 64
    p.row_items = (p.rows + p.item_rows - 1) // p.item_rows
    p.items = strides.total(outer) * p.row_items


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t block = index // p.row_items, row = index % p.row_items * p.item_rows
    cdef ptrdiff_t rows = min(p.item_rows, p.rows - row)
    cdef const char *x = p.x + strides.offset(&p.outer, X, block) + row * p.call.x_row_stride
    cdef char *out = p.out + strides.offset(&p.outer, OUT, block) + row * p.call.out_row_stride
    cdef const char *where = NULL
    if p.where != NULL:
        where = p.where + strides.offset(&p.outer, WHERE, block) + row * p.call.where_row_stride
    if p.columns:
        p.kernels.softmax_columns(&p.call, x, where, out, rows, memory)
    else:
        p.kernels.softmax_rows(&p.call, x, where, out, rows, memory)


cdef bint run_call(Plan *p, int asked) noexcept nogil:
    cdef double nanoseconds = <double>p.rows * strides.total(&p.outer) * p.row_work / costs.SOFTMAX_ELEMENTS
    return run(run_item, p, p.items, threads_for(asked, p.items, nanoseconds), p.kernels.softmax_scratch(&p.call))


cdef void fill(Plan *p, const Softmax *call) noexcept nogil:
    """Addresses and strides."""
    cdef const Array *x = &call.x
    cdef const Array *out = &call.out
    cdef const Array *where = &call.where
    cdef bint masked = where.data != NULL
    cdef int i, n = 0
    for i in range(x.ndim):
        if i == call.axis:
            continue
        p.outer.length[n] = x.shape[i]
        p.outer.stride[X][n], p.outer.stride[OUT][n] = x.strides[i], out.strides[i]
        p.outer.stride[WHERE][n] = where.strides[i] if masked else 0
        n += 1
    p.outer.count = n
    p.call.type = <fa_type>x.type
    p.call.length, p.call.logarithm = x.shape[call.axis], call.logarithm
    p.call.x_stride, p.call.out_stride = x.strides[call.axis], out.strides[call.axis]
    if p.call.length == 1:  # the stride of such an axis is meaningless
        p.call.x_stride = p.call.out_stride = x.itemsize
    p.call.where_stride = where.strides[call.axis] if masked else 0
    p.call.nontemporal = p.call.length >= 64 and beyond_cache(arrays.size(out) * out.itemsize)
    p.x, p.where, p.out = x.data, where.data, out.data
    p.kernels = kernels_of(p.call.type)


cdef bint run_softmax(const Softmax *call) noexcept nogil:
    """Run a call whose arguments have been checked; False if there is no memory left."""
    cdef Plan p
    if arrays.size(&call.x) == 0:
        return True
    fill(&p, call)
    lay_out(&p)
    return run_call(&p, call.num_threads)


def softmax(x, axis, where, out, num_threads, bint logarithm):
    """See fastattn.softmax."""
    cdef Softmax call
    cdef np.ndarray a = arguments.real_array("x", x)
    if a.ndim == 0:
        raise ValueError("x must have at least one axis, got shape ()")
    call.axis, call.logarithm = arguments.axis_of(axis, a.ndim), logarithm
    call.num_threads = arguments.thread_limit(num_threads)
    cdef np.ndarray mask = arguments.mask_like("where", where, a)
    cdef np.ndarray result, target
    cdef bint done
    result = target = arguments.output("out", out, a.ndim, a.shape, a, "x")
    if out is not None:
        target = arguments.detached_output(result, (a,), (mask,))
    arguments.by_address(&call.x, a)
    arguments.by_address(&call.where, mask)
    arguments.by_address(&call.out, target)
    with nogil:
        done = run_softmax(&call)
    return arguments.finish("softmax", done, result, target, out)
