"""Embedding and reranking by sentence-transformers on ONNX Runtime."""

from laboratory.peers.sentence_transformers_texts import start, variants

__all__ = ["VARIANTS", "start"]

VARIANTS = variants("onnx")
