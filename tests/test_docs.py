"""What the README and docs/ say is true: examples run and print what is shown, links lead somewhere, pictures are those
of the commands and tables beside them."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from fastattn.__main__ import main
from support.examples import MODELS, PAGES, ROOT, blocks
from support.scripts import script

WALK = ROOT / "docs" / "self-attention.md"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def needs(*packages):
    """Skip where one is not installed."""
    for package in packages:
        pytest.importorskip(package)


# Examples


@every_page
def test_examples(page):
    """Up to the first that needs a package which is not installed."""
    names = {}
    for block in blocks(page, "python", "pycon"):
        if block.missing:
            pytest.skip(f"line {block.line} needs {', '.join(block.missing)}")
        block.run(names)


@every_page
def test_sessions(page, tmp_path):
    """Those in a shell."""
    sessions = blocks(page, "console")
    if sessions:
        needs(*MODELS)
    for session in sessions:
        for step in re.split(r"^\$ ", session.code, flags=re.MULTILINE)[1:]:
            command, _, shown = step.partition("\n")
            command = re.sub("^python ", f"{shlex.quote(sys.executable)} -P ", command)
            done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
            assert done.stdout == shown


def test_picture_of_attention(tmp_path):
    """That of the command which is shown, into another file."""
    needs(*MODELS, "matplotlib")
    text = WALK.read_text(encoding="utf-8")
    [command] = re.findall(r"^python -m fastattn (attention-map .*)$", text.replace("\\\n", ""), re.MULTILINE)
    *argv, shown = shlex.split(command)
    assert main([*argv, str(tmp_path / "map.png")]) == 0
    picture, kept = (tmp_path / "map.png").read_bytes(), (ROOT / shown).read_bytes()
    assert picture[:4] == kept[:4] == b"\x89PNG"
    assert f"]({shown.removeprefix('docs/')})" in text
    assert len(kept) < 60_000


# Results


PAGES_OF_SCRIPTS = {
    "compare": ("PAGE", "PAGE_OF_TYPES"),
    **dict.fromkeys(("decode", "variants", "encoder", "busy", "cache_accuracy", "packed", "random_shapes"), ("PAGE",)),
    **dict.fromkeys(("accuracy", "dask_cluster", "texts", "transformers_models"), ("PAGE",)),
}


@pytest.mark.parametrize("name", PAGES_OF_SCRIPTS)
def test_pages_begin_as_their_scripts_write_them(name):
    for page in PAGES_OF_SCRIPTS[name]:
        page = getattr(script(name), page)
        text = (ROOT / "docs" / "performance" / f"{page.name}.md").read_text(encoding="utf-8")
        assert text.startswith(page.head)


def test_pictures_of_results():
    """They are those of the tables."""
    picture = script("picture")
    for name in picture.PICTURES | picture.DISTRIBUTIONS:
        kept = (ROOT / "docs" / "performance" / f"{name}.svg").read_text(encoding="utf-8")
        assert kept == picture.draw(name)


# Links


@every_page
def test_links(page):
    """Every relative one leads to a file, and to a heading where it names one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def without_code(page):
    """A page's text but for code, in which brackets mean something else."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Those that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_found():
    """From the README, by links."""
    found, new = set(), {PAGES[0]}
    while new:
        found |= new
        links = {(page, link) for page in new for link in re.findall(r"\]\(([^)#\s]+\.md)", without_code(page))}
        new = {(page.parent / link).resolve() for page, link in links} - found
    assert found >= set(PAGES)


PACKAGE = ROOT / "fastattn"


def named_files(text):
    """Names of files in a text; each of `{this,that}.h`, but not what a reader is to write, such as `<name>.h`."""
    for name in re.findall(r"(?<![\w<>*-])[\w./{,}-]+\.(?:pyx|pyi|pxd|py|md|def|h|c)\b", text):
        head, _, rest = name.partition("{")
        inside, _, tail = rest.partition("}")
        yield from (head + part + tail for part in inside.split(","))


@pytest.mark.parametrize(
    ("maps", "least"),
    [
        (["docs/architecture.md"], 50),
        (["fastattn/_core/kernels/README.md"], 40),
        (["tests/README.md", "CONTRIBUTING.md"], 30),
        (["fastattn/__init__.py"], 10),
        ([f"fastattn/{path.name}" for path in PACKAGE.glob("[a-z]*.py") if path.name != "reference.py"], 10),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_files_that_are_named_exist(maps, least):
    """Those that maps and the first lines of modules send their readers to; a name may be the end of a path."""
    git = shutil.which("git")
    tracked = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True) if git else None
    if not tracked or tracked.returncode:
        pytest.skip("needs the checkout")
    paths = [f"/{path}" for path in tracked.stdout.splitlines()]
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in maps]
    # Of a module its first docstring.
    texts = [text.split('"""')[1] if name.endswith(".py") else text for name, text in zip(maps, texts, strict=True)]
    names = {re.sub(r"^(\.+/)+", "", name) for text in texts for name in named_files(text)}
    assert len(names) >= least
    assert {name for name in names if not any(path.endswith(f"/{name}") for path in paths)} == set()


def test_folders_that_modules_name_exist():
    for path in PACKAGE.glob("[a-z]*.py"):
        head = path.read_text(encoding="utf-8").split('"""')[1]
        for folder in re.findall(r"\b_core/[\w/]+/(?=[;.,\s])", head):
            assert (PACKAGE / folder).is_dir(), (path.name, folder)


def test_the_map_of_the_package_is_whole():
    """Each module and package of the first level has a line."""
    head = (PACKAGE / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    there = {path.name for path in PACKAGE.glob("*.py*") if path.suffix in (".py", ".pyx")}
    there |= {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    there -= {"__init__.py", "__main__.py"}
    assert {name for name in there if name not in head} == set()


# The README


def test_the_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 220
