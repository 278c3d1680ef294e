"""What a failure was about, where the arrays themselves do not say it."""

import contextlib


@contextlib.contextmanager
def telling(**facts):
    """Let an assertion that fails within say these facts as well."""
    try:
        yield
    except AssertionError as error:
        error.add_note("with " + ", ".join(f"{name} {_said(fact)}" for name, fact in facts.items()))
        raise


def _said(fact):
    """Arrays by their type and shape."""
    if isinstance(fact, dict):
        return "{" + ", ".join(f"{name}: {_said(part)}" for name, part in fact.items()) + "}"
    if isinstance(fact, tuple) and not hasattr(fact, "_fields"):
        return "(" + ", ".join(map(_said, fact)) + ")"
    return f"{fact.dtype.name}{fact.shape}" if getattr(fact, "ndim", 0) else str(fact)
