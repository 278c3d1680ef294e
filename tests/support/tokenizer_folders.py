"""Folders whose tokenizer.json disagrees with what a tokenizer class does by itself, in three kinds of vocabulary."""

import functools
import json

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from support import encoders

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéÉâ中文.,!?'[]<>/0123456789"

TEXTS = [
    "Hello the World, it's the end.",
    "ÉCOLE déjà vue, Ångström; İstanbul",
    "中文the字",
    "a [MASK] b[mask]c [SEP] <mask> <s> x</s>",
    "  the  blanks\tand\nlines ",
    "the new_thing, a New_Thing anew_thing",
    "",
    "\N{GRINNING FACE} \x00\x7f\ufffd",
    "the " * 60,
]

_BERT_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SENTENCE_MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _word_pieces():
    words = ["the", "The", "##he", "##nd", "hello", "Hello", "ecole", "École", "ÉCOLE", "deja", "déjà", "<s>", "</s>"]
    tokens = [*_BERT_MARKS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    found = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return found, _BERT_MARKS, ("[CLS]", "[SEP]")


def _word_pieces_in_sentences():
    found, _, _ = _word_pieces()
    vocabulary = found.get_vocab()
    vocabulary |= {"<pad>": len(vocabulary), "<mask>": len(vocabulary) + 1}
    found.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return found, ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], ("<s>", "</s>")


def _byte_pairs():
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "t"), ("l", "l")]
    tokens = [*_SENTENCE_MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return found, _SENTENCE_MARKS, ("<s>", "</s>")


def _unigrams(marks=tuple(_SENTENCE_MARKS), first="<s>"):
    pieces = ["▁", *LETTERS, "▁the", "the", "▁The", "ll", "▁a", "nd"]
    scored = [(mark, 0.0) for mark in marks] + [(x, -2.0 - 0.01 * i) for i, x in enumerate(pieces)]
    found = Tokenizer(models.Unigram(scored, unk_id=marks.index("<unk>"), byte_fallback=False))
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return found, list(marks), (first, "</s>")


def _byte_pairs_of_words():
    found, _, _ = _byte_pairs()
    vocabulary = found.get_vocab()
    vocabulary |= {"<|endoftext|>": len(vocabulary)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "t"), ("l", "l")]
    found.model = models.BPE(vocabulary, merges)
    return found, ["<|endoftext|>"], ("<|endoftext|>", "<|endoftext|>")


def _pieces_with_bytes():
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "t"), ("l", "l")]
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*marks, *(f"<0x{i:02X}>" for i in range(256)), "▁", *LETTERS[:70], *map("".join, merges)]
    tokens = list(dict.fromkeys(tokens))
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return found, marks, ("<bos>", "<eos>")


def _lower_unigrams():
    marks = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    pieces = ["▁", *LETTERS, "▁the", "the", "▁The", "ll", "▁a", "nd"]
    scored = [(mark, 0.0) for mark in marks] + [(x, -2.0 - 0.01 * i) for i, x in enumerate(pieces)]
    found = Tokenizer(models.Unigram(scored, unk_id=1, byte_fallback=False))
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return found, marks, ("[CLS]", "[SEP]")


# What vocabulary a model_type has, or a class that the BERT of `save` names.
KINDS = {
    "bert": _word_pieces,
    "camembert": _unigrams,
    "distilbert": _word_pieces,
    "mpnet": _word_pieces_in_sentences,
    "roberta": _byte_pairs,
    "t5": lambda: _unigrams(("<pad>", "</s>", "<unk>"), "<unk>"),
    "xlm-roberta": _unigrams,
    "AlbertTokenizer": _lower_unigrams,
    "GemmaTokenizer": _pieces_with_bytes,
    "Qwen2Tokenizer": _byte_pairs_of_words,
}


def tokenizer(model_type):
    """tokenizer.json of such a model."""
    found, marks, ends = KINDS[model_type]()
    found.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    found.post_processor = processors.TemplateProcessing(
        [ends[0], "$A", ends[1]], special_tokens=[(end, found.token_to_id(end)) for end in ends]
    )
    return found


@functools.cache
def _encoder(model_type):
    if model_type == "t5":
        return _t5()
    return encoders.random_encoder("bert" if model_type.endswith("Tokenizer") else model_type, vocab_size=400)


def _t5():
    """The smallest model of that kind: its numbers do not matter."""
    sizes = {"vocab_size": 400, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "n_positions": 40}
    square, attention = np.zeros((8, 8), np.float32), "layer.0.SelfAttention"
    block = {f"{attention}.{part}": square for part in "qkvo"}
    block |= {f"{attention}.relative_attention_bias": np.zeros((32, 2), np.float32)}
    block |= {f"layer.1.DenseReluDense.{part}": square for part in ("wi", "wo")}
    block |= {f"layer.{i}.layer_norm": np.ones(8, np.float32) for i in (0, 1)}
    tensors = {f"encoder.block.0.{name}.weight": x for name, x in block.items()}
    tensors |= {"encoder.final_layer_norm.weight": block["layer.0.layer_norm"]}
    tensors |= {"shared.weight": np.zeros((400, 8), np.float32)}
    return encoders.Encoder({"model_type": "t5", "pad_token_id": 0, **sizes}, tensors)


def save(folder, model_type, config=None, files=None, tokenizer_json=True):
    """A model whose tokenizer_config.json is `config`, if that is not None, and such `files`."""
    _encoder(model_type).save(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").unlink()
    if tokenizer_json:
        tokenizer(model_type).save(str(folder / "tokenizer.json"))
    encoders.write_json(folder, ({} if config is None else {"tokenizer_config.json": config}) | (files or {}))
    return folder


def change_json(path, change):
    """Let a function change what a JSON file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
