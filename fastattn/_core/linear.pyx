"""Linear layers: the product of the rows of x and of the weight, split into items for the threads."""

cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn cimport _arguments as arguments
from fastattn._core cimport arrays, costs, strides
from fastattn._core.arrays cimport Array, contiguous, element_stride
from fastattn._core.packed cimport Packed
from fastattn._core.targets cimport (
    FA_F32,
    FA_F64,
    fa_kernels,
    fa_linear,
    fa_linear_item,
    fa_linear_kernel,
    fa_panel_bytes,
    fa_panel_rows,
    fa_size_of,
    fa_type,
    kernels_of,
    linear_kernel,
)
from fastattn._core.threads cimport item_before, run, threads_for

np.import_array()

cdef enum:
    X, OUT, RESIDUAL  # rows of Axes.stride
    MOST_ROWS = 512   # FA_MOST_ROWS, which is not a constant to Cython

# Maximum number of inputs: scratch memory is some thousand times as large, and its size must not overflow.
cdef ptrdiff_t LARGEST_SIZE = <ptrdiff_t>1 << 36


cdef struct Plan:
    fa_linear call
    strides.Axes outer        # all axes but the last
    ptrdiff_t rows, features  # of all
    ptrdiff_t item_features, row_items, feature_items
    const char *x
    const char *residual
    char *out
    ptrdiff_t tile, least_features  # rows and features of items are multiples of these
    const fa_kernels *kernels
    const fa_linear_kernel *kernel


cdef ptrdiff_t cut(ptrdiff_t total, ptrdiff_t most, ptrdiff_t unit) noexcept nogil:
    """The size of equal pieces of at most `most`, rounded up to whole units."""
    cdef ptrdiff_t pieces = max(1, (total + most - 1) // most)
    return max(unit, ((total + pieces - 1) // pieces + unit - 1) // unit * unit)


cdef void lay_out(Plan *p, int threads) noexcept nogil:
    """Choose the items: blocks of rows and, for several threads, ranges of features; enough of them, none too long.

    Where there are fewer ranges of features than threads, blocks of rows are smaller than the kernel prefers: each
    reads or packs the weight for itself, but otherwise threads would be idle.
    """
    cdef fa_linear *call = &p.call
    cdef ptrdiff_t tile = p.tile
    cdef ptrdiff_t row_bytes = max(1, call.in_features // p.kernel.unit) * p.kernels.itemsize
    cdef ptrdiff_t most = costs.LINEAR_ITEM_BYTES // row_bytes, pieces = 1, share, ranges, blocks, least
    most = max(most, min(2 * most, p.kernel.preferred_rows))
    most = max(tile, min(p.kernel.most_rows, most) // tile * tile)
    if threads > 1:
        share = p.rows // (costs.LINEAR_ITEMS_PER_THREAD * threads) + 1
        ranges = max(1, p.features // p.least_features)
        blocks = (threads + ranges - 1) // ranges
        least = max(p.kernels.tile_rows, cut(p.rows, (p.rows + blocks - 1) // blocks, tile))
        least = min(p.kernel.least_rows, least)
        most = min(most, max(least, cut(p.rows, share, tile)))
    call.item_rows = cut(p.rows, most, tile)
    p.row_items = (p.rows + call.item_rows - 1) // call.item_rows
    if threads > 1:
        pieces = max(
            (costs.LINEAR_ITEMS_PER_THREAD * threads + p.row_items - 1) // p.row_items,
            <ptrdiff_t>(<double>call.item_rows * p.features * call.in_features / costs.LINEAR_ITEM_PRODUCTS) + 1,
        )
        pieces = max(1, min(pieces, p.features // p.least_features))
    p.item_features = cut(p.features, (p.features + pieces - 1) // pieces, p.least_features)
    p.feature_items = (p.features + p.item_features - 1) // p.item_features


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef const char *x[MOST_ROWS]
    cdef const char *residual[MOST_ROWS]
    cdef char *out[MOST_ROWS]
    cdef fa_linear_item item
    cdef ptrdiff_t before = item_before(memory), block = index // p.feature_items, first = block * p.call.item_rows, i
    cdef bint more = p.residual != NULL
    item.rows = min(p.call.item_rows, p.rows - first)
    item.first_feature = index % p.feature_items * p.item_features
    item.features = min(p.item_features, p.features - item.first_feature)
    item.same_rows = before >= 0 and before // p.feature_items == block
    for i in range(item.rows):
        x[i] = p.x + strides.offset(&p.outer, X, first + i)
        out[i] = p.out + strides.offset(&p.outer, OUT, first + i)
        if more:
            residual[i] = p.residual + strides.offset(&p.outer, RESIDUAL, first + i)
    item.x, item.out, item.residual = x, out, NULL
    if more:
        item.residual = residual
    p.kernel.run(&p.call, &item, memory)


cdef bint run_call(Plan *p, int asked) noexcept nogil:
    cdef double weight = <double>p.features * p.call.in_features * fa_size_of(p.call.weight_type)
    cdef double products, nanoseconds
    cdef int threads
    strides.simplify(&p.outer, 3)
    p.rows = strides.total(&p.outer)
    products = <double>p.rows * p.features * p.call.in_features
    nanoseconds = max(products / costs.LINEAR_PRODUCTS, weight / costs.LINEAR_WEIGHT_BYTES)
    threads = threads_for(asked, p.rows * p.features, nanoseconds)
    lay_out(p, threads)
    return run(run_item, p, p.row_items * p.feature_items, threads, p.kernel.scratch(&p.call))


cdef void fill_weight(Plan *p, const Array *weight) noexcept nogil:
    cdef fa_linear *call = &p.call
    p.features, call.in_features = weight.shape[0], weight.shape[1]
    call.weight, call.contiguous_weight = weight.data, contiguous(weight)
    call.weight_row_stride, call.weight_stride = weight.strides[0], element_stride(weight)
    call.packed = call.gated = False
    p.kernel = linear_kernel(call.type, call.weight_type)
    p.tile, p.least_features = p.kernels.tile_rows, costs.LINEAR_ITEM_FEATURES


cdef void fill_packed(Plan *p, const Linear *given) noexcept nogil:
    cdef fa_linear *call = &p.call
    p.features, call.in_features = given.form.rows, given.form.inputs
    call.weight, call.contiguous_weight = given.weight.data, True
    call.weight_row_stride, call.weight_stride = fa_panel_bytes(given.form), 0
    call.packed, call.gated, call.features = True, given.form.gated, p.features
    p.kernel = linear_kernel(call.type, call.weight_type).packed
    p.tile, p.least_features = 1, costs.PACKED_ITEM_PANELS * fa_panel_rows(given.form)


cdef void fill(Plan *p, const Linear *given) noexcept nogil:
    """Addresses and strides."""
    cdef fa_linear *call = &p.call
    cdef const Array *x = &given.x
    cdef const Array *out = &given.out
    cdef const Array *residual = &given.residual
    cdef bint more = residual.data != NULL
    cdef int i
    p.outer.count = x.ndim - 1
    for i in range(p.outer.count):
        p.outer.length[i] = x.shape[i]
        p.outer.stride[X][i], p.outer.stride[OUT][i] = x.strides[i], out.strides[i]
        p.outer.stride[RESIDUAL][i] = residual.strides[i] if more else 0
    p.x, p.out, p.residual = x.data, out.data, residual.data
    call.x_stride, call.contiguous_x = element_stride(x), contiguous(x)
    call.out_stride, call.contiguous_out = element_stride(out), contiguous(out)
    call.residual_stride = element_stride(residual) if more else 0
    call.contiguous_residual = more and contiguous(residual)
    call.type, call.weight_type = <fa_type>x.type, given.weight_type
    call.bias, call.scales = given.bias.data, given.scales
    call.bias_type = FA_F32 if call.bias == NULL else <fa_type>given.bias.type
    call.activation = given.activation
    p.kernels = kernels_of(call.type)
    if given.form == NULL:
        fill_weight(p, &given.weight)
    else:
        fill_packed(p, given)


cdef bint run_linear(const Linear *call) noexcept nogil:
    """Run a call whose arguments have been checked; False if there is no memory left."""
    cdef Plan p
    fill(&p, call)
    if p.call.in_features > LARGEST_SIZE:
        return False
    return arrays.size(&call.out) == 0 or run_call(&p, call.num_threads)


def linear(x, weight, bias, activation, residual, out, num_threads):
    """See fastattn.linear."""
    cdef Linear call
    cdef np.npy_intp[strides.MOST_AXES] shape
    cdef np.ndarray a = arguments.rows_of_any_length("x", x)
    cdef np.ndarray w, scales, r, b
    cdef Packed packed = None
    cdef ptrdiff_t features
    if isinstance(weight, Packed):
        packed = arguments.packed_weight("weight", weight, a, "x")
        if arguments.type_of(a) == FA_F64 != packed.type:
            return linear(x, weight.for_float64(), bias, activation, residual, out, num_threads)
        w, scales, features = packed.data, packed.scales, packed.form.rows
    else:
        w, scales = arguments.linear_weight("weight", weight, a, "x")
        features = w.shape[0]
    b = arguments.linear_bias("bias", bias, features, packed is not None and packed.gated, a, "x")
    call.activation = arguments.activation("activation", activation)
    call.num_threads = arguments.thread_limit(num_threads)
    cdef int i
    for i in range(a.ndim - 1):
        shape[i] = a.shape[i]
    shape[a.ndim - 1] = features
    r = None if residual is None else arguments.shaped_like("residual", residual, a.ndim, shape, a, "x")
    cdef np.ndarray result = arguments.output("out", out, a.ndim, shape, a, "x")
    cdef np.ndarray target = result
    if out is not None:
        target = arguments.detached_output(result, (r,), (a, w, scales, b))
    arguments.by_address(&call.x, a)
    arguments.by_address(&call.weight, w)
    arguments.by_address(&call.bias, b)
    arguments.by_address(&call.residual, r)
    arguments.by_address(&call.out, target)
    call.scales = NULL if scales is None else <float *>np.PyArray_DATA(scales)
    call.form = NULL if packed is None else &packed.form
    call.weight_type = <fa_type>call.weight.type if packed is None else packed.type
    cdef bint done
    with nogil:
        done = run_linear(&call)
    return arguments.finish("linear", done, result, target, out)
