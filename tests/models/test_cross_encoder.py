"""CrossEncoder: scores are those of the definition, and bad folders, pairs and arguments are refused by name."""

import json

import numpy as np
import pytest

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)

from fastattn.models import CrossEncoder
from support.encoders import ACTIVATIONS, TEXTS, Encoder, random_encoder, write_json

# Of a model_type: the head's dense layer, its activation, and the classifier.
HEADS = {
    "bert": ("pooler.dense", np.tanh, "classifier"),
    "camembert": ("classifier.dense", np.tanh, "classifier.out_proj"),
    "distilbert": ("pre_classifier", ACTIVATIONS["relu"], "classifier"),
    "roberta": ("classifier.dense", np.tanh, "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", np.tanh, "classifier.out_proj"),
}
CLASSES = {"bert": "Bert", "camembert": "Camembert", "distilbert": "DistilBert", "roberta": "Roberta",
           "xlm-roberta": "XLMRoberta"}  # fmt: skip
PAIRS = [(a, b) for a in TEXTS[:6] for b in TEXTS]
TYPED = {"tokenizer_config.json": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}}


def random_classifier(model_type, labels=1, **changes):
    """An encoder with a classification head."""
    names = {"id2label": {str(i): f"label {i}" for i in range(labels)}}
    architectures = {"architectures": [f"{CLASSES[model_type]}ForSequenceClassification"]}
    encoder = random_encoder(model_type, **architectures, **names, **changes)
    rng, tensors = np.random.default_rng(1), dict(encoder.tensors)
    if model_type == "bert":
        tensors = {f"bert.{name}": x for name, x in tensors.items()}
    dense, _, output = HEADS[model_type]
    for name, rows in ((dense, 24), (output, labels)):
        name = f"bert.{name}" if name.startswith("pooler") else name
        tensors |= {f"{name}.weight": rng.normal(size=(rows, 24)), f"{name}.bias": rng.normal(size=rows) / 3}
    return Encoder(encoder.config, {name: x.astype(np.float32) for name, x in tensors.items()})


def pair_ids(encoder, pair):
    """(ids, token types) of a pair, whose longer text is truncated first."""
    first, second = (encoder.token_ids(text, 10_000)[1:-1] for text in pair)
    room, both = encoder.max_length - 3, sorted((first, second), key=len)  # of equal ones, the second keeps more
    if len(first) + len(second) > room:
        shorter = min(len(both[0]), room // 2)
        del both[0][shorter:], both[1][room - shorter :]
    cls, sep = (encoder.token_ids("")[i] for i in (0, 1))
    return [cls, *first, sep, *second, sep], [0] * (len(first) + 2) + [1] * (len(second) + 1)


def logits(encoder, pair, typed):
    ids, types = pair_ids(encoder, pair)
    bare = Encoder(encoder.config, {name.removeprefix("bert."): x for name, x in encoder.tensors.items()})
    x = bare.hidden_states(ids, types=types if typed else None)[0]
    dense, activation, output = HEADS[encoder.config["model_type"]]
    return bare._linear(activation(bare._linear(x, dense)), output)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """(the definition, its folder)."""
    encoder = random_classifier("bert")
    return encoder, encoder.save(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def model(bert):
    return CrossEncoder.from_pretrained(bert[1])


# Scores


@pytest.mark.parametrize("model_type", HEADS)
@pytest.mark.parametrize("labels", [1, 3])
def test_scores(tmp_path, model_type, labels):
    encoder = random_classifier(model_type, labels)
    model = CrossEncoder.from_pretrained(encoder.save(tmp_path))
    expected = np.array([logits(encoder, pair, typed=False) for pair in PAIRS])
    if labels == 1:
        expected = 1 / (1 + np.exp(-expected[:, 0]))
    scores = model.predict(PAIRS)
    assert scores.dtype == np.float32
    assert np.ptp(expected) > 0.02
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert model.labels == tuple(f"label {i}" for i in range(labels))
    assert model.num_labels == labels


def test_progress(model, capsys):
    for shown in (True, False):
        model.predict(PAIRS, batch_size=2, show_progress=shown)
        assert (f"] {len(PAIRS)}/{len(PAIRS)} " in capsys.readouterr().err) == shown
        model.rank("a", TEXTS, show_progress=shown)
        assert (f"] {len(TEXTS)}/{len(TEXTS)} " in capsys.readouterr().err) == shown


def test_token_types(tmp_path):
    encoder = random_classifier("bert")
    model = CrossEncoder.from_pretrained(encoder.save(tmp_path, TYPED))
    expected, without = (np.array([logits(encoder, pair, typed)[0] for pair in PAIRS]) for typed in (True, False))
    assert np.abs(expected - without).max() > 0.1
    np.testing.assert_allclose(model.predict(PAIRS, activation_fn="identity"), expected, rtol=0, atol=1e-5)


def test_a_tokenizer_with_more_types_than_the_model(tmp_path):
    model = CrossEncoder.from_pretrained(random_classifier("roberta").save(tmp_path, TYPED))
    with pytest.raises(ValueError, match=r"token types must be at least 0 and below 1, .* got 0 to 1"):
        model.predict(PAIRS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_narrow_types(bert, model, dtype):
    narrow = CrossEncoder.from_pretrained(bert[1], dtype)
    assert narrow.dtype == dtype
    np.testing.assert_allclose(narrow.predict(PAIRS), model.predict(PAIRS), rtol=0, atol=0.1)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_scores_do_not_depend_on_the_batch(model, batch_size, num_threads):
    expected = model.predict(PAIRS)
    np.testing.assert_array_equal(model.predict(PAIRS, batch_size=batch_size, num_threads=num_threads), expected)
    np.testing.assert_array_equal(model.predict(PAIRS[::-1]), expected[::-1])


def test_without_packed_weights(bert, model):
    plain = CrossEncoder.from_pretrained(bert[1], pack=False)
    np.testing.assert_array_equal(plain.predict(PAIRS), model.predict(PAIRS))


def test_one_pair_and_none(tmp_path, model):
    scores = model.predict(PAIRS[:2])
    for pair in (PAIRS[1], list(PAIRS[1]), np.array(PAIRS[1])):
        assert model.predict(pair) == scores[1]
    for pairs in ([list(pair) for pair in PAIRS[:2]], np.array(PAIRS[:2]), iter(PAIRS[:2])):
        np.testing.assert_array_equal(model.predict(pairs), scores)
    assert model.predict([]).shape == (0,)
    several = CrossEncoder.from_pretrained(random_classifier("bert", 3).save(tmp_path))
    assert several.predict([]).shape == (0, 3)
    assert several.predict(PAIRS[0]).shape == (3,)
    np.testing.assert_allclose(several.predict(PAIRS, apply_softmax=True).sum(axis=1), 1, rtol=1e-6)


def test_rank(model):
    scores = model.predict([(TEXTS[0], text) for text in TEXTS])
    ranked = model.rank(TEXTS[0], TEXTS, return_documents=True)
    order = sorted(range(len(TEXTS)), key=lambda i: (-scores[i], i))
    assert ranked == [{"corpus_id": i, "score": scores[i].item(), "text": TEXTS[i]} for i in order]
    best = [{"corpus_id": i, "score": scores[i].item()} for i in order[:2]]
    assert model.rank(TEXTS[0], tuple(TEXTS), top_k=2) == best
    assert len(model.rank(TEXTS[0], TEXTS, top_k=100)) == len(TEXTS)
    assert model.rank(TEXTS[0], []) == []


# Activations and prompts

IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
ACTIVATIONS_OF_FILES = {
    "nothing": ({}, "sigmoid"),
    "sentence-transformers 4": ({"sentence_transformers": {"activation_fn": IDENTITY}}, "identity"),
    "before 4": ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
    "both": ({"sentence_transformers": {"activation_fn": SIGMOID}, "sbert_ce_default_activation_function": IDENTITY},
             "sigmoid"),
    "null": ({"sbert_ce_default_activation_function": None, "sentence_transformers": {}}, "sigmoid"),
    "a class of the folder's own": ({"sentence_transformers": {"activation_fn": "rerank.Scaled"}}, "sigmoid"),
    "a short name": ({"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, "tanh"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "name"), ACTIVATIONS_OF_FILES.values(), ids=ACTIVATIONS_OF_FILES)
def test_activation_of_config(tmp_path, model, fields, name):
    encoder = random_classifier("bert")
    other = CrossEncoder.from_pretrained(encoder.save(tmp_path, {"config.json": encoder.config | fields}))
    np.testing.assert_array_equal(other.predict(PAIRS), model.predict(PAIRS, activation_fn=name))


def listed(**fields):
    """The files of sentence-transformers beside a cross-encoder."""
    rows = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
    return {
        "modules.json": rows,
        "config_sentence_transformers.json": {"model_type": "CrossEncoder"} | fields,
        "sentence_bert_config.json": {"transformer_task": "sequence-classification"},
    }


def test_files_of_sentence_transformers(tmp_path, model):
    encoder = random_classifier("bert", sbert_ce_default_activation_function=SIGMOID)
    fields = {"activation_fn": IDENTITY, "prompts": {"ask": "is it "}, "default_prompt_name": "ask"}
    other = CrossEncoder.from_pretrained(encoder.save(tmp_path, listed(**fields)))
    expected = model.predict(PAIRS, activation_fn="identity", prompt="is it ")
    np.testing.assert_array_equal(other.predict(PAIRS), expected)
    spelled = [("is it " + a, b) for a, b in PAIRS]
    np.testing.assert_array_equal(model.predict(spelled, activation_fn="identity"), expected)
    np.testing.assert_array_equal(other.predict(PAIRS, prompt_name="ask"), expected)
    bare = model.predict(PAIRS, activation_fn="identity")
    np.testing.assert_array_equal(other.predict(PAIRS, prompt=""), bare)
    assert other.rank(TEXTS[0], TEXTS, prompt="", top_k=1)[0]["score"] == max(bare[: len(TEXTS)])


def test_activation_functions(model):
    raw = model.predict(PAIRS, activation_fn="identity")
    np.testing.assert_array_equal(model.predict(PAIRS, activation_fn=lambda x: 2 * x), 2 * raw)
    np.testing.assert_array_equal(model.predict(PAIRS, activation_fn="relu"), np.maximum(raw, 0))
    with pytest.raises(ValueError, match=r"activation_fn must be one of identity, .*got 'mish'"):
        model.predict(PAIRS, activation_fn="mish")
    with pytest.raises(TypeError, match="activation_fn must be a str or a function, got int"):
        model.predict(PAIRS, activation_fn=3)
    with pytest.raises(ValueError, match=r"activation_fn must return an array of shape \(54, 1\), got shape \(54,\)"):
        model.predict(PAIRS, activation_fn=lambda x: x[:, 0])


def test_maximum_length(tmp_path):
    encoder = random_classifier("bert")
    task = {"transformer_task": "sequence-classification"}
    files = listed() | {"sentence_bert_config.json": task | {"max_seq_length": 9}}
    model = CrossEncoder.from_pretrained(encoder.save(tmp_path, files))
    assert model.max_length == 9
    cut = model.predict([("abcdef", "abcdefgh"), ("abc", "abc"), ("a", "abcdefgh"), ("a", "abcde")])
    assert cut[0] == cut[1]
    assert cut[2] == cut[3]


# What is refused


@pytest.mark.parametrize(("pairs", "error", "message"), [
    ("text", TypeError, "pairs must be a list of pairs of str, got str"),
    (7, TypeError, "pairs must be a list of pairs of str, got int"),
    (None, TypeError, "pairs must be a list of pairs of str, got NoneType"),
    (b"ab", TypeError, "pairs must be a list of pairs of str, got bytes"),
    ([("a", "b"), "ab"], TypeError, r"pairs\[1\] must be a pair of str, got str"),
    ([("a", "b"), 3], TypeError, r"pairs\[1\] must be a pair of str, got int"),
    ([("a", "b"), ("a",)], ValueError, r"pairs\[1\] must be a pair of str, got 1 of them"),
    ([("a", "b", "c")], ValueError, r"pairs\[0\] must be a pair of str, got 3 of them"),
    ([()], ValueError, r"pairs\[0\] must be a pair of str, got 0 of them"),
    (("a", "b", "c"), ValueError, r"pairs\[0\] must be a pair of str, got 3 of them"),
    ([("a", None)], TypeError, r"pairs\[0\]\[1\] must be a str, got NoneType"),
    ([(1, "a")], TypeError, r"pairs\[0\]\[0\] must be a str, got int"),
    ([("a", "\ud800")], ValueError, r"pairs\[0\]\[1\] must be Unicode"),
])  # fmt: skip
def test_what_is_no_pair(model, pairs, error, message):
    with pytest.raises(error, match=message):
        model.predict(pairs)


@pytest.mark.parametrize(("call", "error", "message"), [
    ({"query": 3}, TypeError, "query must be a str, got int"),
    ({"documents": "text"}, TypeError, "documents must be a list of str, got str"),
    ({"documents": 3}, TypeError, "documents must be a str or a list of str, got int"),
    ({"documents": ["a", 3]}, TypeError, r"documents\[1\] must be a str, got int"),
    ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
    ({"top_k": 1.5}, TypeError, "top_k must be an int, got float"),
    ({"return_documents": 1}, TypeError, "return_documents must be a bool, got int"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"prompt_name": "ask"}, ValueError, "prompt_name must be one of .* got 'ask'"),
    ({"prompt": 3}, TypeError, "prompt must be a str, got int"),
])  # fmt: skip
def test_arguments_of_rank(model, call, error, message):
    with pytest.raises(error, match=message):
        model.rank(**{"query": "a", "documents": ["b"], **call})


def test_rank_with_several_labels(tmp_path):
    model = CrossEncoder.from_pretrained(random_classifier("bert", 3).save(tmp_path))
    with pytest.raises(ValueError, match="rank must have a model with one label, got one with 3: use predict"):
        model.rank("a", ["b"])


@pytest.mark.parametrize("folder", [None, 7, b"folder"], ids=repr)
def test_what_is_no_path(folder):
    with pytest.raises(TypeError, match="folder must be a path"):
        CrossEncoder.from_pretrained(folder)


CONFIGURATIONS_REFUSED = {
    "no head": ({"architectures": ["BertModel"]}, "config.json: architectures must name a .*ForSequenceClassification"),
    "another head": ({"architectures": ["BertForMaskedLM"]}, "architectures must name .* got BertForMaskedLM"),
    "too many labels": ({"id2label": {"0": "a", "1": "b"}}, "config.json: id2label must name 1 labels"),
    "labels of other numbers": ({"id2label": {"1": "a"}}, "config.json: id2label must name 1 labels"),
    "no labels": ({"id2label": ["a"]}, "config.json: id2label must name 1 labels"),
    "an activation that is none": ({"sbert_ce_default_activation_function": 3}, "activation_fn must be the name of a"),
    "an unknown activation": ({"sentence_transformers": {"activation_fn": "torch.nn.Mish"}},
                              "config.json: activation_fn must be one of .*, got 'torch.nn.Mish'"),
    "no object": ({"sentence_transformers": "x"}, "config.json: sentence_transformers must be an object"),
    "another architecture": ({"model_type": "llama"}, "model_type must be one of"),
    "hostile sizes": ({"vocab_size": 2**60}, "tensor .*word_embeddings.weight must have shape"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), CONFIGURATIONS_REFUSED.values(), ids=CONFIGURATIONS_REFUSED)
def test_configurations_refused(tmp_path, fields, message):
    encoder = random_classifier("bert")
    encoder.save(tmp_path, {"config.json": encoder.config | fields})
    with pytest.raises(ValueError, match=message):
        CrossEncoder.from_pretrained(tmp_path)


TENSORS_REFUSED = {
    "bert.pooler.dense.weight": (None, "must hold the tensor pooler.dense.weight once, got 0"),
    "bert.pooler.dense.bias": (np.zeros(7, np.float32), r"pooler.dense.bias must have shape \(24,\), got \(7,\)"),
    "classifier.weight": (np.zeros((1, 7), np.float32), r"classifier.weight must have shape \(1, 24\), got \(1, 7\)"),
    "classifier.bias": (None, "must hold the tensor classifier.bias"),
}


@pytest.mark.parametrize("name", TENSORS_REFUSED)
def test_tensors_refused(tmp_path, name):
    encoder, (x, message) = random_classifier("bert"), TENSORS_REFUSED[name]
    tensors = {key: y for key, y in encoder.tensors.items() if key != name} | ({} if x is None else {name: x})
    encoder.save(tmp_path, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        CrossEncoder.from_pretrained(tmp_path)


def test_a_vector_for_a_matrix(tmp_path):
    encoder = random_classifier("bert")
    encoder.save(tmp_path, tensors=encoder.tensors | {"classifier.weight": np.zeros(24, np.float32)})
    with pytest.raises(ValueError, match=r"must hold the tensor classifier.weight, a matrix, got \(24,\)"):
        CrossEncoder.from_pretrained(tmp_path)


FILES_REFUSED = {
    "another family": ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}},
                       "must be a CrossEncoder's folder, got that of a SparseEncoder"),
    "another task": ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}},
                     "transformer_task must be \"sequence-classification\", got \"fill-mask\""),
    "no task": ({"sentence_bert_config.json": {"max_seq_length": 9}}, "transformer_task must be .* got null"),
    "two modules": ({"modules.json": [*listed()["modules.json"]] * 2}, "type must be Transformer once, got 2"),
    "another module": ({"modules.json": [{"path": "", "type": "sentence_transformers.models.Pooling"}]},
                       "modules.json: type must be one of .*Transformer, got"),
    "a path outside": ({"modules.json": [listed()["modules.json"][0] | {"path": "../x"}]}, "json: path must be"),
    "input names": ({"tokenizer_config.json": {"model_input_names": "ids"}}, "model_input_names must be a list"),
    "a short maximum": ({"tokenizer_config.json": {"model_max_length": 3}}, "must allow at least 4 tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), FILES_REFUSED.values(), ids=FILES_REFUSED)
def test_files_refused(tmp_path, files, message):
    random_classifier("bert").save(tmp_path, listed() | files)
    with pytest.raises(ValueError, match=message):
        CrossEncoder.from_pretrained(tmp_path)


def test_a_tokenizer_that_adds_nothing(tmp_path):
    encoder = random_classifier("bert")
    encoder.save(tmp_path)
    tokenizer = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    write_json(tmp_path, {"tokenizer.json": json.loads(tokenizer) | {"post_processor": None}})
    model = CrossEncoder.from_pretrained(tmp_path)
    assert model.predict([("a", "")]).shape == (1,)
    with pytest.raises(ValueError, match=r"pairs\[1\] must have tokens, got none"):
        model.predict([("a", ""), ("", "")])


def test_nothing_of_a_folder_is_run(tmp_path):
    encoder = random_classifier("bert", auto_map={"AutoModelForSequenceClassification": "trap.Trap"})
    encoder.save(tmp_path)
    write_json(tmp_path, {"trap.py": "raise SystemExit('the code of a folder was run')"})
    assert CrossEncoder.from_pretrained(tmp_path).predict(PAIRS).shape == (54,)
