"""Arrays of no library: each offers its memory in one of the ways in which libraries do.

The structs are those of dlpack.h, made with ctypes.
"""

import array
import ctypes

CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
CPU, CUDA, CUDA_HOST = 1, 2, 3
READ_ONLY, COPIED = 1, 2

PyCapsule_New = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
PyCapsule_GetName = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Unversioned(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


class Table(ctypes.Structure):
    """The beginning of DLPackExchangeAPI."""


Table._fields_ = (
    ("major", ctypes.c_uint32),
    ("minor", ctypes.c_uint32),
    ("previous", ctypes.POINTER(Table)),
    ("allocate", ctypes.c_void_p),
    ("export", ctypes.c_void_p),
)

# What is lent and not given back yet, by address.
LENT = {}


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def give_back(address):
    del LENT[address]


def tensor(x, *, device=CPU, code=None, bits=None, lanes=1, shift=0, strided=True, data=True):
    """A DLTensor of an array, whose memory begins `shift` bytes before its first element, and what it refers to."""
    shape = (ctypes.c_int64 * max(x.ndim, 1))(*x.shape)
    strides = (ctypes.c_int64 * max(x.ndim, 1))(*(step // x.itemsize for step in x.strides))
    code = CODES.get(x.dtype.kind, 4) if code is None else code  # bfloat16 is of another kind
    described = Tensor(
        x.ctypes.data - shift if data else None, device, 0, x.ndim, code, bits or 8 * x.itemsize, lanes, shape,
        strides if strided else None, shift,
    )  # fmt: skip
    return described, (x, shape, strides)


def lend(kind, **fields):
    """A new struct, until it is given back."""
    owned = fields.pop("owned")
    lent = kind(**fields, deleter=ctypes.cast(give_back, ctypes.c_void_p))
    LENT[ctypes.addressof(lent)] = lent, owned
    return ctypes.addressof(lent)


def versioned(x, flags=0, major=1, **fields):
    """The address of a DLManagedTensorVersioned."""
    flags |= 0 if x.flags.writeable else READ_ONLY
    described, owned = tensor(x, **fields)
    return lend(Versioned, tensor=described, major=major, minor=3, flags=flags, owned=owned)


class Foreign:
    """An array that is none of NumPy's."""

    def __init__(self, x, **fields):
        self.x, self.fields = x, fields


class WithCapsule(Foreign):
    """With versions of DLPack."""

    def __dlpack__(self, *, stream=None, max_version=None):
        assert max_version >= (1, 0)
        return PyCapsule_New(versioned(self.x, **self.fields), b"dltensor_versioned", None)


class WithOldCapsule(Foreign):
    """Before there were versions."""

    def __dlpack__(self, *, stream=None):
        described, owned = tensor(self.x, **self.fields)
        return PyCapsule_New(lend(Unversioned, tensor=described, owned=owned), b"dltensor", None)


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
def export(x, out):
    out[0] = versioned(x.x, **x.fields)
    return 0


TABLE = Table(1, 3, None, None, ctypes.cast(export, ctypes.c_void_p))
LATER_TABLE = Table(2, 0, ctypes.pointer(TABLE), None, None)
UNKNOWN_TABLE = Table(2, 0, None, None, None)


def capsule_of(table):
    return PyCapsule_New(ctypes.addressof(table), b"dlpack_exchange_api", None)


class WithTable(WithCapsule):
    """With C functions, which are used before the capsule."""

    __dlpack_c_exchange_api__ = capsule_of(TABLE)

    def __dlpack__(self, **_):
        raise AssertionError("the table is faster")


class WithLaterTable(WithTable):
    """Whose functions of version 1 are the second choice."""

    __dlpack_c_exchange_api__ = capsule_of(LATER_TABLE)


class WithUnknownTable(WithTable):
    __dlpack_c_exchange_api__ = capsule_of(UNKNOWN_TABLE)


class WithArray(Foreign):
    """With NumPy's own protocol."""

    def __array__(self, dtype=None, copy=None):
        return self.x.view()


class Buffer(array.array):
    """With Python's buffer protocol, of one axis."""

    def __new__(cls, x):
        self = super().__new__(cls, x.dtype.char, x.tobytes())
        self.dtype = x.dtype
        return self

    def __array__(self):
        raise AssertionError("the buffer is faster")


KINDS = (WithCapsule, WithOldCapsule, WithTable, WithLaterTable, WithArray)
WRITABLE = (WithCapsule, WithTable, WithLaterTable, WithArray)
