"""Rotary position embedding: the rows of a strided array, split into items for the threads."""

cimport numpy as np
from libc.stddef cimport ptrdiff_t

from fastattn cimport _arguments as arguments
from fastattn._arguments cimport element_stride, stride
from fastattn._core cimport costs, strides
from fastattn._core.targets cimport fa_kernels, fa_rotary, kernels_of
from fastattn._core.threads cimport run, threads_for

np.import_array()

cdef enum:
    X, OUT, COS, SIN, POSITIONS  # rows of Axes.stride
    ARRAYS


cdef struct Plan:
    fa_rotary call
    strides.Axes outer  # all axes but the last and the one of the rows
    ptrdiff_t rows, run_rows, blocks  # rows of a block, those that the kernel takes at a time
    ptrdiff_t runs, item_runs, items
    const char *x
    const char *cos
    const char *sin
    const char *positions
    char *out
    const fa_kernels *kernels


cdef void lay_out(Plan *p) noexcept nogil:
    cdef strides.Axes *outer = &p.outer
    cdef fa_rotary *call = &p.call
    cdef int last
    strides.simplify(outer, ARRAYS)
    p.rows, call.x_row_stride, call.out_row_stride, call.position = 1, 0, 0, 0
    if outer.count:
        last = outer.count = outer.count - 1
        p.rows = outer.length[last]
        call.x_row_stride, call.out_row_stride, call.position = (
            outer.stride[X][last], outer.stride[OUT][last], outer.stride[POSITIONS][last]
        )
        if p.positions == NULL:
            call.cos_row_stride, call.sin_row_stride = outer.stride[COS][last], outer.stride[SIN][last]
    p.run_rows = min(p.rows, max(1, costs.ITEM_ELEMENTS // call.length))
    p.blocks = strides.total(outer)
    p.runs = (p.rows + p.run_rows - 1) // p.run_rows * p.blocks
    p.item_runs = max(1, costs.ITEM_ELEMENTS // (p.run_rows * call.length))
    p.items = (p.runs + p.item_runs - 1) // p.item_runs


cdef void rotate_run(const Plan *p, ptrdiff_t index, void *memory) noexcept nogil:
    """Rotate some rows. The same rows of all blocks come in turn, as heads share cos and sin: these stay in cache."""
    cdef ptrdiff_t block = index % p.blocks, row = index // p.blocks * p.run_rows
    cdef const char *cos = p.cos + strides.offset(&p.outer, COS, block)
    cdef const char *sin = p.sin + strides.offset(&p.outer, SIN, block)
    cdef const char *positions = NULL
    if p.positions != NULL:
        positions = p.positions + strides.offset(&p.outer, POSITIONS, block) + row * p.call.position
    else:
        cos, sin = cos + row * p.call.cos_row_stride, sin + row * p.call.sin_row_stride
    p.kernels.rotate_rows(
        &p.call,
        p.x + strides.offset(&p.outer, X, block) + row * p.call.x_row_stride,
        cos,
        sin,
        positions,
        p.out + strides.offset(&p.outer, OUT, block) + row * p.call.out_row_stride,
        min(p.run_rows, p.rows - row),
        memory,
    )


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    cdef ptrdiff_t first = index * p.item_runs, i
    for i in range(first, min(first + p.item_runs, p.runs)):
        rotate_run(p, i, memory)


cdef bint run_call(Plan *p, int asked) noexcept nogil:
    """Run the call; False if there is no memory left."""
    cdef double nanoseconds = <double>p.rows * p.blocks * p.call.length / costs.ROTARY_ELEMENTS
    return run(run_item, p, p.items, threads_for(asked, p.items, nanoseconds), p.kernels.rotary_scratch(&p.call))


cdef int fill(Plan *p, np.ndarray x, np.ndarray cos, np.ndarray sin, np.ndarray positions, np.ndarray out) except -1:
    """Addresses and strides; `positions` may be None."""
    cdef fa_rotary *call = &p.call
    cdef int i, from_the_end, token
    p.outer.count = x.ndim - 1
    for i in range(x.ndim - 1):
        p.outer.length[i] = x.shape[i]
        p.outer.stride[X][i], p.outer.stride[OUT][i] = x.strides[i], out.strides[i]
        p.outer.stride[COS][i] = p.outer.stride[SIN][i] = p.outer.stride[POSITIONS][i] = 0
        from_the_end = x.ndim - i
        if from_the_end == 3:  # heads share cos, sin and positions
            continue
        token = 1 if from_the_end == 2 else from_the_end - 2  # the axis of positions, counted from the end
        if positions is not None:
            p.outer.stride[POSITIONS][i] = stride(positions, token)
        else:
            p.outer.stride[COS][i], p.outer.stride[SIN][i] = stride(cos, token + 1), stride(sin, token + 1)
    call.length, call.pairs = x.shape[x.ndim - 1], cos.shape[cos.ndim - 1]
    call.x_stride, call.out_stride = element_stride(x), element_stride(out)
    call.cos_stride, call.sin_stride = element_stride(cos), element_stride(sin)
    call.cos_row_stride, call.sin_row_stride = stride(cos, 2), stride(sin, 2)
    call.type, call.table_type = arguments.type_of(x), arguments.type_of(cos)
    p.x, p.out = <char *>np.PyArray_DATA(x), <char *>np.PyArray_DATA(out)
    p.cos, p.sin = <char *>np.PyArray_DATA(cos), <char *>np.PyArray_DATA(sin)
    p.positions = NULL if positions is None else <char *>np.PyArray_DATA(positions)
    p.kernels = kernels_of(call.type)
    return 0


def rotate(x, cos, sin, positions, interleaved, rotary_dim, out, num_threads):
    """See fastattn.rotary.rotary_embedding."""
    cdef Plan p
    cdef np.ndarray a = arguments.rotary_array("x", x)
    cdef np.ndarray c = arguments.rotary_table("cos", cos, a, positions is not None)
    cdef np.ndarray s = arguments.operand_like("sin", sin, c, "cos")
    cdef np.ndarray rows = None
    if positions is not None:
        rows = arguments.rotary_positions("positions", positions, a, c.shape[0])
    arguments.each_pair_once("cos", c, s, rotary_dim)
    p.call.interleaved = arguments.flag("interleaved", interleaved)
    cdef int asked = arguments.thread_limit(num_threads)
    cdef np.ndarray result = arguments.output("out", out, a.ndim, a.shape, a, "x")
    cdef np.ndarray target = result if out is None else arguments.detached_output(result, (a,), (c, s))
    cdef bint done = True
    if np.PyArray_SIZE(a):
        fill(&p, a, c, s, rows, target)
        with nogil:
            lay_out(&p)
            done = run_call(&p, asked)
    return arguments.finish("rotary_embedding", done, result, target, out)
