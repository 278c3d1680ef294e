"""Token ids of folders against transformers: every field that changes them, in every class of tokenizers."""

import itertools
import os
import struct

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # what is on this machine is enough

for package in ("safetensors", "tokenizers", "ml_dtypes"):
    pytest.importorskip(package)
transformers = pytest.importorskip("transformers")

from tokenizers import models, normalizers

from fastattn.models import SentenceEncoder
from support.tokenizer_folders import TEXTS, change_json, save, tokenizer


def ids(model, text):
    return model.tokenize(text)["input_ids"][0].tolist()


def assert_alike(folder):
    """The same ids as transformers' own class makes of the folder."""
    model, peer = SentenceEncoder.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ids(model, text) == peer(text, truncation=True, max_length=model.max_length)["input_ids"], text
    return model


def fields(**values):
    """All combinations of these values of fields; ABSENT leaves a field out."""
    for chosen in itertools.product(*values.values()):
        yield {name: x for name, x in zip(values, chosen, strict=True) if x is not ABSENT}


ABSENT = object()
CLASSES = {
    "bert": (ABSENT, "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "PreTrainedTokenizerFast"),
    "distilbert": (ABSENT, "DistilBertTokenizerFast", "BertTokenizer", "TokenizersBackend"),
    "mpnet": (ABSENT, "MPNetTokenizer", "MPNetTokenizerFast", "PreTrainedTokenizerFast"),
    "t5": (ABSENT, "T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast"),
    "roberta": (ABSENT, "RobertaTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast"),
    "xlm-roberta": (ABSENT, "XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "PreTrainedTokenizerFast"),
    "camembert": (ABSENT, "CamembertTokenizer", "CamembertTokenizerFast", "TokenizersBackend"),
}
ROWS = [(model_type, name) for model_type, names in CLASSES.items() for name in names]
FLAGS = {
    "WordPiece": {
        "do_lower_case": (ABSENT, True, False),
        "strip_accents": (ABSENT, None, True, False),
        "tokenize_chinese_chars": (ABSENT, True, False),
    },
    "BPE": {"add_prefix_space": (ABSENT, True, False)},
    "Unigram": {"add_prefix_space": (ABSENT, True, False)},
}


@pytest.mark.parametrize(("model_type", "name"), ROWS, ids=[f"{m} {n if n is not ABSENT else ''}" for m, n in ROWS])
def test_flags(tmp_path, model_type, name):
    """tokenizer_config.json's, or else the class's own, before those of tokenizer.json."""
    flags = FLAGS[type(tokenizer(model_type).model).__name__]
    seen = set()
    for config in fields(tokenizer_class=(name,), **flags):
        model = assert_alike(save(tmp_path, model_type, config))
        seen.add(str([ids(model, text) for text in TEXTS]))
    as_it_is = name in ("PreTrainedTokenizerFast", "TokenizersBackend")
    assert (len(seen) == 1) == (as_it_is or model_type == "t5")  # whose class has none


# Classes of models that any model may name.
NAMED = {
    "AlbertTokenizer": {"do_lower_case": (ABSENT, False), "keep_accents": (ABSENT, True)},
    "GemmaTokenizer": {},
    "Qwen2Tokenizer": {"add_prefix_space": (ABSENT, True)},
}
ENDS = {"add_bos_token": (ABSENT, False, True), "add_eos_token": (ABSENT, True)}


@pytest.mark.parametrize("stored", [True, False], ids=["own ends", "no ends"])
@pytest.mark.parametrize("ending", ["", "Fast"])
@pytest.mark.parametrize("name", NAMED)
def test_flags_of_named_classes(tmp_path, name, ending, stored):
    """The tokens added to a text are tokenizer.json's, whatever fields say of them."""
    for config in fields(tokenizer_class=(f"{name}{ending}", "PreTrainedTokenizerFast"), **NAMED[name], **ENDS):
        save(tmp_path, name, config)
        if not stored:
            change_json(tmp_path / "tokenizer.json", lambda content: content.update(post_processor=None))
        assert_alike(tmp_path)


@pytest.mark.parametrize("model_type", CLASSES)
def test_no_tokenizer_config(tmp_path, model_type):
    assert_alike(save(tmp_path, model_type))


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_class_named_by_the_model(tmp_path, model_type):
    """In config.json, where tokenizer_config.json names none."""
    save(tmp_path, model_type, {})
    change_json(tmp_path / "config.json", lambda config: config.update(tokenizer_class="PreTrainedTokenizerFast"))
    assert_alike(tmp_path)


def added(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | flags


def marks(model_type):
    return {str(i): token for i, token in tokenizer(model_type).get_added_tokens_decoder().items()}


OTHER_MARKS = {
    "bert": {"cls_token": "[SEP]", "sep_token": "[CLS]", "unk_token": "a"},
    "distilbert": {"sep_token": "[MASK]", "pad_token": "[UNK]"},
    "mpnet": {"cls_token": "</s>", "sep_token": "<s>", "unk_token": "a"},
    "t5": {"eos_token": "<unk>", "pad_token": "</s>"},
    "roberta": {"cls_token": "</s>", "sep_token": "<s>", "bos_token": "<mask>"},
    "xlm-roberta": {"bos_token": "</s>", "eos_token": "<s>", "sep_token": "<mask>"},
    "camembert": {"bos_token": "</s>", "eos_token": "<mask>"},
}
NEW = "new_thing"


def tokens(model_type):
    """Ways to name tokens: {a name: tokenizer_config.json, and other files}."""
    listed = {"4": added("[MASK]", special=True), "399": added(NEW, single_word=True, normalized=True)}
    described = {**added(NEW, lstrip=True, normalized=True), "__type": "AddedToken"}
    return {
        "other marks": (OTHER_MARKS[model_type], {}),
        "a new mark": ({"mask_token": NEW}, {}),
        "a new mark with flags": ({"mask_token": described}, {}),
        "a mark of its own": ({"image_token": NEW, "cls_token_type": 3}, {}),
        "more marks": ({"additional_special_tokens": [NEW, "déjà"]}, {}),
        "more marks with flags": ({"additional_special_tokens": [described]}, {}),
        "more marks by a newer name": ({"extra_special_tokens": [NEW]}, {}),
        "more marks by names": ({"extra_special_tokens": {"thing_token": NEW}}, {}),
        "a list of all": ({"added_tokens_decoder": listed}, {}),
        "a list without any": ({"added_tokens_decoder": {}}, {}),
        "split": ({"split_special_tokens": True}, {}),
        "not split": ({"split_special_tokens": False}, {}),
        "a map of former times": ({}, {"special_tokens_map.json": OTHER_MARKS[model_type]}),
        "a map with flags": ({}, {"special_tokens_map.json": {"mask_token": added(NEW, rstrip=True)}}),
        "a map that does not count": (
            {"added_tokens_decoder": listed},
            {"special_tokens_map.json": OTHER_MARKS[model_type] | {"mask_token": "unheard"}},
        ),
        "tokens of former times": ({}, {"added_tokens.json": {NEW: 390, "the": 391}}),
    }


WAYS = [(model_type, way) for model_type in CLASSES for way in tokens(model_type)]


@pytest.mark.parametrize(("model_type", "way"), WAYS, ids=[" ".join(row) for row in WAYS])
def test_tokens(tmp_path, model_type, way):
    """Special tokens, and tokens beside the vocabulary, wherever they are named."""
    config, files = tokens(model_type)[way]
    for name in (CLASSES[model_type][1], "PreTrainedTokenizerFast"):
        assert_alike(save(tmp_path / name, model_type, {"tokenizer_class": name} | config, files))


@pytest.mark.parametrize("model_type", CLASSES)
def test_truncation(tmp_path, model_type):
    """The side is tokenizer_config.json's, or else tokenizer.json's; so is the length, by an old name as well."""
    for name in CLASSES[model_type][1:]:
        for direction in ("left", "right"):
            for config in fields(truncation_side=(ABSENT, "left", "right"), max_len=(ABSENT, 9)):
                folder = save(tmp_path, model_type, {"tokenizer_class": name} | config)
                stored = tokenizer(model_type)
                stored.enable_truncation(7, direction=direction)
                stored.save(str(folder / "tokenizer.json"))
                model = assert_alike(folder)
                assert model.max_length == config.get("max_len", 40)


def test_models_that_a_class_does_not_leave_as_they_are(tmp_path):
    """What tokenizer.json's model says beside its vocabulary."""
    for model_type, changes in {
        "bert": {"max_input_chars_per_word": 2, "unk_token": "a"},
        "roberta": {"unk_token": "a", "fuse_unk": True, "ignore_merges": True, "dropout": 0.5},
    }.items():
        folder = save(tmp_path / model_type, model_type)
        change_json(folder / "tokenizer.json", lambda content, changes=changes: content["model"].update(changes))
        assert_alike(folder)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
@pytest.mark.parametrize("sequence", [False, True])
def test_the_map_of_characters_stays(tmp_path, model_type, sequence):
    """Of the normalisers of tokenizer.json a SentencePiece class keeps that alone."""
    folder, stored = save(tmp_path, model_type), tokenizer(model_type)
    parts = [normalizers.Precompiled(charsmap("h", "t")), normalizers.Replace("a", "b")]
    stored.normalizer = normalizers.Sequence(parts) if sequence else parts[0]
    stored.save(str(folder / "tokenizer.json"))
    assert ids(assert_alike(folder), "the hen") == ids(SentenceEncoder.from_pretrained(folder), "tte ten")


def charsmap(character, becomes):
    """A map of one character as SentencePiece writes it: a double-array trie, and what its leaves point to."""
    units, byte, leaf = np.zeros(512, "<u4"), ord(character), 256
    units[byte] = byte | 1 << 8 | (byte ^ leaf) << 10
    return struct.pack("<I", units.nbytes) + units.tobytes() + becomes.encode() + b"\0"


# Vocabularies without tokenizer.json


def write_vocabulary(folder, model_type):
    tokenizer(model_type).model.save(str(folder))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("way", ["none", "flags", *tokens("bert")])
def test_vocabularies(tmp_path, model_type, way):
    """vocab.txt of BERT, vocab.json and merges.txt of RoBERTa."""
    ways = {"none": (None, {}), "flags": ({"do_lower_case": False, "add_prefix_space": True}, {})} | tokens(model_type)
    config, files = ways[way]
    write_vocabulary(save(tmp_path, model_type, config, files, tokenizer_json=False), model_type)
    assert_alike(tmp_path)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_vocabularies_with_other_ends_of_lines(tmp_path, ends):
    write_vocabulary(save(tmp_path, "bert", tokenizer_json=False), "bert")
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "vocab.txt").write_bytes(ends.join(lines).encode())
    assert_alike(tmp_path)


def test_a_tokenizer_json_counts_before_a_vocabulary(tmp_path):
    save(tmp_path, "bert")
    (tmp_path / "vocab.txt").write_text("nothing\n", encoding="utf-8")
    assert_alike(tmp_path)


@pytest.mark.parametrize(("model_type", "name", "advice"), [
    ("roberta", "vocab.json", "folder must hold merges.txt"),
    ("roberta", "merges.txt", "folder must hold vocab.json"),
    ("xlm-roberta", "sentencepiece.bpe.model", "must hold tokenizer.json, .*but sentencepiece.bpe.model: .*AutoTok"),
    ("camembert", "sentencepiece.bpe.model", "must hold tokenizer.json, .*but sentencepiece.bpe.model: .*AutoTok"),
    ("xlm-roberta", "vocab.txt", "must hold tokenizer.json, .*but vocab.txt: .*AutoTokenizer"),
    ("bert", "README.md", "must hold tokenizer.json, got .* which does not$"),
])  # fmt: skip
def test_vocabularies_that_are_not_read(tmp_path, model_type, name, advice):
    folder = save(tmp_path, model_type, tokenizer_json=False)
    (folder / name).write_bytes(b"{}")
    with pytest.raises(FileNotFoundError, match=advice):
        SentenceEncoder.from_pretrained(folder)


# What is refused


@pytest.mark.parametrize(("model_type", "config", "message"), [
    ("bert", {"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class must be one of .*'BertJapaneseTokenizer'"),
    ("roberta", {"tokenizer_class": "BertweetTokenizer"}, "tokenizer_class must be one of .*'BertweetTokenizer'"),
    ("bert", {"tokenizer_class": ["BertTokenizer"]}, "tokenizer_class must be one of"),
    ("bert", {"tokenizer_class": "RobertaTokenizer"}, "tokenizer.json must hold a BPE vocabulary.* got WordPiece"),
    ("roberta", {"tokenizer_class": "BertTokenizer"}, "tokenizer.json must hold a WordPiece vocabulary.* got BPE"),
    ("bert", {"do_lower_case": 1}, "tokenizer_config.json: do_lower_case must be true or false, got 1"),
    ("bert", {"do_lower_case": None}, "do_lower_case must be true or false, got None"),
    ("bert", {"strip_accents": "yes"}, "strip_accents must be true or false or null, got 'yes'"),
    ("bert", {"tokenize_chinese_chars": []}, "tokenize_chinese_chars must be true or false"),
    ("roberta", {"add_prefix_space": 0}, "add_prefix_space must be true or false"),
    ("bert", {"split_special_tokens": 1}, "split_special_tokens must be true or false"),
    ("bert", {"cls_token": None}, "cls_token must be a token, got null"),
    ("bert", {"sep_token": {"lstrip": True}}, "sep_token must be a token, or an object with its content"),
    ("xlm-roberta", {"eos_token": None}, "eos_token must be a token, got null"),
    ("bert", {"additional_special_tokens": 7}, "additional_special_tokens must be a list of tokens, got 7"),
    ("bert", {"additional_special_tokens": [7]}, "additional_special_tokens must be a token, or"),
    ("bert", {"added_tokens_decoder": []}, "added_tokens_decoder must be an object of tokens by their ids"),
    ("bert", {"added_tokens_decoder": {"x": "a"}}, "added_tokens_decoder must be an object of tokens by their ids"),
    ("bert", {"added_tokens_decoder": {"1": {"content": 5}}}, "added_tokens_decoder must be a token"),
    ("bert", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files must be absent"),
])  # fmt: skip
def test_refused_fields(tmp_path, model_type, config, message):
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(save(tmp_path, model_type, config))


def test_a_sentencepiece_model_with_another_unknown_token(tmp_path):
    folder, stored = save(tmp_path, "xlm-roberta"), tokenizer("xlm-roberta")
    change_json(folder / "tokenizer.json", lambda content: content["model"].update(unk_id=4))
    with pytest.raises(ValueError, match=r"tokenizer\.json must give unknown text the id 3, got \[4\]"):
        SentenceEncoder.from_pretrained(folder)
    assert isinstance(stored.model, models.Unigram)


def test_ids_reach_the_model(tmp_path):
    """The embedding is that of transformers' ids."""
    folder = save(tmp_path, "bert", {"do_lower_case": True})
    model, peer = SentenceEncoder.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[:4]:
        expected = model(np.array([peer(text)["input_ids"]]))[0].mean(axis=0)
        np.testing.assert_allclose(model.encode(text), expected, rtol=0, atol=1e-6)
