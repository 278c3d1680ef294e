"""Embedding and reranking by sentence-transformers on PyTorch."""

from laboratory.peers.sentence_transformers_texts import start, variants

__all__ = ["VARIANTS", "start"]

VARIANTS = variants("torch")
