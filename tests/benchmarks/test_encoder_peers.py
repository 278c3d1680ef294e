"""Other engines on the encoder of benchmarks/encoder.py: each runs what it is said to run, and means the same."""

import numpy as np
import pytest

from fastattn.commands.measuring import dtypes
from fastattn.commands.measuring.engines import Engine
from laboratory import encoder, startup
from laboratory.encoder import FEW, RUNS, Encode, Forward
from laboratory.peers import OTHERS, PEERS, exported

pytestmark = pytest.mark.slow


def needs(name):
    """Skip where an engine cannot be had."""
    if absent := PEERS[f"{name}-encoder"].absent:
        pytest.skip(f"{absent} not installed")


def test_transformers_mean_what_the_definition_says():
    needs("torch")
    import torch
    from transformers import BertModel

    ids = np.array([101, 1037, 2158, 2003, 2652, 1037, 2858, 1012, 102])
    model = BertModel.from_pretrained(encoder.folder(), dtype=torch.float64).eval()
    with torch.inference_mode():
        hidden = model(torch.from_numpy(ids[None])).last_hidden_state.numpy()
    assert encoder.check(hidden, [encoder.hidden_states(ids)], "float32").error < 1e-12


@pytest.mark.parametrize("name", ["fastattn", *OTHERS])
def test_installed_engines_run(monkeypatch, name):
    """Passes in every type; results of 8 bits may be further off than was asked of this library. And texts."""
    needs(name)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # PyTorch's compiler takes half a minute for each
    with Engine(f"{name}-encoder", 1) as engine:
        for dtype in dtypes.present(RUNS["forward"][name]):
            outcome = engine.prepare(Forward(1, 16, dtype))
            assert outcome.failure == ""
            assert outcome.kept or dtype == "int8"
            assert (outcome.error > 1e-3) == (dtype != "float32")
        if name in RUNS["encode"]:
            assert engine.prepare(Encode(FEW)).kept


def test_installed_engines_start():
    """And give the same embedding."""
    present = [name for name in startup.PROGRAMS if not PEERS[f"{name}-encoder"].absent]
    if not set(present) & {"onnxruntime", "openvino"}:
        pytest.skip("no engine that is given a graph is installed")
    starts = [startup.Start(name, "float32") for name in present]
    startup.measure(starts, exported.models(encoder.folder()), threads=1, rounds=1)
    assert [start.failure for start in starts] == [""] * len(starts)
    assert all(start.verdict.kept for start in starts)
