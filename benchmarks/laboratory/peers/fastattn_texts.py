"""Embedding and reranking by the library itself."""

import functools

from fastattn.commands.measuring.peers.fastattn_itself import start
from fastattn.models import CrossEncoder, SentenceEncoder
from laboratory import texts

__all__ = ["VARIANTS", "start"]


def _embed(case, arguments):
    model = SentenceEncoder.from_pretrained(texts.saved(case.model), dtype=case.dtype)
    return functools.partial(model.encode, *arguments), _same


def _rerank(case, arguments):
    model = CrossEncoder.from_pretrained(texts.saved(case.model), dtype=case.dtype)
    return functools.partial(model.predict, *arguments), _same


def _same(result):
    return result


VARIANTS = {"embed": {"SentenceEncoder": _embed}, "rerank": {"CrossEncoder": _rerank}}
