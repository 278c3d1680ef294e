"""Refuses subinterpreters, before any compiled module is loaded.

A compiled module belongs to the interpreter that loads it first: loaded in a subinterpreter, it would be missing in the
main one. NumPy does not support subinterpreters either.
"""

from __future__ import annotations

import ctypes  # which NumPy imports, too


def refuse_subinterpreters() -> None:
    """Raise an ImportError unless this is the main interpreter."""
    address = ctypes.PYFUNCTYPE(ctypes.c_void_p)
    current, main = (address((f"PyInterpreterState_{name}", ctypes.pythonapi))() for name in ("Get", "Main"))
    if current != main:
        raise ImportError("fastattn cannot be imported in a subinterpreter: use threads or processes")
