from typing import Any

_C_API: Any  # the capsule that fastattn_import() of fastattn.h opens

#: Functions by name, in capsules: for numba.extending.get_cython_function_address.
__pyx_capi__: dict[str, Any]
