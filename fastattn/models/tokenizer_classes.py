"""The tokenizer classes of transformers: the parts of each besides the vocabulary, one row each.

A class takes only the vocabulary (and the merges) of tokenizer.json. Normalisation, splitting and the tokens added to a
text follow from the fields of tokenizer_config.json and the defaults of the class; tokenizer.json's own are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer

# A text that no vocabulary holds: a character that Unicode will never assign.
_UNKNOWN = "\U0010ffff"


class TokenizerClass(NamedTuple):
    """How a class makes a tokenizer."""

    model: type[models.Model]
    tokens: dict[str, str]  # defaults of the fields that name its special tokens
    extra: tuple[str, ...]  # more special tokens, if tokenizer_config.json names none
    needed: tuple[str, ...]  # fields of special tokens that must not be null
    greedy: tuple[str, ...]  # fields of special tokens that strip the whitespace before them by default
    flags: dict[str, bool | None]  # defaults of its other fields; all are bool, or null where None is the default
    # Adds the parts to a tokenizer that has the vocabulary alone, given the fields and the normaliser of
    # tokenizer.json. Returns a str, for an error, if the vocabulary is unsuitable.
    parts: Callable[[Tokenizer, dict[str, Any], normalizers.Normalizer | None], str | None]
    # Adds tokens to a text or a pair of texts, given the fields and the post-processor of tokenizer.json.
    post_processor: Callable[
        [Tokenizer, dict[str, Any], processors.PostProcessor | None], processors.PostProcessor | None
    ]
    token_types: bool = False  # whether models get the types that this gives to tokens, 0 and 1
    # Files that hold the vocabulary if there is no tokenizer.json, and how to read them.
    files: tuple[str, ...] = ()
    read: Callable[..., models.Model] | None = None


def _bert(tokenizer: Tokenizer, fields: dict[str, Any], _: object) -> None:
    model = tokenizer.model
    model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word = fields["unk_token"], "##", 100
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=fields["tokenize_chinese_chars"],
        strip_accents=fields["strip_accents"],
        lowercase=fields["do_lower_case"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _roberta(tokenizer: Tokenizer, fields: dict[str, Any], _: object) -> None:
    model = tokenizer.model
    model.dropout = model.unk_token = None
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    model.continuing_subword_prefix = model.end_of_word_suffix = ""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=fields["add_prefix_space"])


def _sentencepiece(
    unknown: Callable[[Tokenizer, dict[str, Any]], int], *, prefix: bool = False
) -> Callable[..., str | None]:
    """The parts of a Unigram model in which unknown text has the id that `unknown` returns.

    With `prefix`, texts begin with a space whatever the field add_prefix_space says.
    """

    def parts(tokenizer: Tokenizer, fields: dict[str, Any], stored: normalizers.Normalizer | None) -> str | None:
        needed, found = unknown(tokenizer, fields), [token.id for token in tokenizer.model.tokenize(_UNKNOWN)]
        if found != [needed]:
            return f"give unknown text the id {needed}, got {found}"
        stored = list(stored) if isinstance(stored, normalizers.Sequence) else [stored]
        for normalizer in stored:
            if isinstance(normalizer, normalizers.Precompiled):
                tokenizer.normalizer = normalizer
                break
        scheme = "always" if prefix or fields["add_prefix_space"] else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
        )
        return None

    return parts


def _gpt2(tokenizer: Tokenizer, fields: dict[str, Any], _: object) -> None:
    """Qwen's: byte pairs of words that an expression cuts."""
    _roberta(tokenizer, fields, None)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated", invert=False)
    pairs = pre_tokenizers.ByteLevel(add_prefix_space=fields["add_prefix_space"], use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pairs])


# Contractions, words with what is before them, single digits, signs, line ends, and blanks but the last.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gemma(tokenizer: Tokenizer, fields: dict[str, Any], _: object) -> None:
    model = tokenizer.model
    model.dropout, model.unk_token = None, fields["unk_token"]
    model.fuse_unk = model.byte_fallback = True
    model.ignore_merges = False
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)


def _albert(tokenizer: Tokenizer, fields: dict[str, Any], stored: normalizers.Normalizer | None) -> str | None:
    wrong = _sentencepiece(lambda tokenizer, fields: 1)(tokenizer, fields, stored)
    charsmap = tokenizer.normalizer  # None: the file has none
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [] if fields["keep_accents"] else [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] if fields["do_lower_case"] else []
    tokenizer.normalizer = normalizers.Sequence(steps + ([] if charsmap is None else [charsmap]))
    return wrong


def _stored(
    tokenizer: Tokenizer, fields: dict[str, Any], stored: processors.PostProcessor | None
) -> processors.PostProcessor | None:
    """Add what tokenizer.json says, if anything; transformers then ignores add_bos_token and add_eos_token."""
    del tokenizer, fields
    return stored


def _ends(
    first: str, last: str, second: str
) -> Callable[[Tokenizer, dict[str, Any], processors.PostProcessor | None], processors.PostProcessor]:
    """Add the tokens of these two fields before and after a text.

    `second` describes the second text of a pair in the library's words: $B is the text, $last the last token.
    """

    def post_processor(tokenizer: Tokenizer, fields: dict[str, Any], _: object) -> processors.PostProcessor:
        ends = [str(fields[field]) for field in (first, last)]
        ids = dict(zip(ends, map(tokenizer.token_to_id, ends), strict=True))
        single = [ends[0], "$A", ends[1]]
        pair = [*single, *(piece.replace("$last", ends[1]) for piece in second.split())]
        return processors.TemplateProcessing(single, pair, special_tokens=list(ids.items()))

    return post_processor


def _t5_end(tokenizer: Tokenizer, fields: dict[str, Any], _: object) -> processors.PostProcessor:
    """The token is this one, its id that of the field."""
    ends = [("</s>", tokenizer.token_to_id(str(fields["eos_token"])))]
    return processors.TemplateProcessing(["$A", "</s>"], special_tokens=ends)


BERT = TokenizerClass(
    models.WordPiece,
    tokens={
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    extra=(),
    needed=("unk_token", "sep_token", "cls_token"),
    greedy=(),
    flags={"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
    parts=_bert,
    post_processor=_ends("cls_token", "sep_token", "$B:1 $last:1"),
    token_types=True,
    files=("vocab.txt",),
    read=models.WordPiece.from_file,
)
MPNET = BERT._replace(
    tokens=BERT.tokens
    | {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    greedy=("mask_token",),
)
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
ROBERTA = TokenizerClass(
    models.BPE,
    tokens=_ROBERTA_TOKENS,
    extra=(),
    needed=("sep_token", "cls_token"),
    greedy=(),
    flags={"add_prefix_space": False},
    parts=_roberta,
    post_processor=_ends("cls_token", "sep_token", "$last $B $last"),
    files=("vocab.json", "merges.txt"),
    read=models.BPE.from_file,
)
XLM_ROBERTA = TokenizerClass(
    models.Unigram,
    tokens=_ROBERTA_TOKENS,
    extra=(),
    needed=("bos_token", "eos_token"),
    greedy=(),
    flags={"add_prefix_space": True},
    parts=_sentencepiece(lambda tokenizer, fields: 3),
    post_processor=_ends("bos_token", "eos_token", "$last $B $last"),
)


def _stored_or_ends(
    tokenizer: Tokenizer, fields: dict[str, Any], stored: processors.PostProcessor | None
) -> processors.PostProcessor:
    return stored or _ends("cls_token", "sep_token", "$B:1 $last:1")(tokenizer, fields, None)


_GEMMA_TOKENS = ("unk_token", "bos_token", "eos_token", "pad_token", "mask_token")
CAMEMBERT = XLM_ROBERTA._replace(
    extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    needed=("bos_token", "eos_token", "unk_token"),
    greedy=("mask_token",),
    parts=_sentencepiece(lambda tokenizer, fields: tokenizer.model.token_to_id(str(fields["unk_token"])) or 0),
)
T5 = TokenizerClass(
    models.Unigram,
    tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    extra=tuple(f"<extra_id_{i}>" for i in range(100)),
    needed=("eos_token",),
    greedy=(),
    flags={},
    parts=_sentencepiece(lambda tokenizer, fields: 2, prefix=True),
    post_processor=_t5_end,
)

QWEN2 = TokenizerClass(
    models.BPE,
    tokens=dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    extra=(),
    needed=(),
    greedy=(),
    flags={"add_prefix_space": False},
    parts=_gpt2,
    post_processor=_stored,
)
GEMMA = TokenizerClass(
    models.BPE,
    tokens={name: f"<{name.removesuffix('_token')}>" for name in _GEMMA_TOKENS},
    extra=(),
    needed=("unk_token",),
    greedy=(),
    flags={},
    parts=_gemma,
    post_processor=_stored,
)
ALBERT = TokenizerClass(
    models.Unigram,
    tokens=BERT.tokens | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
    extra=(),
    needed=("sep_token", "cls_token"),
    greedy=(),
    flags={"add_prefix_space": True, "do_lower_case": True, "keep_accents": False},
    parts=_albert,
    post_processor=_stored_or_ends,
)

# By tokenizer_class, without the suffix "Fast". None: tokenizer.json is used as it is.
TOKENIZER_CLASSES = {
    "AlbertTokenizer": ALBERT,
    "BertTokenizer": BERT,
    "CamembertTokenizer": CAMEMBERT,
    "DistilBertTokenizer": BERT._replace(token_types=False),
    "ElectraTokenizer": BERT,
    "MPNetTokenizer": MPNET,
    "GemmaTokenizer": GEMMA,
    "PreTrainedTokenizer": None,
    "Qwen2Tokenizer": QWEN2,
    "RobertaTokenizer": ROBERTA,
    "T5Tokenizer": T5,
    "TokenizersBackend": None,
    "XLMRobertaTokenizer": XLM_ROBERTA,
}
