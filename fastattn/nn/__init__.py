"""Transformer layers: the package's operations with the weights of a checkpoint. Imported only when used.

weights.py    the entries of a state dict, checked, converted and packed once
attention.py  MultiHeadAttention
encoder.py    TransformerEncoderLayer, TransformerEncoder

Every class holds NumPy arrays, is made by its `from_state_dict` from the state dict of PyTorch's class of the same
name, and is called with arrays. Inference only: no training, no random initialisation.
"""

from fastattn.nn.attention import MultiHeadAttention
from fastattn.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from fastattn.weights import QuantizedWeight, quantize

__all__ = ["MultiHeadAttention", "QuantizedWeight", "TransformerEncoder", "TransformerEncoderLayer", "quantize"]
