"""Sentence encoders of the BERT family from a local folder, without a framework.

A map of the package, which is imported only when used:

bert.py           BertEncoder: each call is a few lines over the rooms below
folders.py        the JSON files of a model's folder; the folder that serves when none is given
architectures.py  what each model_type calls its fields and its tensors: a row for each
configuration.py  config.json, judged
modules.py        what sentence-transformers keeps beside a model: maximum length, pooling, prompt
checkpoint.py     *.safetensors mapped into memory
parameters.py     tensors, judged, by the names that they have here
inputs.py         the only place that judges token ids and masks; from there on all is packed
tokens.py         texts to token ids
embeddings.py     token ids to rows: words, positions and token types, added and normalised
pooling.py        the rows of a sequence to one embedding
progress.py       the line on standard error while long work goes on

A text goes one way: tokens -> embeddings -> fastattn.nn.TransformerEncoder -> pooling.
"""

try:
    import safetensors  # noqa: F401
    import tokenizers  # noqa: F401
except ImportError as error:
    raise ImportError(f"fastattn.models needs {error.name}: pip install 'fastattn[models]'") from error

from fastattn.models.bert import BertEncoder
from fastattn.models.folders import default_folder

__all__ = ["BertEncoder", "default_folder"]
