"""The site that Sphinx makes of docs/: built without warnings, with no dead link and every public name."""

import importlib
import inspect
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import pytest

import fastattn
from support.examples import ROOT

# Sphinx and its extensions, and what fastattn's own modules import.
NEEDED = ("sphinx", "numpydoc", "myst_parser", "torch", "transformers", "dask", "distributed", "onnx", "safetensors")
for package in (*NEEDED, "tokenizers"):
    pytest.importorskip(package)

MODULES = ["fastattn", "fastattn.nn", "fastattn.models", "fastattn.reference"]
MODULES += [f"fastattn.integrations.{name}" for name in ("dask", "onnx", "transformers")]
FRAMEWORKS = {"chroma": "chromadb", "langchain": "langchain_core"}
FRAMEWORKS |= {name: name for name in ("haystack", "llama_index", "sentence_transformers")}
MODULES += [f"fastattn.integrations.{name}" for name, needed in FRAMEWORKS.items() if find_spec(needed)]


class Page(HTMLParser):
    """The links of a page, and what links may lead to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.ids = set(), {""}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links |= {attributes[name] for name in ("href", "src") if name in attributes}
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Path -> page."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", folder / "trees", ROOT / "docs", folder / "html"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in (folder / "html").rglob("*.html")}


def test_links(site):
    wrong = []
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (target in site and unquote(parts.fragment) not in site[target].anchors):
                wrong.append((path.name, link))
    assert wrong == []


def test_every_page_is_in_the_contents(site):
    """From the first page by links."""
    [index] = [path for path in site if path.parts[-2:] == ("html", "index.html")]
    found, new = set(), {index}
    while new:
        found |= new
        links = {(path.parent / urlsplit(link).path).resolve() for path in new for link in site[path].links}
        new = {path for path in links if path in site} - found
    assert {path.stem for path in found} >= {page.stem for page in (ROOT / "docs").rglob("*.md")}


def test_every_public_name_has_an_entry(site):
    entries = {name for page in site.values() for name in page.ids}
    wanted = {f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__}
    assert wanted - entries == set()


def test_every_public_method_has_an_entry(site):
    entries = {name for page in site.values() for name in page.ids}
    classes = [
        (f"{module}.{name}", getattr(importlib.import_module(module), name))
        for module in ("fastattn", "fastattn.nn", "fastattn.models")
        for name in importlib.import_module(module).__all__
    ]
    methods = {
        f"{path}.{name}"
        for path, kind in classes
        if inspect.isclass(kind) and not issubclass(kind, BaseException)
        for name, member in vars(kind).items()
        if not name.startswith("_") and inspect.getdoc(member) and not inspect.ismemberdescriptor(member)
    }
    assert len(methods) > 20
    assert methods - entries == set()


def test_the_version_is_the_package_s(site):
    assert any(fastattn.__version__ in path.read_text(encoding="utf-8") for path in site)
