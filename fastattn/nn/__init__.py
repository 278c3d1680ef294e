"""Layers of transformers: what a checkpoint holds, put around the package's operations. Imported only when used.

weights.py    quantize, QuantizedWeight; the entries of a state dict, checked and converted once
attention.py  MultiHeadAttention
encoder.py    TransformerEncoderLayer, TransformerEncoder

Every class is a container of NumPy arrays, made by its `from_state_dict` from the names that PyTorch's class of the
same name uses, and called with arrays. Nothing here trains, and nothing is drawn at random.
"""

from fastattn.nn.attention import MultiHeadAttention
from fastattn.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from fastattn.nn.weights import QuantizedWeight, quantize

__all__ = ["MultiHeadAttention", "QuantizedWeight", "TransformerEncoder", "TransformerEncoderLayer", "quantize"]
