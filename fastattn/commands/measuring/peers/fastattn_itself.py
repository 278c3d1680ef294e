"""The library itself."""

import functools

import numpy as np

import fastattn
from fastattn.commands.measuring.cases import OPERATIONS, QUANTISED
from fastattn.nn import quantize


def start(threads):
    """Set the number of threads."""
    fastattn.set_num_threads(threads)


def build(case, arguments):
    """The call as a user makes it; quantisation is done beforehand."""
    prepare = _from_cache if case.cached else _from_arrays
    call = prepare(case, **arguments)
    return (functools.partial(call, out=call()) if case.out else call), _same


def _from_arrays(case, **arguments):
    if case.operation in QUANTISED and case.kv_dtype == "int8" and isinstance(arguments["weight"], np.ndarray):
        arguments["weight"] = quantize(arguments["weight"])
    return functools.partial(getattr(fastattn, case.operation), **arguments, **case.options)


def _packed(case, arguments):
    """Linear as a model calls it, whose weights stay."""
    return build(case, arguments | {"weight": fastattn.pack(arguments["weight"], dtype=case.kv_dtype or None)})


def _from_cache(case, query, key, value, kv_lengths=None):
    """Attention to a cache, filled beforehand with the valid tokens of each sequence."""
    B, _, Hkv, _, Sk, D, Dv = case.sizes.values()
    cache = fastattn.KVCache(B, Hkv, Sk, D, dtype=case.kv_dtype or case.dtype, value_dim=Dv)
    cache.append(key, value, kv_lengths=kv_lengths)
    return functools.partial(cache.attend, query, **case.options)


def _same(result):
    return result


VARIANTS = {operation: {operation: build} for operation in OPERATIONS}
VARIANTS["linear"]["linear, packed"] = _packed
