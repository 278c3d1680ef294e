"""The tokenizer of a folder, read from its files as transformers' AutoTokenizer does.

The class is that of tokenizer_config.json, else of config.json, else the default of the model_type;
tokenizer_classes.py describes each class.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from fastattn.models.folders import LARGEST_VOCABULARY, existing, read_json
from fastattn.models.tokenizer_classes import TOKENIZER_CLASSES, TokenizerClass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Fields that name a special token. Other fields with this ending name special tokens of the model's own.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Attributes of an added token.
_TOKEN_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")

# Fields that name other files than those that are read here: of tokenizer_config.json, and of the tokenizer's arguments
# in sentence_bert_config.json.
_OTHER_FILES = ("fast_tokenizer_files",)
_OTHER_SOURCES = ("gguf_file", "merges", "merges_file", "tokenizer_file", "tokenizer_type", "vocab", "vocab_file")


class TokenizerFiles(NamedTuple):
    """The tokenizer of a folder, and its settings."""

    tokenizer: Tokenizer
    path: Path  # of the vocabulary, for errors
    config: Path  # tokenizer_config.json
    fields: dict[str, Any]  # its fields, with the overrides of sentence_bert_config.json
    special_ids: frozenset[int]
    token_types: bool  # whether the model gets the types of tokens that the tokenizer gives


@contextlib.contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turn the library's exceptions into a ValueError that names the file.

    It raises bare Exceptions, and a PanicException, which is not an Exception and cannot be imported.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{path} must be a tokenizer that the tokenizers library can use: {error}") from error
        raise


def read_tokenizer(folder: Path, default_class: str, changes: dict[str, Any]) -> TokenizerFiles:
    """Read the tokenizer of a folder. `changes` are sentence_bert_config.json's overrides of tokenizer_config.json."""
    config = folder / "tokenizer_config.json"
    stored = read_json(config, dict, default={})
    kind = _class(folder, stored.get("tokenizer_class") or default_class)
    for names, source in ((_OTHER_FILES, stored), (_OTHER_SOURCES, changes)):
        for name in names:
            if source.get(name) is not None:
                raise ValueError(f"{config}: {name} must be absent, as no other files are read, got {source[name]!r}")
    fields = stored | changes
    if "added_tokens_decoder" not in fields:  # old format: the tokens are in files of their own
        listed = read_json(folder / "special_tokens_map.json", dict, default={})
        fields |= {field: value for field, value in listed.items() if not changes.get(field)}
    _check_flags(config, kind, fields)
    special = _special_tokens(config, kind, fields)
    path, tokenizer = _vocabulary(folder, kind)
    added = _added_tokens(folder, fields, special, tokenizer)
    if tokenizer.truncation:
        fields.setdefault("truncation_side", tokenizer.truncation["direction"])
    ends = tokenizer.post_processor
    if kind:
        tokenizer = _made(path, kind, fields, tokenizer)
    with library_errors(path):
        known = {token.content for token in (*added, *tokenizer.get_added_tokens_decoder().values())}
        tokenizer.add_tokens([*added, *(token for token in special if token.content not in known)])
        if kind:
            tokenizer.post_processor = kind.post_processor(tokenizer, fields, ends)
        tokenizer.encode_special_tokens = fields["split_special_tokens"]
        ids = frozenset(tokenizer.token_to_id(token.content) for token in special)
    return TokenizerFiles(tokenizer, path, config, fields, ids, _token_types(config, kind, fields))


def _token_types(path: Path, kind: TokenizerClass | None, fields: dict[str, Any]) -> bool:
    names = fields.get("model_input_names")
    if names is None:
        return kind is not None and kind.token_types
    if not isinstance(names, list):
        raise ValueError(f"{path}: model_input_names must be a list of names, got {names!r:.80}")
    return "token_type_ids" in names


def _class(folder: Path, name: Any) -> TokenizerClass | None:
    if not isinstance(name, str) or name.removesuffix("Fast") not in TOKENIZER_CLASSES:
        known = ", ".join(TOKENIZER_CLASSES)
        raise ValueError(f"{folder}: tokenizer_class must be one of {known}, each with Fast or without, got {name!r}")
    return TOKENIZER_CLASSES[name.removesuffix("Fast")]


def _check_flags(path: Path, kind: TokenizerClass | None, fields: dict[str, Any]) -> None:
    """Raise for a flag that is not a bool; set those that are absent."""
    for field, default in {**(kind.flags if kind else {}), "split_special_tokens": False}.items():
        value = fields.setdefault(field, default)
        if type(value) is not bool and (value is not None or default is not None):
            null = " or null" if default is None else ""
            raise ValueError(f"{path}: {field} must be true or false{null}, got {value!r}")


def _special_tokens(path: Path, kind: TokenizerClass | None, fields: dict[str, Any]) -> list[AddedToken]:
    """The special tokens that the fields name, or else the class; `fields` is updated with their contents."""
    more = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or (kind.extra if kind else ())
    if not isinstance(more, list | tuple | dict):
        raise ValueError(f"{path}: additional_special_tokens must be a list of tokens, got {more!r}")
    defaults = kind.tokens if kind else {}
    named = {field: fields.get(field, defaults.get(field)) for field in _NAMED}
    named |= {field: x for field, x in fields.items() if field.endswith("_token") and isinstance(x, str | dict)}
    named |= more if isinstance(more, dict) else {}
    tokens = []
    for field, value in named.items():
        if value is not None:
            greedy = kind is not None and field in kind.greedy and isinstance(value, str)
            tokens.append(_token(f"{path}: {field}", value, **({"lstrip": True} if greedy else {}), special=True))
            fields[field] = tokens[-1].content
        elif kind and field in kind.needed:
            raise ValueError(f"{path}: {field} must be a token, got null")
    if not isinstance(more, dict):
        tokens += [_token(f"{path}: additional_special_tokens", x) for x in more]
    return list({token.content: token for token in reversed(tokens)}.values())[::-1]


def _token(name: str, value: Any, **flags: bool) -> AddedToken:
    """An added token, from its content or from an object with attributes; `flags` override these."""
    described = {"content": value, "special": True} if isinstance(value, str) else value
    try:
        flags = {flag: described[flag] for flag in _TOKEN_FLAGS if flag in described} | flags
        return AddedToken(described["content"], **flags)
    except (KeyError, TypeError):
        raise ValueError(f"{name} must be a token, or an object with its content, got {value!r}") from None


def _added_tokens(folder: Path, fields: dict[str, Any], special: list[AddedToken], tokenizer: Tokenizer) -> list:
    """Tokens outside the vocabulary, in the order of their ids: of tokenizer_config.json alone, if it lists them."""
    if "added_tokens_decoder" not in fields:
        path, names = folder / "added_tokens.json", {token.content for token in special}
        listed = read_json(path, dict, default={})
        if not all(type(number) is int for number in listed.values()):
            raise ValueError(f"{path} must hold an id for each token, got {listed!r:.80}")
        found = {x: AddedToken(y, normalized=y not in names, special=y in names) for y, x in listed.items()}
        found |= tokenizer.get_added_tokens_decoder()
    else:
        name, listed = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder", fields["added_tokens_decoder"]
        if not isinstance(listed, dict) or not all(number.isdecimal() and len(number) < 20 for number in listed):
            raise ValueError(f"{name} must be an object of tokens by their ids, got {listed!r:.80}")
        found = {int(number): _token(name, token) for number, token in listed.items()}
    return [found[number] for number in sorted(found)]


def _vocabulary(folder: Path, kind: TokenizerClass | None) -> tuple[Path, Tokenizer]:
    """(path, tokenizer) from tokenizer.json or, without it, from the vocabulary files of the class."""
    path = folder / "tokenizer.json"
    if path.exists() or not kind or not any((folder / name).exists() for name in kind.files):
        with library_errors(existing(path, LARGEST_VOCABULARY)):
            return path, Tokenizer.from_file(str(path))
    paths = [existing(folder / name, LARGEST_VOCABULARY) for name in kind.files]
    with library_errors(paths[0]):
        return paths[0], Tokenizer(kind.read(*map(str, paths)))


def _made(path: Path, kind: TokenizerClass, fields: dict[str, Any], stored: Tokenizer) -> Tokenizer:
    """A tokenizer of this class with the vocabulary of a stored one."""
    if not isinstance(stored.model, kind.model):
        raise ValueError(
            f"{path} must hold a {kind.model.__name__} vocabulary, as tokenizer_class needs it, got "
            f"{type(stored.model).__name__}: PreTrainedTokenizerFast takes any"
        )
    tokenizer = Tokenizer(stored.model)
    with library_errors(path):
        wrong = kind.parts(tokenizer, fields, stored.normalizer)
    if wrong:
        raise ValueError(f"{path} must {wrong}")
    return tokenizer
