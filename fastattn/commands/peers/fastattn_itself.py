"""The library itself."""

import functools

import fastattn
from fastattn.commands.cases import OPERATIONS


def start(threads):
    """Use so many threads."""
    fastattn.set_num_threads(threads)


def _build(case, arguments):
    call = functools.partial(getattr(fastattn, case.operation), **arguments, **case.options)
    return (functools.partial(call, out=call()) if case.out else call), _same


def _same(result):
    return result


VARIANTS = {operation: {operation: _build} for operation in OPERATIONS}
