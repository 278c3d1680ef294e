"""The sentence encoder as files for other engines: ``python exported.py MODEL TARGET``.

PyTorch writes them, in a process of its own so that it is not loaded in theirs: `eager.onnx` and `sdpa.onnx`, by the
two implementations of attention in transformers; `fused.onnx`, the first one with subgraphs replaced by ONNX Runtime's
own operators; and `converted.xml`, converted by OpenVINO itself from the PyTorch model.
"""

import functools
import subprocess
import sys
import warnings
from importlib import util
from pathlib import Path

#: The operators that the optimizer must find, for six layers.
FUSED = {"EmbedLayerNormalization": 1, "Attention": 6, "BiasGelu": 6, "SkipLayerNormalization": 12}


def models(folder):
    """The path of a directory with the files, which a run's processes share."""
    from laboratory import shared  # not found by the process that exports

    return shared.made("models", functools.partial(_start, folder))


def _start(folder, target):
    """Write the files into a new directory, in another process."""
    target.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-P", __file__, str(folder), str(target)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the export failed: {done.stderr.splitlines()[-1:]}")


def export(folder, target):
    """Write the files; only those of ONNX if OpenVINO is not installed."""
    for attention in ("eager", "sdpa"):
        _write(_model(folder, attention), Path(target, f"{attention}.onnx"))
    _fuse(Path(target, "eager.onnx"), Path(target, "fused.onnx"))
    if util.find_spec("openvino"):
        _convert(_model(folder, "sdpa"), Path(target, "converted.xml"))


def _model(folder, attention):
    """A module from token ids to the last hidden state only."""
    import torch
    from transformers import BertModel

    class LastHiddenState(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = BertModel.from_pretrained(folder, attn_implementation=attention, add_pooling_layer=False)

        def forward(self, input_ids, attention_mask, token_type_ids):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return self.model(**inputs).last_hidden_state

    return LastHiddenState().eval()


def _inputs():
    """Example inputs, by name."""
    import torch

    ids = torch.ones(2, 8, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": ids, "token_type_ids": torch.zeros_like(ids)}


def _write(model, path):
    import torch

    inputs = _inputs()
    with warnings.catch_warnings():
        # The optimizer knows the graphs of this older exporter.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            path,
            dynamo=False,
            input_names=list(inputs),
            output_names=["hidden"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*inputs, "hidden")},
        )


def _fuse(path, target):
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(str(path), model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
    found = fused.get_fused_operator_statistics()
    if any(found[name] != count for name, count in FUSED.items()):
        raise RuntimeError(f"the optimizer did not find all of {FUSED}: {found}")
    fused.save_model_to_file(str(target))


def _convert(model, path):
    import openvino
    import torch

    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=_inputs())
    openvino.save_model(converted, path, compress_to_fp16=False)


if __name__ == "__main__":
    export(*sys.argv[1:])
