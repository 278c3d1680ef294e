"""Prompts: texts that are prepended to every text, by the names that config_sentence_transformers.json gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fastattn.models.tokens import checked_text

if TYPE_CHECKING:
    from pathlib import Path

QUERY, DOCUMENT = "query", "document"


class Prompts(NamedTuple):
    """The prompts of a folder. Those for queries and documents always exist; they are empty if the file has none."""

    named: dict[str, str]
    default: str  # of calls that ask for none

    def chosen(self, prompt: Any, prompt_name: Any, otherwise: str | None = None) -> str:
        """The prompt of a call; `otherwise` names that of a call with neither argument, None is the default."""
        if prompt is not None and prompt_name is not None:
            raise ValueError(f"prompt and prompt_name must not be given together, got {prompt!r} and {prompt_name!r}")
        if prompt is not None:
            return checked_text("prompt", prompt)
        name = otherwise if prompt_name is None else prompt_name
        if name is None:
            return self.default
        if not isinstance(name, str):
            raise TypeError(f"prompt_name must be a str, got {type(name).__name__}")
        if name not in self.named:
            raise ValueError(f"prompt_name must be one of {', '.join(self.named)}, got {name!r}")
        return self.named[name]


def read_prompts(path: Path, raw: dict[str, Any]) -> Prompts:
    """The prompts of config_sentence_transformers.json, checked. null is an empty prompt, as in sentence-transformers.

    That a model has no prompt for documents but one for passages does not make the latter that for documents.
    """
    prompts, default = raw.get("prompts"), raw.get("default_prompt_name")
    prompts = {} if prompts is None else prompts
    if not isinstance(prompts, dict):
        raise ValueError(f"{path}: prompts must be an object, got {prompts!r:.80}")
    named = {QUERY: "", DOCUMENT: ""}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str | None):
            raise ValueError(f"{path}: prompts must hold strings, got {prompt!r:.80} for {name!r}")
        named[name] = prompt or ""
    if default is not None and (not isinstance(default, str) or default not in named):
        raise ValueError(f"{path}: default_prompt_name must be one of prompts, got {default!r}")
    return Prompts(named, "" if default is None else named[default])
