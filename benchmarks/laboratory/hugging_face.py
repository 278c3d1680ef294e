"""The cases of benchmarks/transformers_models.py: mid-size models of transformers with random weights.

A case is a forward pass over a batch, padded or not; a step of decoding after a prompt; or a whole generation. All
contenders have the same model and differ in its `attn_implementation`. Results are held to those of "sdpa" in float32.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from fastattn.commands.measuring.accuracy import Verdict
from laboratory import shared

#: The rival, PyTorch's own attention, which transformers uses by default.
RIVAL = "sdpa"

_DECODER = {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 8192, "eos_token_id": None,
    "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip

#: By name: class, and configuration.
MODELS = {
    "BERT": ("BertModel", {"vocab_size": 8192, "num_hidden_layers": 6, "max_position_embeddings": 512}),
    "Llama": ("LlamaForCausalLM", _DECODER),
    "Mistral": ("MistralForCausalLM", _DECODER | {"sliding_window": 512}),
}

#: By dtype, the allowed relative error, and that beyond which something else was computed.
ALLOWED = {"float32": 1e-4, "bfloat16": 0.1}
PLAUSIBLE = {"float32": 1e-2, "bfloat16": 0.5}


@dataclass(frozen=True)
class Case:
    """A model, what it does, and for how many sequences and tokens.

    Attributes
    ----------
    model : str
        A key of `MODELS`.
    does : {"prefill", "decode", "generate"}
        A pass over all tokens, with the logits of the last one if the model is a decoder; a step after so many tokens;
        or as many new tokens as the prompt has.
    batch, tokens : int
    padding : {"", "left", "right"}
        Where the sequences are padded, whose lengths go from a quarter of `tokens` to all of them.
    dtype : str
    """

    model: str
    does: str
    batch: int
    tokens: int
    padding: str = ""
    dtype: str = "float32"

    operation = "model"

    @property
    def name(self):
        """Unique among the cases."""
        return f"{self.model} {self.does} {self.shape}, {self.dtype}"

    @property
    def shape(self):
        """The shape for readers: 8×512, padded left."""
        return f"{self.batch}×{self.tokens}" + (f", padded {self.padding}" if self.padding else "")

    def inputs(self):
        """Token ids, and their mask if there is padding."""
        rng = np.random.default_rng(0)
        ids = rng.integers(2, 8192, (self.batch, self.tokens))
        if not self.padding:
            return {"input_ids": ids}
        lengths = np.linspace(self.tokens // 4, self.tokens, self.batch).astype(int)
        valid = np.arange(self.tokens) < lengths[:, None]
        valid = valid[:, ::-1] if self.padding == "left" else valid
        return {"input_ids": np.where(valid, ids, 0), "attention_mask": valid.astype(np.int64)}

    def verifier(self):
        """A function that compares a result with that of the rival in float32."""
        return lambda result: check(result, _expected(replace(self, dtype="float32")), self.dtype)


CASES = (
    Case("BERT", "prefill", 1, 128),
    Case("BERT", "prefill", 8, 128),
    Case("BERT", "prefill", 4, 512),
    Case("BERT", "prefill", 8, 512, "right"),
    Case("Llama", "prefill", 1, 512),
    Case("Llama", "prefill", 1, 2048),
    Case("Llama", "prefill", 1, 4096),
    Case("Llama", "prefill", 4, 1024, "left"),
    Case("Llama", "prefill", 4, 1024, "right"),
    Case("Llama", "prefill", 2, 4096, "left"),
    Case("Mistral", "prefill", 1, 4096),
    Case("Llama", "decode", 1, 256),
    Case("Llama", "decode", 1, 4096),
    Case("Llama", "decode", 8, 1024, "left"),
    Case("Llama", "generate", 1, 64),
    Case("Llama", "generate", 8, 64, "left"),
)


def check(result, expected, dtype):
    """The verdict on the relative error of logits or hidden states; token ids must be equal in float32."""
    if expected.dtype.kind == "i":
        different = float(np.mean(result != expected)) if dtype == "float32" else 0.0
        less_than_one = 0.5 / expected.size
        return Verdict(different, less_than_one, less_than_one)
    error = float(np.linalg.norm(result - expected) / np.linalg.norm(expected))
    return Verdict(error, ALLOWED[dtype], PLAUSIBLE[dtype])


@shared.cache
def _expected(case):
    call, fetch = build(RIVAL, case, case.inputs())
    return fetch(call())


@functools.lru_cache(maxsize=1)
def _model(name, dtype):
    import torch
    import transformers

    cls, options = MODELS[name]
    cls = getattr(transformers, cls)
    torch.manual_seed(0)
    return cls._from_config(cls.config_class(**options)).to(getattr(torch, dtype)).eval()


def build(attention, case, arrays):
    """The call of a case with an `attn_implementation`, and a function that makes an array of its result."""
    import torch

    model = _model(case.model, case.dtype)
    model.set_attn_implementation(attention)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    call = _CALLS[case.does](model, inputs, case)
    return torch.inference_mode()(call), _array


def _prefill(model, inputs, case):
    if case.model == "BERT":
        valid = inputs["attention_mask"].bool() if case.padding else ...
        return lambda: model(**inputs).last_hidden_state[valid]
    last = inputs["attention_mask"].sum(1) - 1 if case.padding == "right" else None
    if last is None:
        return lambda: model(**inputs, logits_to_keep=1).logits
    return lambda: model(**inputs, logits_to_keep=last.unique()).logits.diagonal(dim1=0, dim2=1)


def _decode(model, inputs, case):
    """A step after a prompt; the cache loses the token again, so that all steps are alike."""
    import torch

    with torch.inference_mode():
        cache = model(**inputs, logits_to_keep=1, use_cache=True).cache
    step = {"input_ids": inputs["input_ids"][:, -1:]}
    if case.padding:
        step["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        step["position_ids"] = inputs["attention_mask"].sum(1, keepdim=True)

    def call():
        logits = model(**step, cache=cache).logits
        cache.crop(-1)
        return logits

    return call


def _generate(model, inputs, case):
    settings = {"max_new_tokens": case.tokens, "min_new_tokens": case.tokens, "do_sample": False}
    return functools.partial(model.generate, **inputs, **settings)


_CALLS = {"prefill": _prefill, "decode": _decode, "generate": _generate}


def _array(result):
    return (result if math.prod(result.shape) and not result.is_floating_point() else result.float()).numpy()
