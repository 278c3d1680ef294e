"""Packed weights: the sizes of the panels that linear's kernels read, and moving a weight there and back."""

import numpy as np

cimport numpy as np
from libc.stddef cimport ptrdiff_t, size_t

from fastattn._core cimport costs
from fastattn._core.targets cimport (
    FA_BF16,
    FA_F32,
    FA_I8,
    FA_TYPES,
    current_target,
    fa_linear_kernel,
    fa_matrix,
    fa_panel_bytes,
    fa_panel_rows,
    fa_panels,
    fa_size_of,
    fa_type,
    fa_type_name,
    linear_kernel,
    move_panel,
)
from fastattn._core.threads cimport run, threads_for

from fastattn import _dtypes
from fastattn._core import targets

np.import_array()

cdef enum:
    ALIGNMENT = 64  # bytes: a vector, and a line of cache

cdef ptrdiff_t MOST_INPUTS = <ptrdiff_t>1 << 40  # the bytes of a panel are a number of 64 bits
LARGEST_SIZE = 1 << 62


cdef struct Plan:
    const fa_panels *form
    char *data
    ptrdiff_t panel_bytes
    fa_matrix weight, gate
    bint back


cdef void run_item(const void *plan, ptrdiff_t index, void *memory) noexcept nogil:
    cdef const Plan *p = <const Plan *>plan
    move_panel(p.form, index, p.data + index * p.panel_bytes, p.weight, p.gate, p.back)


cdef fa_matrix matrix(np.ndarray x):
    return fa_matrix(<char *>np.PyArray_DATA(x), x.strides[0], x.strides[1])


cdef fa_type type_named(str name):
    cdef int i
    for i in range(<int>FA_TYPES):
        if fa_type_name(<fa_type>i).decode() == name:
            return <fa_type>i
    raise ValueError(name)


cdef class Packed:
    """A weight's panels for the target in use, in new memory if `data` is None. The caller checks the arguments."""

    def __init__(self, ptrdiff_t rows, ptrdiff_t inputs, dtype, bint gated, bint allocate=True):
        cdef const fa_linear_kernel *kernel
        cdef fa_panels *form = &self.form
        cdef ptrdiff_t padding
        self.check_open()
        if inputs > MOST_INPUTS:
            raise MemoryError(f"not enough memory for a packed weight of {inputs} inputs")
        self.dtype, self.type = dtype, type_named(_dtypes.BY_NAME[dtype.name].kernels)
        kernel = linear_kernel(FA_F32 if self.type == FA_I8 else self.type, self.type)
        padding = kernel.packed.padding
        form.rows, form.inputs, form.gated = rows, inputs, gated
        form.element = fa_size_of(self.type)
        form.group = 2 if self.type == FA_BF16 else kernel.unit
        form.lanes, form.run_units = kernel.packed.panel, kernel.packed.run_units
        form.units = ((inputs + form.group - 1) // form.group + padding - 1) // padding * padding
        self.panel_bytes = fa_panel_bytes(form)
        self.shape, self.gated = (rows, inputs), gated
        self.target, self.made_for = targets.current(), current_target()
        self.data = self.empty() if allocate else np.empty(0, np.uint8)

    cdef ptrdiff_t panels(self):
        return (self.form.rows + fa_panel_rows(&self.form) - 1) // fa_panel_rows(&self.form)

    cdef np.ndarray empty(self):
        """Memory for the panels, where a line of cache begins."""
        size = self.nbytes_of_panels
        if size > LARGEST_SIZE:
            raise MemoryError(f"not enough memory for a packed weight of {size} bytes")
        memory = np.empty(size + ALIGNMENT, np.uint8)
        first = (ALIGNMENT - <size_t>np.PyArray_DATA(memory) % ALIGNMENT) % ALIGNMENT
        return memory[first : first + size]

    @property
    def nbytes_of_panels(self) -> int:
        """Size of `data`; a Python number, as that of a weight that nobody has room for may need more than 64 bits."""
        return <object>self.panels() * <object>self.panel_bytes

    def set_scales(self, np.ndarray scales):
        """Set the scales of the panels' rows, before the weight is used."""
        self.check_open()
        self.scales = scales

    def set_data(self, np.ndarray data not None):
        """Set the panels, likewise."""
        self.check_open()
        if data.ndim != 1 or data.dtype != np.uint8 or not data.flags.c_contiguous:
            raise TypeError(f"data must be bytes side by side, got {data.dtype} of shape {(<object>data).shape}")
        if data.size != self.nbytes_of_panels:
            raise ValueError(f"data must have {self.nbytes_of_panels} bytes, got {data.size}")
        self.data = data

    def freeze(self):
        """Let nothing change from here on."""
        self.frozen = True
        for x in (self.data, self.scales):
            while isinstance(x, np.ndarray):
                x.flags.writeable = False
                x = x.base
        # Views: whoever owns memory could make it writeable again.
        self.data = self.data[:]
        self.scales = None if self.scales is None else self.scales[:]

    cdef int check_open(self) except -1:
        if self.frozen:
            raise TypeError("a packed weight must not be changed")
        return 0

    @property
    def layout(self) -> tuple:
        """What a file must agree on: the lanes, elements of a unit, units and units of a run of a panel."""
        return self.form.lanes, self.form.group, self.form.units, self.form.run_units

    @property
    def rows_of_a_panel(self) -> int:
        """Rows of the weight in a panel."""
        return fa_panel_rows(&self.form)

    def move(self, np.ndarray weight, np.ndarray gate, bint back):
        """Fill the panels from a weight of the stored type and its gate or None or, if `back`, write them back."""
        cdef Plan p
        cdef ptrdiff_t count = self.panels()
        if not back:
            self.check_open()
        cdef int threads
        p.form, p.data, p.panel_bytes = &self.form, <char *>np.PyArray_DATA(self.data), self.panel_bytes
        p.weight, p.back = matrix(weight), back
        p.gate = matrix(weight if gate is None else gate)
        with nogil:
            threads = threads_for(0, count, <double>count * p.panel_bytes / costs.PACKED_BYTES)
            if not run(run_item, &p, count, threads, 0):
                with gil:
                    raise MemoryError("not enough memory for the threads")

    def cut(self, ptrdiff_t first, ptrdiff_t last):
        """The data and scales of rows [first, last) as views; None if these share a panel with others."""
        cdef ptrdiff_t rows = fa_panel_rows(&self.form)
        if self.made_for != current_target():
            raise ValueError(f"{targets.current()!r} is in use, and this weight is packed for {self.target!r}")
        if self.gated or first % rows or (last % rows and last != self.form.rows):
            return None
        begin, end = first // rows * self.panel_bytes, (last + rows - 1) // rows * self.panel_bytes
        return self.data[begin:end], None if self.scales is None else self.scales[first:last]
