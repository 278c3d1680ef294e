"""fastattn over Dask's collections: for arrays, or work, beyond one process.

attention.py  scaled_dot_product_attention, cut along batch, heads, queries and keys
softmax.py    softmax and log_softmax, also along a chunked axis
rows.py       layer_norm, rms_norm, linear
texts.py      encode: embeddings of a bag or series of texts
chunks.py     what these share: chunks, tasks, and the threads of a task

The functions build graphs and compute nothing. They check their arguments, as far as shapes and dtypes tell.

A task computes on one thread: a worker runs as many tasks at a time as it has threads (``nthreads``), so their sum is
what the worker was given. `num_threads` sets another number for each task, for workers with fewer threads than
processors. In the synchronous scheduler, a task uses as many threads as any call.
"""

from fastattn.integrations.dask.attention import scaled_dot_product_attention
from fastattn.integrations.dask.rows import layer_norm, linear, rms_norm
from fastattn.integrations.dask.softmax import log_softmax, softmax
from fastattn.integrations.dask.texts import encode

__all__ = ["encode", "layer_norm", "linear", "log_softmax", "rms_norm", "scaled_dot_product_attention", "softmax"]
