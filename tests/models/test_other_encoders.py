"""CrossEncoder, SparseEncoder and MultiVectorEncoder against sentence-transformers, on small random models."""

import json
import os
import string

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # what is on this machine is enough

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peers = pytest.importorskip("sentence_transformers", minversion="6")

from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from fastattn.models import CrossEncoder, MultiVectorEncoder, SparseEncoder
from fastattn.models.architectures import ARCHITECTURES
from support import encoders
from support.encoders import write_json

TEXTS = [*encoders.TEXTS, "bbbb bbbb, so. " * 2]
PAIRS = [(a, b) for a in TEXTS[:5] for b in TEXTS]

_COMMON = {"vocab_size": 62, "max_position_embeddings": 80}
_BERT = _COMMON | {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENDS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "Bert": _BERT | {"type_vocab_size": 2},
    "Camembert": _BERT | {"type_vocab_size": 1, "pad_token_id": 1},
    "DistilBert": _COMMON | {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 4},
    "Electra": _BERT | {"embedding_size": 32},
    "ModernBert": _BERT | _ENDS | {"local_attention": 8, "global_attn_every_n_layers": 2},
    "Roberta": _BERT | {"type_vocab_size": 1, "pad_token_id": 1},
    "XLMRoberta": _BERT | {"type_vocab_size": 1, "pad_token_id": 1},
}
# Those that models read.
KNOWN = [name for name in MODELS if getattr(transformers, f"{name}Config").model_type in ARCHITECTURES]
MARKS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "x"}


def saved(folder, name, head, config=None, **tokenizer):
    """A random model of transformers and its tokenizer."""
    torch.manual_seed(0)
    peer = getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**MODELS[name], **(config or {})))
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    peer.save_pretrained(folder)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=encoders.tokenizer(peer.config.pad_token_id), model_max_length=40, **MARKS, **tokenizer
    )
    made.save_pretrained(folder)
    return folder


def changed(path, **fields):
    write_json(path.parent, {path.name: json.loads(path.read_text(encoding="utf-8")) | fields})


# Cross-encoders


def assert_scored_alike(folder, **options):
    peer, model = peers.CrossEncoder(str(folder), device="cpu"), CrossEncoder.from_pretrained(folder)
    expected = peer.predict(PAIRS, **options)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(model.predict(PAIRS, **options), expected, rtol=0, atol=1e-5)
    assert model.max_length == peer.max_seq_length
    return peer, model


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("labels", [1, 3])
def test_classifiers(tmp_path, name, labels):
    folder = saved(tmp_path / "peer", name, "ForSequenceClassification", {"num_labels": labels})
    peer, model = assert_scored_alike(folder)
    assert list(model.labels) == list(peer.config.id2label.values())
    peer.save_pretrained(str(tmp_path / "whole"))
    assert_scored_alike(tmp_path / "whole")
    if labels > 1:
        assert_scored_alike(folder, apply_softmax=True)


def test_default_of_two_labels(tmp_path):
    """Which config.json does not name."""
    folder = saved(tmp_path, "Bert", "ForSequenceClassification", {"num_labels": 2})
    assert "id2label" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert assert_scored_alike(folder)[1].labels == ("LABEL_0", "LABEL_1")


@pytest.mark.skipif("ModernBert" not in KNOWN, reason="ModernBERT is not read")
@pytest.mark.parametrize("fields", [
    {"classifier_pooling": "mean"}, {"classifier_bias": True, "norm_bias": True}, {"classifier_activation": "relu"},
], ids=lambda fields: next(iter(fields)))  # fmt: skip
def test_heads_of_modernbert(tmp_path, fields):
    assert_scored_alike(saved(tmp_path, "ModernBert", "ForSequenceClassification", {"num_labels": 1} | fields))


def test_token_types_of_pairs(tmp_path):
    folder = saved(tmp_path, "Bert", "ForSequenceClassification", {"num_labels": 1})
    plain = CrossEncoder.from_pretrained(folder).predict(PAIRS)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    changed(folder / "tokenizer_config.json", model_input_names=names)
    assert np.abs(assert_scored_alike(folder)[1].predict(PAIRS) - plain).max() > 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_of_pairs(tmp_path, side):
    """Of all lengths around the maximum."""
    folder = saved(tmp_path, "Roberta", "ForSequenceClassification", {"num_labels": 1}, truncation_side=side)
    pairs = [("abcdefghij" * 5)[:i] for i in range(0, 45, 4)]
    pairs = [(a, b[::-1]) for a in pairs for b in pairs]
    peer, model = peers.CrossEncoder(str(folder), device="cpu"), CrossEncoder.from_pretrained(folder)
    np.testing.assert_allclose(model.predict(pairs), peer.predict(pairs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Identity", "ReLU", "Sigmoid", "Tanh", "Softmax"])
def test_activations(tmp_path, name):
    folder = saved(tmp_path / "peer", "Bert", "ForSequenceClassification", {"num_labels": 3})
    activation = getattr(torch.nn, name)(*[-1] * (name == "Softmax"))
    peers.CrossEncoder(str(folder), activation_fn=activation, device="cpu").save_pretrained(str(tmp_path / "whole"))
    assert_scored_alike(tmp_path / "whole")


def test_prompts_and_ranks(tmp_path):
    folder = saved(tmp_path / "peer", "Bert", "ForSequenceClassification", {"num_labels": 1})
    prompts = {"prompts": {"ask": "is it "}, "default_prompt_name": "ask"}
    peers.CrossEncoder(str(folder), device="cpu", **prompts).save_pretrained(str(tmp_path / "whole"))
    peer, model = assert_scored_alike(tmp_path / "whole")
    assert_scored_alike(tmp_path / "whole", prompt="")
    for options in ({}, {"top_k": 3, "return_documents": True}, {"prompt": "no "}):
        ranked, expected = (x.rank(TEXTS[0], TEXTS, **options) for x in (model, peer))
        assert [row.keys() for row in ranked] == [row.keys() for row in expected]
        scores = [[row["score"] for row in rows] for rows in (ranked, expected)]
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


# Sparse encoders


def assert_sparse_alike(folder):
    peer, model = peers.SparseEncoder(str(folder), device="cpu"), SparseEncoder.from_pretrained(folder)
    assert model.max_length == peer.max_seq_length
    for method in ("encode", "encode_query", "encode_document"):
        expected = getattr(peer, method)(TEXTS)
        found = getattr(model, method)(TEXTS)
        assert found.shape == expected.shape
        assert expected.to_dense().max() > 0.1
        np.testing.assert_allclose(found.toarray(), expected.to_dense().numpy(), rtol=1e-6, atol=1e-5)
        few, likewise = (getattr(x, method)(TEXTS, max_active_dims=4) for x in (model, peer))
        np.testing.assert_allclose(few.toarray(), likewise.to_dense().numpy(), rtol=1e-6, atol=1e-5)
        scores, likewise = model.similarity(found, found), peer.similarity(expected, expected)
        np.testing.assert_allclose(scores, likewise.numpy(), rtol=1e-5, atol=1e-5)
    words, likewise = (x.decode(y, top_k=1) for x, y in ((model, found), (peer, expected)))
    assert [[word for word, _ in row] for row in words] == [[word for word, _ in row] for row in likewise]


@pytest.mark.parametrize("name", KNOWN)
def test_masked_language_models(tmp_path, name):
    folder = saved(tmp_path / "peer", name, "ForMaskedLM")
    assert_sparse_alike(folder)
    peers.SparseEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "whole"))
    assert_sparse_alike(tmp_path / "whole")


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Roberta"])
def test_heads_of_their_own(tmp_path, name):
    """Whose weight is not that of the embeddings."""
    assert_sparse_alike(saved(tmp_path, name, "ForMaskedLM", {"tie_word_embeddings": False}))


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_splade_pooling(tmp_path, strategy, activation):
    folder = saved(tmp_path / "peer", "DistilBert", "ForMaskedLM")
    modules = [Transformer(str(folder), transformer_task="fill-mask"), SpladePooling(strategy, activation)]
    options = {"prompts": {"query": "ask: "}, "similarity_fn_name": "cosine", "max_active_dims": 9}
    peers.SparseEncoder(modules=modules, device="cpu", **options).save_pretrained(str(tmp_path / "whole"))
    assert_sparse_alike(tmp_path / "whole")


def test_queries_without_a_model(tmp_path):
    first = Transformer(str(saved(tmp_path / "peer", "DistilBert", "ForMaskedLM")), transformer_task="fill-mask")
    static = SparseStaticEmbedding(first.tokenizer, weight=torch.rand(62) + 0.1)
    router = Router.for_query_document([static], [first, SpladePooling("max")])
    peers.SparseEncoder(modules=[router], device="cpu").save_pretrained(str(tmp_path / "whole"))
    assert_sparse_alike(tmp_path / "whole")


# Encoders with a vector for each token


def assert_vectors_alike(folder):
    peer, model = peers.MultiVectorEncoder(str(folder), device="cpu"), MultiVectorEncoder.from_pretrained(folder)
    found, expected = {}, {}
    for method in ("encode", "encode_query", "encode_document"):
        found[method] = getattr(model, method)(TEXTS)
        expected[method] = getattr(peer, method)(TEXTS, convert_to_numpy=True)
        assert [x.shape for x in found[method]] == [x.shape for x in expected[method]]
        for x, y in zip(found[method], expected[method], strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
    assert model.similarity_fn_name == peer.similarity_fn_name
    for name in ("similarity", "similarity_pairwise"):
        scores, likewise = (
            getattr(x, name)(y["encode_query"], y["encode_document"]) for x, y in ((model, found), (peer, expected))
        )
        np.testing.assert_allclose(scores, likewise.numpy(), rtol=1e-6, atol=1e-5)
    return model


def dense(columns=48, rows=16, **options):
    return Dense(columns, rows, bias=False, activation_function=None, module_input_name="token_embeddings", **options)


EXPANSIONS = {
    "none": {"query_length": 11, "document_length": 25},
    "fixed": {"query_expansion": {"strategy": "fixed", "length": 32}},
    "attended": {"query_expansion": {"strategy": "fixed", "length": 20, "attend": True, "token": "b"}},
    "at least": {"query_expansion": {"strategy": "min", "length": 20}, "query_length": 30},
}


@pytest.mark.parametrize("name", [name for name in KNOWN if name in ("Bert", "DistilBert", "ModernBert", "Roberta")])
@pytest.mark.parametrize("lengths", EXPANSIONS.values(), ids=EXPANSIONS)
def test_expansion_of_queries(tmp_path, name, lengths):
    first = Transformer(str(saved(tmp_path / "peer", name, "Model")), **lengths)
    modules = [first, dense(), MultiVectorMask(), Normalize("token_embeddings")]
    prompts = {"query": "ask: ", "document": "D"}
    peers.MultiVectorEncoder(modules=modules, device="cpu", prompts=prompts).save_pretrained(str(tmp_path / "whole"))
    assert_vectors_alike(tmp_path / "whole")


MASKS = {
    "punctuation": {"skiplist_words": list(string.punctuation)},
    "of queries": {"skiplist_words": [".", "a"], "skiplist_tasks": ["query"]},
    "only some": {"keep_only_token_ids": [4, 5, 6]},  # leaves some documents without vectors
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_dropped_vectors(tmp_path, mask):
    first = Transformer(str(saved(tmp_path / "peer", "Bert", "Model")))
    modules = [first, dense(), dense(16, 20), Normalize("token_embeddings"), MultiVectorMask(**mask)]
    peer = peers.MultiVectorEncoder(modules=modules, device="cpu", similarity_fn_name="meanmaxsim")
    peer.save_pretrained(str(tmp_path / "whole"))
    assert assert_vectors_alike(tmp_path / "whole").embedding_size == 20


@pytest.mark.parametrize("fields", [
    {"query_prefix": "[UNK] ", "document_prefix": "[D] ", "query_length": 19, "document_length": 30},
    {"query_prefix": "[UNK] ", "skiplist_words": ["a"], "attend_to_expansion_tokens": True, "query_length": 14},
    {"do_query_expansion": False, "query_length": 14, "prompts": {"query": "ask: "}, "query_prefix": "é "},
    {},
], ids=["not attended", "attended", "not expanded", "nothing"])  # fmt: skip
def test_folders_of_pylate(tmp_path, fields):
    peer = peers.MultiVectorEncoder(modules=[Transformer(str(saved(tmp_path / "p", "Bert", "Model"))), dense()])
    folder = tmp_path / "whole"
    peer.save_pretrained(str(folder))
    rows = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    rows[1]["type"] = "pylate.models.Dense.Dense"
    config = json.loads((folder / "1_Dense" / "config.json").read_text(encoding="utf-8"))
    old = {name: x for name, x in config.items() if not name.startswith("module_")}
    write_json(folder, {
        "modules.json": rows,
        "1_Dense/config.json": old,
        "config_sentence_transformers.json": {"model_type": "ColBERT", "similarity_fn_name": "MaxSim"} | fields,
        "sentence_bert_config.json": {"max_seq_length": 35},
    })  # fmt: skip
    assert_vectors_alike(folder)


@pytest.mark.parametrize("metadata", [
    None,
    {"query_token_id": "[UNK]", "doc_token_id": "é", "query_maxlen": 24, "doc_maxlen": 30},
    {"attend_to_mask_tokens": True, "mask_punctuation": False},
], ids=["none", "lengths", "attended"])  # fmt: skip
def test_folders_of_colbert(tmp_path, metadata):
    folder = saved(tmp_path, "Bert", "Model")
    tensors = load_file(folder / "model.safetensors")
    weight = torch.randn(16, 48)
    save_file(tensors | {"linear.weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})
    changed(folder / "config.json", architectures=["HF_ColBERT"])
    if metadata is not None:
        write_json(folder, {"artifact.metadata": metadata})
    assert assert_vectors_alike(folder).embedding_size == 16
