"""Models of transformers with fastattn's attention."""

import functools

import fastattn
from fastattn.integrations.transformers import register
from laboratory import hugging_face
from laboratory.peers import pytorch

VARIANTS = {"model": {"fastattn": functools.partial(hugging_face.build, "fastattn")}}


def start(threads):
    """Set the number of threads of both libraries."""
    pytorch.start(threads)
    fastattn.set_num_threads(threads)
    register()
