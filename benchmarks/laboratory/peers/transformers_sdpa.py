"""Models of transformers with PyTorch's attention."""

import functools

from laboratory import hugging_face
from laboratory.peers.pytorch import start

__all__ = ["VARIANTS", "start"]

VARIANTS = {"model": {"sdpa": functools.partial(hugging_face.build, "sdpa")}}
