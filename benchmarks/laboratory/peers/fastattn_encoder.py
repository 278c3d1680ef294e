"""The sentence encoder of the library itself."""

import functools

from fastattn.commands.measuring.peers.fastattn_itself import start
from fastattn.models import SentenceEncoder
from laboratory import encoder

__all__ = ["VARIANTS", "start"]


def _forward(case, arguments):
    return functools.partial(SentenceEncoder.from_pretrained(encoder.folder(), dtype=case.dtype), **arguments), _same


def _encode(case, arguments):
    model = SentenceEncoder.from_pretrained(encoder.folder(), dtype=case.dtype)
    return functools.partial(model.encode, arguments["texts"], normalize=True), _same


def _same(result):
    return result


VARIANTS = {"forward": {"SentenceEncoder": _forward}, "encode": {"SentenceEncoder": _encode}}
