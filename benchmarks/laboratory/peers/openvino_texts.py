"""Embedding and reranking by sentence-transformers on OpenVINO."""

from laboratory.peers.sentence_transformers_texts import start, variants

__all__ = ["VARIANTS", "start"]

VARIANTS = variants("openvino")
