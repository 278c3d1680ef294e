"""The straightforward NumPy formulas; NumPy's BLAS takes its threads from the environment."""

import functools

from fastattn.commands.measuring import formulas
from fastattn.commands.measuring.cases import OPERATIONS


def start(threads):
    """Nothing is left to set."""


def _build(case, arguments):
    return functools.partial(getattr(formulas, case.operation), **arguments, **case.options), _same


def _same(result):
    return result


VARIANTS = {operation: {"formula": _build} for operation in OPERATIONS}
