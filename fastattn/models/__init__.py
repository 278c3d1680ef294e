"""Sentence encoders of the BERT family from a local folder, without a framework.

A map of the package, which is imported only when used:

bert.py               BertEncoder: each call is a few lines over the rooms below
folders.py            the files of a model's folder; the folder that serves when none is given
recognition.py        what a folder is, if no model that is read here: for messages, before any field is checked
architectures.py      what each model_type calls its fields and its tensors: a row for each
configuration.py      config.json, checked
modules.py            what sentence-transformers keeps beside a model: modules, pooling, prompt
sentences.py          sentence_bert_config.json, checked: the maximum length, changes of the other files
checkpoint.py         *.safetensors mapped into memory
parameters.py         tensors, checked, by the names that they have here
inputs.py             the only place that checks token ids and masks; from there on all is packed
tokens.py             texts to token ids
tokenizer_files.py    the files of a tokenizer, read as transformers reads them
tokenizer_classes.py  what each class of tokenizers is made of: a row for each
embeddings.py         token ids to rows: words, positions and token types, added and normalised
pooling.py            the rows of a sequence to one embedding
float16.py            an error where float16 would lose a sum
progress.py           the line on standard error while long work goes on

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
