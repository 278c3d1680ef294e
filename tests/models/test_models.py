"""Sentence encoders: small random ones of every architecture against their definition, and what is refused."""

import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from fastattn.models import SentenceEncoder
from fastattn.models.backbone import ACTIVATIONS
from support import encoders
from support.encoders import (
    CHARACTERS,
    CONFIGURATIONS,
    IDENTITY,
    TANH,
    TEXTS,
    add_dense,
    modules,
    random_encoder,
    safetensors_bytes,
    save_shards,
    stored_as,
)
from support.processes import output

ARCHITECTURES = tuple(CONFIGURATIONS)
COUNTING = ("roberta", "xlm-roberta", "camembert", "mpnet")

# The largest error of a row of hidden states, relative to its length. What 16 and 8 bits cost in so narrow a model is
# measured; on trained weights test_transformers.py asks for more.
ALLOWED = {"float32": 2e-6, "float16": 5e-3, "bfloat16": 4e-2, "int8": 0.1}
# Of a row of attention weights, which have the absolute error of their scores. MPNet's last layer: 0.063 on AMX and
# 0.055 with dot products of bfloat16, which take rounded weights of the layer before; 0.038 without.
ALLOWED_WEIGHTS = ALLOWED | {"bfloat16": 8e-2}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def encoder(request):
    return random_encoder(request.param)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    return encoder.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return SentenceEncoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """(the definition, its folder) of one architecture, where the others would tell nothing new."""
    encoder = random_encoder("bert")
    return encoder, encoder.save(tmp_path_factory.mktemp("bert"))


def random_batch(rng, encoder, batch=5, length=23):
    """Token ids with padding tokens among them, a mask with holes, token types."""
    ids = rng.integers(0, encoder.config["vocab_size"], (batch, length))
    ids[rng.random(ids.shape) < 0.1] = encoder.padding_id
    types = rng.integers(0, encoder.config.get("type_vocab_size", 1), ids.shape)
    return ids, rng.random(ids.shape) < 0.7, types


def assert_close(result, expected, dtype="float32", allowed=ALLOWED):
    """Row by row."""
    assert result.dtype == np.float32
    assert result.shape == np.shape(expected)
    error = np.linalg.norm(result - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.max(error, initial=0) <= allowed[dtype]


def definition(encoder, ids, mask, types=None):
    """Hidden states of a padded batch, zeros where nothing is kept."""
    expected = np.zeros((*ids.shape, encoder.tensors["embeddings.LayerNorm.weight"].size))
    for i, kept in enumerate(mask):
        if kept.any():
            expected[i, kept] = encoder.hidden_states(ids[i], kept, None if types is None else types[i])
    return expected


def assert_hidden_states(encoder, model, ids, mask, types):
    result, expected = model(ids, mask, types), definition(encoder, ids, mask, types)
    assert_close(result[mask], expected[mask], model.dtype)
    assert not result[~mask].any()


# Hidden states


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_hidden_states(rng, encoder, folder, dtype):
    """Masks with holes, padding tokens within the mask and without, token types."""
    model = SentenceEncoder.from_pretrained(folder, dtype)
    assert model.dtype == dtype
    ids, mask, types = random_batch(rng, encoder)
    mask[3] = False  # nothing at all
    mask[4] = True
    assert_hidden_states(encoder, model, ids, mask, types)


@pytest.mark.parametrize("activation", encoders.ACTIVATIONS)
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_activations(rng, tmp_path, model_type, activation):
    field = "activation" if model_type == "distilbert" else "hidden_act"
    encoder = random_encoder(model_type, **{field: activation})
    model = SentenceEncoder.from_pretrained(encoder.save(tmp_path))
    assert_hidden_states(encoder, model, *random_batch(rng, encoder))


SIZES = [
    {"hidden_size": 5, "num_attention_heads": 1, "intermediate_size": 1, "num_hidden_layers": 1},
    {"hidden_size": 64, "num_attention_heads": 64, "intermediate_size": 7, "num_hidden_layers": 3},
    {"hidden_size": 130, "num_attention_heads": 2, "intermediate_size": 257, "num_hidden_layers": 1},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{sizes['hidden_size']}/{sizes['num_attention_heads']}")
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_sizes(rng, tmp_path, dtype, sizes):
    encoder = random_encoder("bert", **sizes)
    model = SentenceEncoder.from_pretrained(encoder.save(tmp_path), dtype)
    assert (model.hidden_size, model.embedding_size) == (sizes["hidden_size"],) * 2
    assert (model.num_layers, model.num_heads) == (sizes["num_hidden_layers"], sizes["num_attention_heads"])
    assert_hidden_states(encoder, model, *random_batch(rng, encoder))


def test_defaults(rng, encoder, model):
    """Without a mask all are tokens; without types all are of type 0."""
    ids, _, _ = random_batch(rng, encoder)
    everything = np.ones(ids.shape, bool)
    expected = model(ids, everything, np.zeros_like(ids))
    np.testing.assert_array_equal(model(ids), expected)
    assert_close(expected, definition(encoder, ids, everything))


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint16, np.int64, list], ids=lambda kind: kind.__name__)
def test_kinds_of_arguments(rng, encoder, model, kind):
    ids, mask, types = random_batch(rng, encoder)
    expected = model(ids, mask, types)
    if kind is list:
        arguments = (x.astype(int).tolist() for x in (ids, mask, types))
    else:
        integer = np.int32 if kind is bool else kind
        arguments = ids.astype(integer), mask.astype(kind), types.astype(integer)
    np.testing.assert_array_equal(model(*arguments), expected)


def test_memory_orders(rng, encoder, model):
    ids, mask, types = random_batch(rng, encoder)
    expected = model(ids, mask, types)
    for reorder in (np.asfortranarray, lambda x: x[::-1, ::-1].copy()[::-1, ::-1]):
        arguments = [reorder(x) for x in (ids, mask, types)]
        for x in arguments:
            x.setflags(write=False)
        np.testing.assert_array_equal(model(*arguments), expected)


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (3, 0)], ids=str)
def test_nothing_to_do(model, shape):
    nothing = np.zeros(shape, int)
    for mask in (None, nothing):
        result = model(nothing, mask)
        assert result.shape == (*shape, 24)
        assert result.dtype == np.float32


@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_a_sequence_does_not_depend_on_others_or_threads(rng, encoder, folder, dtype):
    model = SentenceEncoder.from_pretrained(folder, dtype)
    ids, mask, types = random_batch(rng, encoder, batch=20)
    expected = model(ids, mask, types)
    np.testing.assert_array_equal(model(ids, mask, types, num_threads=1), expected)
    for i in range(0, 20, 7):
        np.testing.assert_array_equal(model(ids[[i]], mask[[i]], types[[i]])[0], expected[i])


def test_what_is_masked_is_not_looked_at(rng, encoder, model):
    ids, mask, types = random_batch(rng, encoder)
    ids[ids == encoder.padding_id] += 1  # nor do positions change then
    expected = model(ids, mask, types)
    ids[~mask], types[~mask] = -7, 10**9
    np.testing.assert_array_equal(model(ids, mask, types), expected)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_padding_before_a_sequence(rng, tmp_path, model_type):
    """It shifts positions where they count columns, and does not where they count tokens."""
    encoder = random_encoder(model_type)
    model = SentenceEncoder.from_pretrained(encoder.save(tmp_path))
    ids = rng.integers(4, encoder.config["vocab_size"], (1, 9))
    padded = np.concatenate([np.full((1, 5), encoder.padding_id), ids], axis=1)
    result = model(padded, padded != encoder.padding_id)[:, 5:]
    assert np.array_equal(result, model(ids)) == (model_type in COUNTING)
    assert_close(result[0], encoder.hidden_states(padded[0], padded[0] != encoder.padding_id))


# Embeddings


def mean(x):
    return x.mean(axis=0)


def weighted_mean(x):
    return np.average(x, axis=0, weights=np.arange(1, len(x) + 1))


POOLED = {
    "cls": lambda x: x[0],
    "lasttoken": lambda x: x[-1],
    "max": lambda x: x.max(axis=0),
    "mean": mean,
    "mean_sqrt_len_tokens": lambda x: x.sum(axis=0) / np.sqrt(len(x)),
    "weightedmean": weighted_mean,
}


def embeddings(encoder, texts, pool=mean, **options):
    return np.array([pool(encoder.hidden_states(encoder.token_ids(text, **options))) for text in texts])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loaded(encoder, folder, files=None, dtype="float32"):
    return SentenceEncoder.from_pretrained(encoder.save(folder, files), dtype)


@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_embeddings(encoder, folder, dtype):
    """Means of hidden states, in the order of the texts."""
    model = SentenceEncoder.from_pretrained(folder, dtype)
    assert_close(model.encode(TEXTS), embeddings(encoder, TEXTS), dtype)


@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_embeddings_do_not_depend_on_company(bert, dtype):
    model = SentenceEncoder.from_pretrained(bert[1], dtype)
    texts = [text[i:] for text in TEXTS for i in range(2)]
    expected = model.encode(texts)
    for options in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 10**6}, {"num_threads": 1}):
        np.testing.assert_array_equal(model.encode(texts, **options), expected)
    np.testing.assert_array_equal(model.encode(texts[::-1]), expected[::-1])
    np.testing.assert_array_equal(model.encode(texts[3]), expected[3])


def test_many_texts(monkeypatch, bert):
    """More than go through the layers together, and more than the tokenizer takes at once."""
    monkeypatch.setattr("fastattn.models.tokens.AT_ONCE", 100)
    model = SentenceEncoder.from_pretrained(bert[1])
    few = [CHARACTERS[:i] for i in range(1, 30)]
    expected = model.encode(few)
    chosen = np.random.default_rng(0).integers(0, len(few), 550)
    np.testing.assert_array_equal(model.encode([few[i] for i in chosen]), expected[chosen])


@pytest.mark.parametrize("kind", [tuple, iter, np.array, dict.fromkeys, lambda x: (text for text in x)])
def test_kinds_of_texts(model, kind):
    texts = TEXTS[:-1]
    np.testing.assert_array_equal(model.encode(kind(texts)), model.encode(texts))


def test_few_texts(model):
    size = model.embedding_size
    assert model.encode([]).shape == (0, size)
    assert model.encode(iter(())).dtype == np.float32
    assert model.encode("").shape == (size,)
    assert model.encode([""]).shape == (1, size)
    np.testing.assert_array_equal(model.encode("a"), model.encode(["a"])[0])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("prefix", ["sentence_transformers.models.", "sentence_transformers.base.modules.x."])
def test_normalisation(tmp_path, bert, normalize, prefix):
    encoder, _ = bert
    plain = embeddings(encoder, TEXTS)
    model = loaded(encoder, tmp_path, modules(normalize=normalize, prefix=prefix))
    assert_close(model.encode(TEXTS), unit(plain) if normalize else plain)
    assert_close(model.encode(TEXTS, normalize=True), unit(plain))
    assert_close(model.encode(TEXTS, normalize=False), plain)


@pytest.mark.parametrize("modes", [*POOLED, "cls max", "lasttoken mean weightedmean"])
def test_pooling(tmp_path, bert, modes):
    """Several are joined."""
    encoder, _ = bert
    modes = modes.split()
    model = loaded(encoder, tmp_path, modules({"pooling_mode": modes if len(modes) > 1 else modes[0]}))
    assert model.embedding_size == 24 * len(modes)
    expected = [embeddings(encoder, TEXTS, POOLED[mode]) for mode in modes]
    assert_close(model.encode(TEXTS), np.concatenate(expected, axis=1))


OLD_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (3,), (4,), (5,), (5, 2, 1), ()], ids=str)
def test_old_fields_of_pooling(tmp_path, bert, chosen):
    """One for each mode; they are joined in a fixed order, and none means the mean."""
    encoder, _ = bert
    fields = {field: i in chosen for i, field in reversed(list(enumerate(OLD_FIELDS)))}
    model = loaded(encoder, tmp_path, modules(fields))
    modes = [mode for field, mode in OLD_FIELDS.items() if fields[field]] or ["mean"]
    expected = [embeddings(encoder, TEXTS, POOLED[mode]) for mode in modes]
    assert_close(model.encode(TEXTS), np.concatenate(expected, axis=1))


@pytest.mark.parametrize(("stored", "normalize", "truncate_dim"), [
    ("float32", False, None),
    ("float64", True, None),
    ("float16", False, 3),
    ("bfloat16", True, 3),
    ("float32", True, 100),
])  # fmt: skip
def test_dense_layers(rng, tmp_path, bert, stored, normalize, truncate_dim):
    """Two behind the pooling; embeddings are cut off behind the model's own normalisation, and before the caller's."""
    encoder, _ = bert
    first, bias, second = (
        stored_as({"": x}, stored)[""]
        for x in (rng.normal(size=(17, 24)) / 5, rng.normal(size=17), rng.normal(size=(9, 17)))
    )
    files = modules(dense=2, normalize=normalize) | {
        "config_sentence_transformers.json": {"truncate_dim": truncate_dim}
    }
    encoder.save(tmp_path, files)
    add_dense(tmp_path, 2, first, bias, TANH)
    add_dense(tmp_path, 3, second, None, IDENTITY)
    model = SentenceEncoder.from_pretrained(tmp_path)
    hidden = np.tanh(embeddings(encoder, TEXTS) @ first.T.astype(float) + bias.astype(float))
    expected = hidden @ second.T.astype(float)
    assert model.embedding_size == min(9, truncate_dim or 9)
    assert_close(model.encode(TEXTS), (unit(expected) if normalize else expected)[:, :truncate_dim])
    assert_close(model.encode(TEXTS, normalize=True), unit(expected[:, :truncate_dim]))
    assert_close(model.encode(TEXTS, normalize=False), expected[:, :truncate_dim])


DENSE = {
    "GELU": encoders.ACTIVATIONS["gelu"],
    "ReLU": lambda x: np.maximum(x, 0),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
}


@pytest.mark.parametrize("activation", DENSE)
def test_activations_of_dense_layers(rng, tmp_path, bert, activation):
    """For large numbers as well: there is no overflow."""
    encoder, _ = bert
    weight, bias = rng.normal(size=(9, 24)).astype(np.float32), np.zeros(9, np.float32)
    bias[:2] = -300, 300
    encoder.save(tmp_path, modules(dense=1))
    add_dense(tmp_path, 2, weight, bias, f"torch.nn.modules.activation.{activation}")
    expected = DENSE[activation](embeddings(encoder, TEXTS) @ weight.T.astype(float) + bias)
    assert_close(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_other_modules(rng, tmp_path, bert, normalize):
    """A layer normalisation counts where it stands, dropout nowhere."""
    encoder, _ = bert
    more = ["Dropout", "LayerNorm", "Dropout", "Dense", "LayerNorm", "Dropout"]
    encoder.save(tmp_path, modules(more=more, normalize=normalize))
    weight = rng.normal(size=(7, 24)).astype(np.float32)
    add_dense(tmp_path, 5, weight, None, IDENTITY)
    first = add_layer_norm(rng, tmp_path, 3, 24)
    second = add_layer_norm(rng, tmp_path, 6, 7)
    model = SentenceEncoder.from_pretrained(tmp_path)
    expected = second(first(embeddings(encoder, TEXTS)) @ weight.T.astype(float))
    assert model.embedding_size == 7
    assert_close(model.encode(TEXTS), unit(expected) if normalize else expected)


def add_layer_norm(rng, folder, place, size):
    """What it computes."""
    weight, bias = (x.astype(np.float32) for x in rng.normal(size=(2, size)))
    encoders.write_json(folder, {f"{place}_LayerNorm/config.json": {"dimension": size}})
    tensors = {"norm.weight": weight, "norm.bias": bias}
    (folder / f"{place}_LayerNorm" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return lambda x: encoders.reference.layer_norm(x, weight.astype(float), bias.astype(float), eps=1e-5)


def test_the_modules_have_folders_of_their_own(tmp_path, bert):
    encoder, _ = bert
    files = modules({"pooling_mode": "cls"})
    files["modules.json"][0]["path"] = "0_Transformer"
    encoder.save(tmp_path / "0_Transformer", {"sentence_bert_config.json": {"max_seq_length": 7}})
    encoders.write_json(tmp_path, files)
    model = SentenceEncoder.from_pretrained(tmp_path)
    assert model.max_length == 7
    assert_close(model.encode(TEXTS), embeddings(encoder, TEXTS, POOLED["cls"], max_length=7))


# Tokens


def padded(rows, filler):
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], int).reshape(len(rows), width)


def test_tokenize(encoder, model):
    rows = [encoder.token_ids(text) for text in TEXTS]
    tokens = model.tokenize(TEXTS)
    assert list(tokens) == ["input_ids", "attention_mask"]
    assert all(x.dtype == np.int64 for x in tokens.values())
    np.testing.assert_array_equal(tokens["input_ids"], padded(rows, encoder.padding_id))
    np.testing.assert_array_equal(tokens["attention_mask"], padded([[1] * len(row) for row in rows], 0))
    hidden = model(**tokens)
    np.testing.assert_array_equal(model(**model.tokenize("a")), hidden[1:2, :3])
    assert_close(hidden[1, :3], encoder.hidden_states(rows[1]))
    assert all(x.shape == (0, 0) for x in model.tokenize([]).values())


LENGTHS = [
    # sentence_bert_config.json, tokenizer_config.json, what holds; 40 is what the table of positions allows
    (None, None, 40),
    (None, {}, 40),
    (None, {"model_max_length": 12}, 12),
    (None, {"model_max_length": int(1e30)}, 40),
    (None, {"model_max_length": 1e30}, 40),
    ({}, {"model_max_length": 12}, 12),
    ({"max_seq_length": None}, {"model_max_length": None}, 40),
    ({"max_seq_length": 20}, {"model_max_length": 12}, 20),
    ({"max_seq_length": 3}, None, 3),
    ({"max_seq_length": 512}, None, 40),
]


@pytest.mark.parametrize(("sentence", "tokenizer", "length"), LENGTHS)
def test_maximum_length(tmp_path, bert, sentence, tokenizer, length):
    encoder, _ = bert
    files = {"sentence_bert_config.json": sentence, "tokenizer_config.json": tokenizer}
    model = loaded(encoder, tmp_path, {name: content for name, content in files.items() if content is not None})
    assert model.max_length == length
    text = CHARACTERS[:-1]
    np.testing.assert_array_equal(model.tokenize(text)["input_ids"], [encoder.token_ids(text, length)])
    assert_close(model.encode([text]), embeddings(encoder, [text], max_length=length))


def test_as_many_tokens_as_there_are_positions(encoder, model):
    assert model.max_length == encoder.max_length == 40
    text = CHARACTERS[:38]
    assert len(encoder.token_ids(text)) == 40
    for longer in ("", "and so on"):
        assert_close(model.encode(text + longer), encoder.hidden_states(encoder.token_ids(text)).mean(axis=0))


def test_texts_may_be_cut_off_on_the_left(tmp_path, bert):
    encoder, _ = bert
    files = {"tokenizer_config.json": {"truncation_side": "left", "model_max_length": 5}}
    ids = loaded(encoder, tmp_path, files).tokenize("abcdef")["input_ids"]
    np.testing.assert_array_equal(ids, [encoder.token_ids("def")])


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
@pytest.mark.parametrize("lower", [True, False])
def test_lower_case(tmp_path, bert, name, lower):
    encoder, _ = bert
    model = loaded(encoder, tmp_path, {name: {"do_lower_case": lower}})
    expected = encoder.token_ids("Ab C".lower() if lower else "Ab C")
    np.testing.assert_array_equal(model.tokenize("Ab C")["input_ids"], [expected])


def test_lower_case_before_what_the_tokenizer_normalises(tmp_path, bert):
    from tokenizers import normalizers

    encoder, _ = bert
    encoder.save(tmp_path, {"sentence_bert_config.json": {"do_lower_case": True}})
    tokenizer = encoders.tokenizer()
    tokenizer.normalizer = normalizers.Replace("a", "B")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = SentenceEncoder.from_pretrained(tmp_path).tokenize("AbC")["input_ids"]
    np.testing.assert_array_equal(ids, [encoder.token_ids("Bbc")])


@pytest.mark.parametrize("default", [None, "query"])
def test_prompts(tmp_path, bert, default):
    encoder, _ = bert
    config = {"prompts": {"query": "ask. ", "document": ""}, "default_prompt_name": default}
    model = loaded(encoder, tmp_path, {"config_sentence_transformers.json": config})
    prompt = "ask. " if default else ""
    assert_close(model.encode(TEXTS), embeddings(encoder, [prompt + text for text in TEXTS]))
    np.testing.assert_array_equal(model.tokenize("a")["input_ids"], [encoder.token_ids(prompt + "a")])


@pytest.mark.parametrize("named", [True, False], ids=["named marks", "marks without names"])
@pytest.mark.parametrize("mode", POOLED)
def test_prompts_that_are_not_pooled(tmp_path, bert, mode, named):
    """include_prompt: the rows of the prompt, and of what stands before it, are left out; their neighbours saw them.

    What ends a text counts as the prompt's where no field says that it is a special token.
    """
    encoder, _ = bert
    config = {"prompts": {"query": "ask. "}, "default_prompt_name": "query"}
    files = modules({"pooling_mode": mode, "include_prompt": False}) | {"config_sentence_transformers.json": config}
    files["tokenizer_config.json"] = {"sep_token": "[SEP]"} if named else {}
    model = loaded(encoder, tmp_path, files)
    skipped = 6 if named else 7
    texts = [text for text in TEXTS if text]

    def pool(x):
        kept = x[skipped:]
        if mode == "weightedmean":
            return np.average(kept, axis=0, weights=np.arange(skipped, len(x)) + 1)
        return POOLED[mode](kept)

    assert_close(model.encode(texts), embeddings(encoder, ["ask. " + text for text in texts], pool))
    assert model.encode("").any() == named


def test_the_tokenizer_pads_and_cuts_nothing_by_itself(tmp_path, bert):
    """As tokenizer.json often says, whose word on it does not count."""
    encoder, _ = bert
    encoder.save(tmp_path)
    tokenizer = encoders.tokenizer()
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_close(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), embeddings(encoder, TEXTS))


# Files


@pytest.mark.parametrize("stored", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_stored_types(rng, tmp_path, dtype, stored):
    encoder = random_encoder("bert")
    encoder = encoders.Encoder(encoder.config, stored_as(encoder.tensors, stored))
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(encoder.tensors))
    model = SentenceEncoder.from_pretrained(tmp_path, dtype)
    assert_hidden_states(encoder, model, *random_batch(rng, encoder))


@pytest.mark.parametrize("padding", range(1, 8))
def test_tensors_at_odd_addresses(tmp_path, bert, padding):
    encoder, folder = bert
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(encoder.tensors, padding=padding))
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), expected)


def old(name):
    return re.sub(r"LayerNorm\.(weight|bias)$", lambda found: f"LayerNorm.{OLD[found[1]]}", name)


OLD = {"weight": "gamma", "bias": "beta"}
POOLER = {f"pooler.dense.{kind}": np.ones((2, 2), np.float32) for kind in ("weight", "bias")}
NAMES = {
    "below a prefix": lambda tensors: {f"bert.{name}": x for name, x in tensors.items()},
    "with a pooler": lambda tensors: tensors | POOLER,
    "with a pooler below a prefix": lambda tensors: {f"bert.{name}": x for name, x in (tensors | POOLER).items()},
    "with a buffer": lambda tensors: tensors | {"embeddings.position_ids": np.arange(40)[None]},
    "gamma and beta": lambda tensors: {old(name): x for name, x in tensors.items()},
    "in another order": lambda tensors: dict(reversed(tensors.items())),
}


@pytest.mark.parametrize("renamed", NAMES.values(), ids=NAMES)
def test_names_of_tensors(tmp_path, bert, renamed):
    encoder, folder = bert
    encoder.save(tmp_path, tensors=renamed(encoder.tensors))
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), expected)


HEADS = {
    "of that class": ({"architectures": ["BertForSequenceClassification"]}, [], "BertForSequenceClassification"),
    "of another class": ({"architectures": ["HF_ColBERT"]}, ["linear.weight"], "HF_ColBERT, linear.weight"),
    "tensors alone": ({}, ["classifier.bias", "classifier.weight"], "classifier.bias, classifier.weight"),
    "many tensors": ({}, [f"cls.{i}" for i in range(5)], r"cls.0, cls.1, cls.2, \.\.\."),
    "tensors of a known class": ({"architectures": ["BertModel"]}, ["linear.weight"], "linear.weight"),
}


@pytest.mark.parametrize(("fields", "tensors", "said"), HEADS.values(), ids=HEADS)
def test_heads(tmp_path, bert, fields, tensors, said):
    """They are not computed: encode says so, hidden states stay; modules.json says that nothing is lacking."""
    encoder, folder = bert
    more = {name: np.ones(3, np.float32) for name in tensors}
    encoder.save(tmp_path, {"config.json": encoder.config | fields}, encoder.tensors | POOLER | more)
    model, plain = SentenceEncoder.from_pretrained(tmp_path), SentenceEncoder.from_pretrained(folder)
    for texts in (TEXTS, "a", []):
        with pytest.raises(ValueError, match=f"encode must have a model without a head, got one with {said}:"):
            model.encode(texts)
    tokens = model.tokenize(TEXTS)
    np.testing.assert_array_equal(model(**tokens), plain(**tokens))
    assert model.attention_map("a", 0, 0)[0] == ["[CLS]", "a", "[SEP]"]
    encoders.write_json(tmp_path, modules())
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), plain.encode(TEXTS))


@pytest.mark.parametrize("classes", [None, [], ["BertModel"], ["RobertaModel"]], ids=str)
def test_classes_without_a_head(tmp_path, bert, classes):
    encoder, folder = bert
    encoder.save(tmp_path, {"config.json": encoder.config | {"architectures": classes}})
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(tmp_path).encode(TEXTS), expected)


def test_shards(tmp_path, bert):
    encoder, folder = bert
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    shards = SentenceEncoder.from_pretrained(save_shards(encoder, tmp_path))
    np.testing.assert_array_equal(shards.encode(TEXTS), expected)


@pytest.mark.parametrize("kind", [str, Path, os.fspath], ids=["str", "Path", "fspath"])
def test_folder_is_any_path(bert, kind):
    assert SentenceEncoder.from_pretrained(kind(bert[1])).max_length == 40


def test_optional_fields_of_the_configuration(rng, tmp_path):
    """They have the values that transformers gives them."""
    encoder = random_encoder("bert", layer_norm_eps=1e-12)
    given = {"hidden_act", "layer_norm_eps", "pad_token_id", "type_vocab_size"}
    brief = {name: value for name, value in encoder.config.items() if name not in given}
    unread = {"position_embedding_type": "absolute", "is_decoder": None, "use_cache": True, "pruned_heads": {}}
    encoder.save(tmp_path, {"config.json": brief | unread})
    assert_hidden_states(encoder, SentenceEncoder.from_pretrained(tmp_path), *random_batch(rng, encoder))


def test_what_it_says_of_itself(encoder, model):
    said = (
        f"SentenceEncoder(model_type='{encoder.config['model_type']}', num_layers=2, num_heads=3, hidden_size=24, "
        f"embedding_size=24, max_length=40, dtype='float32')"
    )
    assert repr(model) == str(model) == said


# Numbers beyond float16

BEYOND = (
    "encoder.layer.0.output.dense.weight",
    "encoder.layer.1.output.dense.bias",
    "encoder.layer.0.attention.self.value.weight",
    "encoder.layer.1.attention.output.dense.weight",
)


@pytest.mark.parametrize("name", BEYOND)
def test_sums_beyond_float16(tmp_path, bert, name):
    """An error that says what to take, where it would be NaN; the other types, and texts before, are right."""
    encoder, _ = bert
    tensors = encoder.tensors | {name: encoder.tensors[name] * np.float32(30000 if name.endswith("weight") else 1e6)}
    encoder.save(tmp_path, modules(), tensors)
    for dtype in ("float32", "bfloat16", "int8"):
        assert np.isfinite(SentenceEncoder.from_pretrained(tmp_path, dtype).encode(TEXTS)).all()
    model = SentenceEncoder.from_pretrained(tmp_path, "float16")
    for call in (model.encode, lambda texts: model(**model.tokenize(texts))):
        with pytest.raises(ValueError, match=r"finite, got NaN .* float16, .* 65504: use dtype 'bfloat16'"):
            call(TEXTS)
    with pytest.raises(ValueError, match=r"finite, got NaN .* float16"):
        model.attention_map("word", 1, 0) if ".0." in name else model.encode("word")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", ["query", "key"])
@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize("seed", range(3))
def test_scores_beyond_float16(tmp_path, layer, part, kind, seed):
    """An infinite score can leave a finite result: it is refused before it is computed."""
    encoder = random_encoder("bert", seed)
    name = f"encoder.layer.{layer}.attention.self.{part}.{kind}"
    factor = np.float32(20000 if kind == "weight" else 200000)
    encoder.save(tmp_path, tensors=encoder.tensors | {name: encoder.tensors[name] * factor})
    assert np.isfinite(SentenceEncoder.from_pretrained(tmp_path, "bfloat16").encode(TEXTS)).all()
    with pytest.raises(ValueError, match=f"queries and keys of layer {layer} must be below 65504 in float16.*'bfloat"):
        SentenceEncoder.from_pretrained(tmp_path, "float16")


def test_scores_without_a_bound_in_float16(tmp_path, bert):
    """Infinity less infinity is no bound below the largest number."""
    encoder, _ = bert
    bias = np.where(np.arange(24) % 2, 3e38, -3e38).astype(np.float32)
    encoder.save(tmp_path, tensors=encoder.tensors | {"embeddings.LayerNorm.bias": bias})
    refused = pytest.raises(ValueError, match="queries and keys of layer 0 must be below 65504")
    with np.errstate(over="ignore", invalid="ignore"), refused:
        SentenceEncoder.from_pretrained(tmp_path, "float16")


def test_weights_beyond_float16(tmp_path, bert):
    encoder, _ = bert
    name = "encoder.layer.1.output.dense.weight"
    weight = encoder.tensors[name].copy()
    weight[0, 0] = -1e5
    encoder.save(tmp_path, tensors=encoder.tensors | {name: weight})
    with pytest.raises(ValueError, match=r"layers\.1\.linear2\.weight must be below 65520 .* got 100000: use dtype"):
        SentenceEncoder.from_pretrained(tmp_path, "float16")


# Attention maps


@pytest.mark.parametrize("dtype", ACTIVATIONS)
def test_attention_map(encoder, folder, dtype):
    model = SentenceEncoder.from_pretrained(folder, dtype)
    text = "see é and\N{GRINNING FACE}"
    _, expected = encoder.run(encoder.token_ids(text))
    for layer in (0, -1):
        for head in (2, -2):
            tokens, weights = model.attention_map(text, layer, head)
            assert (
                tokens == ["[CLS]", *text.replace("\N{GRINNING FACE}", "?"), "[SEP]"][: len(tokens)]
                or "[UNK]" in tokens
            )
            assert_close(weights, expected[layer, head], dtype, ALLOWED_WEIGHTS)
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-2 if "16" in ACTIVATIONS[dtype] else 1e-6)


def test_attention_map_of_little_and_much(bert):
    encoder, folder = bert
    model = SentenceEncoder.from_pretrained(folder)
    assert model.attention_map("", 0, 0)[0] == ["[CLS]", "[SEP]"]
    tokens, weights = model.attention_map("word " * 30, 1, 2)
    assert len(tokens) == 40
    assert_close(weights, encoder.run(encoder.token_ids("word " * 30))[1][1, 2])


# The line that says how far it has come


class Terminal:
    def __init__(self, is_terminal):
        self.written, self._is_terminal = "", is_terminal

    def isatty(self):
        return self._is_terminal

    def write(self, text):
        self.written += text

    def flush(self):
        pass


@pytest.mark.parametrize(("shown", "is_terminal", "long", "written"), [
    (None, True, True, True),
    (None, True, False, False),
    (None, False, True, False),
    (True, False, False, True),
    (False, True, True, False),
])  # fmt: skip
def test_progress(monkeypatch, capsys, bert, shown, is_terminal, long, written):
    stderr = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr("fastattn.models.progress.LONG", 0.0 if long else 1e9)
    model = SentenceEncoder.from_pretrained(bert[1])
    model.encode(TEXTS, batch_size=2, show_progress=shown)
    assert bool(stderr.written) == written
    assert capsys.readouterr().out == ""
    if written:
        assert re.fullmatch(r"(\r\[#* *\] \d/9 \d:\d\d gone, \d:\d\d left *)+\n", stderr.written)
        assert "9/9" in stderr.written
        model.encode([], show_progress=shown)  # nothing to divide by


# Many callers


def test_threads(bert):
    model = SentenceEncoder.from_pretrained(bert[1])
    texts = TEXTS * 10
    expected, found = model.encode(texts), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: model.encode(texts)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for result in found.values():
        np.testing.assert_array_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("setting", ["true", "1", "false", None])
def test_forked_children(bert, setting):
    """They tokenise whatever TOKENIZERS_PARALLELISM says, though the parent's threads are none of theirs."""
    code = """
    import os, signal, sys
    import numpy as np
    from fastattn.models import SentenceEncoder

    model = SentenceEncoder.from_pretrained(sys.argv[1])
    texts = ["the cat", "a", ""] * 100
    expected = model.encode(texts)
    for _ in range(2):
        child = os.fork()
        if not child:
            signal.alarm(20)  # ends it if it hangs
            again = SentenceEncoder.from_pretrained(sys.argv[1])
            same = all(np.array_equal(x.encode(texts), expected) for x in (model, again))
            os._exit(0 if same and again.tokenize("a")["input_ids"].shape == (1, 3) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    settings = {} if setting is None else {"TOKENIZERS_PARALLELISM": setting}
    output(code, str(bert[1]), **settings)


# What is refused: calls


def call(encoder, **changes):
    """Arguments of a call, some of them changed; None leaves one out."""
    ids = np.full((2, 3), 5)
    arguments = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: x for name, x in (arguments | changes).items() if x is not None}


def ids_with(token):
    return np.array([[5, 5, 5], [5, token, 5]])


REFUSED_CALLS = [
    ({"input_ids": ids_with(62)}, ValueError, "input_ids must be at least 0 and below 62.*got 5 to 62"),
    ({"input_ids": ids_with(-1)}, ValueError, "input_ids must be at least 0 and below 62.*got -1 to 5"),
    ({"input_ids": ids_with(2**63 - 1)}, ValueError, "input_ids must be"),
    ({"input_ids": ids_with(5).astype(float)}, TypeError, "input_ids must have an integer dtype, got dtype float64"),
    ({"input_ids": ids_with(5) > 5}, TypeError, "input_ids must have an integer dtype, got dtype bool"),
    ({"input_ids": [["a", "b", "c"]] * 2}, TypeError, "input_ids must have an integer dtype"),
    ({"input_ids": [[5, 5], [5]]}, ValueError, "input_ids must be an array of integers"),
    ({"input_ids": np.array([5, 5])}, ValueError, r"input_ids must have shape \(B, S\), got shape \(2,\)"),
    ({"input_ids": np.array(5)}, ValueError, r"input_ids must have shape \(B, S\)"),
    ({"input_ids": np.full((1, 2, 3), 5)}, ValueError, r"input_ids must have shape \(B, S\)"),
    (
        {"input_ids": np.full((1, 41), 5), "attention_mask": None, "token_type_ids": None},
        ValueError,
        "at most 40 tokens",
    ),
    ({"attention_mask": np.ones((2, 4), int)}, ValueError, r"attention_mask must have input_ids' shape \(2, 3\)"),
    ({"attention_mask": np.ones(3, int)}, ValueError, r"attention_mask must have .* got shape \(3,\)"),
    ({"attention_mask": np.ones((2, 1), int)}, ValueError, "attention_mask must have input_ids' shape"),
    ({"attention_mask": np.ones((2, 3, 3), int)}, ValueError, "attention_mask must have input_ids' shape"),
    (
        {"attention_mask": np.ones((2, 3))},
        TypeError,
        "attention_mask must have an integer dtype or bool, got .*float64",
    ),
    ({"attention_mask": [[1, 1], [1]]}, ValueError, "attention_mask must be an array of integers"),
    ({"attention_mask": ids_with(5) * 0 + 2}, ValueError, "attention_mask must be 1 at tokens and 0 .* got 2 to 2"),
    ({"attention_mask": ids_with(5) * 0 - 1}, ValueError, "attention_mask must be 1 at tokens and 0 .* got -1 to -1"),
    ({"token_type_ids": np.zeros((2, 4), int)}, ValueError, r"token_type_ids must have input_ids' shape \(2, 3\)"),
    ({"token_type_ids": np.zeros((2, 3))}, TypeError, "token_type_ids must have an integer dtype"),
    ({"token_type_ids": ids_with(5)}, ValueError, "token_type_ids must be at least 0 and below [12].*got 5 to 5"),
    ({"token_type_ids": ids_with(5) * 0 - 1}, ValueError, "token_type_ids must be at least 0"),
    ({"num_threads": 0}, ValueError, "num_threads"),
    ({"num_threads": 1.5}, TypeError, "num_threads"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED_CALLS)
def test_refused_calls(encoder, model, changes, error, message):
    with pytest.raises(error, match=message):
        model(**call(encoder, **changes))


def test_sequences_that_are_too_long(encoder, model):
    """What the mask leaves out needs no position."""
    ids = np.full((1, 41), 5)
    with pytest.raises(ValueError, match="at most 40 tokens in a row"):
        model(ids)
    mask = np.ones_like(ids)
    mask[0, 40] = 0
    np.testing.assert_array_equal(model(ids, mask)[:, :40], model(ids[:, :40]))


TEXTLESS = [b"text", bytearray(b"text"), 7, None, 1.5]


@pytest.mark.parametrize("texts", TEXTLESS, ids=repr)
@pytest.mark.parametrize("method", ["encode", "tokenize", "attention_map"])
def test_what_is_no_text(bert, method, texts):
    model = SentenceEncoder.from_pretrained(bert[1])
    more = (0, 0) if method == "attention_map" else ()
    with pytest.raises(TypeError, match=f"texts? must be a str.*got {type(texts).__name__}"):
        getattr(model, method)(texts, *more)
    if method != "attention_map":
        with pytest.raises(TypeError, match=rf"texts\[2\] must be a str, got {type(texts).__name__}"):
            getattr(model, method)(["a", "b", texts])


def test_text_that_is_not_unicode(bert):
    model = SentenceEncoder.from_pretrained(bert[1])
    with pytest.raises(ValueError, match=r"texts\[1\]"):
        model.encode(["a", "b \ud800"])


@pytest.mark.parametrize(("options", "error"), [
    ({"batch_size": 0}, ValueError),
    ({"batch_size": -1}, ValueError),
    ({"batch_size": 1.5}, TypeError),
    ({"num_threads": 0}, ValueError),
    ({"num_threads": "2"}, TypeError),
])  # fmt: skip
def test_refused_options_of_encode(bert, options, error):
    model = SentenceEncoder.from_pretrained(bert[1])
    [name] = options
    with pytest.raises(error, match=name):
        model.encode(TEXTS, **options)


@pytest.mark.parametrize(("layer", "head", "error", "message"), [
    (2, 0, ValueError, "layer must be at least -2 and below 2, got 2"),
    (-3, 0, ValueError, "layer must be at least -2 and below 2, got -3"),
    (0, 3, ValueError, "head must be at least -3 and below 3, got 3"),
    (0.0, 0, TypeError, "layer must be an int, got float"),
    (0, "0", TypeError, "head must be an int, got str"),
    (0, None, TypeError, "head must be an int, got NoneType"),
])  # fmt: skip
def test_no_such_head(bert, layer, head, error, message):
    with pytest.raises(error, match=message):
        SentenceEncoder.from_pretrained(bert[1]).attention_map("a", layer, head)


def test_a_token_that_the_model_does_not_know(tmp_path, bert):
    """The tokenizer of another model."""
    encoder, _ = bert
    encoder.save(tmp_path)
    tokenizer = encoders.tokenizer()
    tokenizer.add_tokens(["cat"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = SentenceEncoder.from_pretrained(tmp_path)
    assert model.encode(["ca"]).shape == (1, 24)
    with pytest.raises(ValueError, match=r"tokenizer\.json's tokens must be at least 0 and below 62"):
        model.encode(["a", "the cat"])
