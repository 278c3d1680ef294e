"""Sentence encoders from a local folder, without a framework.

A map of the package, which is imported only when used:

sentence_encoder.py   SentenceEncoder: each method is a few calls of the modules below
cross_encoder.py      CrossEncoder: pairs of texts to scores
sparse_encoder.py     SparseEncoder: texts to weights of words
sparse_routes.py      how a sparse encoder encodes queries and documents: its modules
splade.py             hidden states to weights of words, in pieces
sparse_vectors.py     compressed rows
multi_vector_encoder.py   MultiVectorEncoder: texts to a vector for each token
multi_vector_files.py     its modules, lengths and marks, of sentence-transformers, PyLate and ColBERT
late_interaction.py   MaxSim
bge_m3.py             BGE-M3's heads in files of their own
pretrained.py         what these models share: from_pretrained, the sizes
backbone.py           Backbone: packed token ids to hidden states, without what follows them
folders.py            the files of a model's folder; the default folder
recognition.py        recognises folders that are not supported models, for error messages
architectures.py      the names of fields and tensors in each model_type, and the parts of its layers: one row each
configuration.py      config.json, checked
fields.py             checks of single fields of JSON files
positions.py          how layers attend, as config.json says it: rotary embedding, windows, ALiBi
modules.py            the files of sentence-transformers: modules, pooling
prompts.py            texts that are prepended, by their names
sentences.py          sentence_bert_config.json, checked: the maximum length, overrides of the other files
checkpoint.py         *.safetensors mapped into memory
parameters.py         tensors, checked and renamed for the layers
inputs.py             the only place that checks token ids and masks; packs them
tokens.py             texts to token ids
tokenizer_files.py    the files of a tokenizer, read as transformers reads them
tokenizer_classes.py  the parts of each tokenizer class: one row each
static.py             StaticEmbedding and Model2Vec: a table of embeddings in the place of a backbone
embeddings.py         token ids to rows: words, positions and token types, added and normalised
position_bias.py      relative position biases by distance, from those of buckets
packs.py              cuts texts into packs that go through the layers together
heads.py              heads of transformers' models: the names of their tensors, one row a model_type
pooling.py            the rows of a sequence to one embedding
pipeline.py           texts to embeddings, by the modules above; the options of a call, checked
batching.py           Batching: texts of many callers, packed together
precision.py          embeddings in 8 bits or 1 bit for each number
similarity.py         similarity of embeddings
units.py              embeddings of length 1
arrays.py             the only place that checks arrays of embeddings
float16.py            errors for overflow in float16
progress.py           the progress bar on standard error

A text passes tokens -> backbone (embeddings -> fastattn.nn.TransformerEncoder) -> pooling.
"""

try:
    import safetensors  # noqa: F401
    import tokenizers  # noqa: F401
except ImportError as error:
    raise ImportError(f"fastattn.models needs {error.name}: pip install 'fastattn[models]'") from error

from fastattn.models.batching import Batching
from fastattn.models.cross_encoder import CrossEncoder
from fastattn.models.folders import default_folder
from fastattn.models.multi_vector_encoder import MultiVectorEncoder
from fastattn.models.precision import quantize_embeddings
from fastattn.models.sentence_encoder import SentenceEncoder
from fastattn.models.sparse_encoder import SparseEncoder
from fastattn.models.sparse_vectors import SparseVectors

__all__ = [
    "Batching",
    "CrossEncoder",
    "MultiVectorEncoder",
    "SentenceEncoder",
    "SparseEncoder",
    "SparseVectors",
    "default_folder",
    "quantize_embeddings",
]
