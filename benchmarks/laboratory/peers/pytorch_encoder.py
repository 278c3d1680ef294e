"""The sentence encoder on PyTorch: transformers' BertModel, and sentence-transformers around it."""

import functools

import torch
from transformers import BertModel

from laboratory import encoder
from laboratory.peers import Unsuitable
from laboratory.peers.pytorch import start

__all__ = ["VARIANTS", "start"]


def _dtype(case):
    if case.dtype == "int8":
        raise Unsuitable("no int8")
    return getattr(torch, case.dtype)


def _forward(attention, prepared=lambda model: model):
    def build(case, arguments):
        folder = encoder.folder()
        model = BertModel.from_pretrained(folder, attn_implementation=attention, dtype=_dtype(case)).eval()
        forward = torch.inference_mode()(prepared(model))  # transformers leaves the mode that `start` set
        call = functools.partial(forward, **{name: torch.from_numpy(array) for name, array in arguments.items()})
        return call, lambda result: result.last_hidden_state.float().numpy()

    return build


def _sentence_transformers(batch_size):
    def build(case, arguments):
        from sentence_transformers import SentenceTransformer

        settings = {"dtype": _dtype(case), "attn_implementation": "sdpa"}
        model = SentenceTransformer(str(encoder.folder()), device="cpu", model_kwargs=settings)
        call = functools.partial(
            model.encode,
            arguments["texts"],
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return call, lambda result: result

    return build


VARIANTS = {
    "forward": {
        "sdpa": _forward("sdpa"),
        "eager": _forward("eager"),
        "compiled": _forward("sdpa", functools.partial(torch.compile, dynamic=False)),
    },
    "encode": {f"batches of {size}": _sentence_transformers(size) for size in (16, 32, 64)},
}
