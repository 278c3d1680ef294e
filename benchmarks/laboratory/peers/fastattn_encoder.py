"""The sentence encoder of the library itself."""

import functools

from fastattn.commands.measuring.peers.fastattn_itself import start
from fastattn.models import BertEncoder
from laboratory import encoder

__all__ = ["VARIANTS", "start"]


def _forward(case, arguments):
    return functools.partial(BertEncoder.from_pretrained(encoder.folder(), dtype=case.dtype), **arguments), _same


def _encode(case, arguments):
    model = BertEncoder.from_pretrained(encoder.folder(), dtype=case.dtype)
    return functools.partial(model.encode, arguments["texts"], normalize=True), _same


def _same(result):
    return result


VARIANTS = {"forward": {"BertEncoder": _forward}, "encode": {"BertEncoder": _encode}}
