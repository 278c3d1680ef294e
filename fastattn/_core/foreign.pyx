"""Other libraries' arrays as NumPy arrays in the same memory: by DLPack, or by Python's buffer protocol.

In place of numpy.from_dlpack, which knows no bfloat16 and takes an exporter's Python code (5 microseconds) where there
is a table of C functions (0.3). The structs are those of dlpack.h 1.3 (https://github.com/dmlc/dlpack).

The arrays are read-only where the exporter says so, where it has made a copy, and where it does not say.
"""

import sys

import numpy as np

cimport cython
cimport numpy as np
from cpython.buffer cimport PyBUF_RECORDS_RO, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

np.import_array()

cdef extern from "numpy/arrayobject.h":
    np.ndarray new_array "PyArray_New"(
        PyTypeObject *subtype, int ndim, const np.npy_intp *shape, int number, const np.npy_intp *strides, void *data,
        int itemsize, int flags, PyObject *like
    )


cdef struct Device:
    int32_t type, index


cdef struct ElementType:
    uint8_t code, bits
    uint16_t lanes


cdef struct Tensor:
    void *data
    Device device
    int32_t ndim
    ElementType type
    int64_t *shape
    int64_t *strides  # in elements; NULL for C order
    uint64_t byte_offset


cdef struct Version:
    uint32_t major, minor


cdef struct Managed:  # of version 1
    Version version
    void *context
    void (*deleter)(Managed *) noexcept
    uint64_t flags
    Tensor tensor


cdef struct Unversioned:
    Tensor tensor
    void *context
    void (*deleter)(Unversioned *) noexcept


cdef struct Table:
    Version version
    Table *previous
    void *allocate
    int (*export)(void *, Managed **) except -1


cdef enum:
    MAJOR_VERSION = 1
    READ_ONLY = 1  # flags
    COPIED = 2
    MOST_AXES = 64  # of a NumPy array
    SIZES = 17      # of an element: up to 16 bytes

# Memory of the CPU; some of it is pinned for a GPU.
cdef enum:
    CPU = 1
    CUDA_HOST = 3
    ROCM_HOST = 11

DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA", 14: "oneAPI", 15: "WebGPU"}


# --- types of elements ---

cdef enum:
    INT, UINT, FLOAT, OPAQUE, BFLOAT, COMPLEX, BOOL  # as in DLPack
    CODES

# NumPy's type numbers by code and size; -1 where it has none, and for bfloat16 until the first array of it.
cdef int[CODES][SIZES] numbers
for _i in range(CODES * SIZES):
    numbers[_i // SIZES][_i % SIZES] = -1
for _code, _names in (
    (INT, ("int8", "int16", "int32", "int64")), (UINT, ("uint8", "uint16", "uint32", "uint64")), (BOOL, ("bool",)),
    (FLOAT, ("float16", "float32", "float64")), (COMPLEX, ("complex64", "complex128")),
):
    for _name in _names:
        numbers[<int>_code][<int>np.dtype(_name).itemsize] = np.dtype(_name).num

# The codes of the buffer protocol's formats.
cdef char NATIVE_ORDER = ord("<" if sys.byteorder == "little" else ">")
cdef dict codes = {
    **dict.fromkeys(b"bhilq", INT), **dict.fromkeys(b"BHILQ", UINT), **dict.fromkeys(b"efd", FLOAT), ord("?"): BOOL,
}


cdef int number_of(ElementType type) except -1:
    cdef int number = -1
    if type.lanes == 1 and type.code < CODES and type.bits % 8 == 0 and type.bits // 8 < SIZES:
        number = numbers[type.code][type.bits // 8]
        if number < 0 and type.code == BFLOAT and type.bits == 16:
            number = numbers[BFLOAT][2] = number_of_bfloat16()
    if number < 0:
        raise TypeError("NumPy has no such dtype")
    return number


cdef int number_of_bfloat16() except -1:
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise TypeError("bfloat16 needs ml_dtypes: pip install 'fastattn[bfloat16]'") from None
    return np.dtype(bfloat16).num


# --- DLPack ---

@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Lease:
    """The base of an array, which gives the memory back to its owner once the array is gone."""

    cdef Managed *managed
    cdef Unversioned *unversioned

    def __dealloc__(self):
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)
        if self.unversioned != NULL and self.unversioned.deleter != NULL:
            self.unversioned.deleter(self.unversioned)


cdef np.ndarray array(Lease lease, const Tensor *tensor, bint writable):
    cdef np.npy_intp[MOST_AXES] shape, strides
    cdef int i, number, itemsize = tensor.type.bits // 8
    cdef char *data = <char *>tensor.data
    cdef bint empty = False
    if tensor.device.type not in (CPU, CUDA_HOST, ROCM_HOST):
        raise BufferError(f"it is on a {DEVICES.get(tensor.device.type, 'foreign')} device, not in the CPU's memory")
    number = number_of(tensor.type)
    if not 0 <= tensor.ndim <= MOST_AXES:
        raise BufferError(f"it has {tensor.ndim} axes, and NumPy's arrays have at most {MOST_AXES}")
    for i in range(tensor.ndim):
        shape[i] = tensor.shape[i]
        empty = empty or shape[i] == 0
        if tensor.strides != NULL:
            strides[i] = tensor.strides[i] * itemsize
    if data != NULL:
        data += tensor.byte_offset
    elif not empty:
        raise BufferError("it has no memory")
    cdef np.ndarray a = new_array(
        <PyTypeObject *>np.ndarray, tensor.ndim, shape, number, NULL if tensor.strides == NULL else strides, data,
        itemsize, np.NPY_ARRAY_WRITEABLE if writable else 0, NULL,
    )
    np.set_array_base(a, lease)
    return a


cdef np.ndarray managed_array(Lease lease):
    cdef const Managed *managed = lease.managed
    if managed.version.major != MAJOR_VERSION:  # only its deleter is where it is in version 1
        raise BufferError(f"it has version {managed.version.major} of DLPack, and {MAJOR_VERSION} is known here")
    return array(lease, &managed.tensor, not managed.flags & (READ_ONLY | COPIED))


cdef np.ndarray from_table(object x, object table):
    """By the C functions of `__dlpack_c_exchange_api__`, an attribute of x's type."""
    cdef const Table *functions = <const Table *>PyCapsule_GetPointer(table, "dlpack_exchange_api")
    cdef Lease lease = Lease.__new__(Lease)
    while functions.version.major != MAJOR_VERSION:
        functions = functions.previous
        if functions == NULL:
            raise BufferError(f"its table of functions is not of version {MAJOR_VERSION} of DLPack")
    functions.export(<void *>x, &lease.managed)
    return managed_array(lease)


cdef np.ndarray from_capsule(object capsule):
    """By what `__dlpack__` returns; if that has no version, nothing says that the memory may be written."""
    cdef Lease lease = Lease.__new__(Lease)
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        lease.managed = <Managed *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        PyCapsule_SetName(capsule, "used_dltensor_versioned")
        return managed_array(lease)
    if PyCapsule_IsValid(capsule, "dltensor"):
        lease.unversioned = <Unversioned *>PyCapsule_GetPointer(capsule, "dltensor")
        PyCapsule_SetName(capsule, "used_dltensor")
        return array(lease, &lease.unversioned.tensor, False)
    raise BufferError("its __dlpack__ does not return a new DLPack capsule")


# --- the buffer protocol ---

@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Exported:
    """The base of an array in memory that the buffer protocol exports."""

    cdef Py_buffer buffer

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)


cdef np.ndarray from_buffer(object x):
    """By the buffer protocol; None if x does not have it, not on this device, or not for this type."""
    cdef Exported owner
    cdef Py_buffer *buffer
    cdef const char *format
    if not PyObject_CheckBuffer(x):
        return None
    owner = Exported.__new__(Exported)
    buffer = &owner.buffer
    try:
        PyObject_GetBuffer(x, buffer, PyBUF_RECORDS_RO)
    except BufferError:
        return None
    format = buffer.format
    if format != NULL and format[0] in (b"@", b"=", NATIVE_ORDER):
        format += 1
    code = codes.get(format[0]) if format != NULL and format[0] != 0 and format[1] == 0 else None
    if code is None or not 0 < buffer.itemsize < SIZES or numbers[<int>code][buffer.itemsize] < 0:
        return None
    cdef np.ndarray a = new_array(
        <PyTypeObject *>np.ndarray, buffer.ndim, <const np.npy_intp *>buffer.shape, numbers[<int>code][buffer.itemsize],
        <const np.npy_intp *>buffer.strides, buffer.buf, buffer.itemsize,
        0 if buffer.readonly else np.NPY_ARRAY_WRITEABLE, NULL,
    )
    np.set_array_base(a, owner)
    return a
