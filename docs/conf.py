"""The site: `python -m sphinx -W -b html docs build/site` (pip install '.[docs]').

Its pages are the Markdown files in docs/ as a repository shows them, and parts of the project's other files by include.
Nothing is written beside the sources.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import fastattn

DOCS = Path(__file__).parent

project = "fastattn"
version = release = fastattn.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
exclude_patterns = ["_static"]
default_role = "py:obj"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # those that a repository's page has

autosummary_generate = False  # tables only
# Frameworks of which no more is needed than names.
FRAMEWORKS = ("chromadb", "haystack", "langchain_core", "llama_index", "sentence_transformers")
autodoc_mock_imports = [name for name in FRAMEWORKS if find_spec(name) is None]
autodoc_typehints = "none"  # the docstrings have shapes and dtypes
numpydoc_show_class_members = False

html_theme = "alabaster"
html_title = "fastattn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_theme_options = {
    "description": "Transformer attention for CPUs: NumPy arrays in, NumPy arrays out",
    "page_width": "1160px",
    "sidebar_width": "240px",
    "fixed_sidebar": False,
    "sidebar_collapse": True,
}


# Includes are resolved here rather than by MyST, for the links in what is included: they count from its own folder.

_INCLUDE = re.compile(r"^:::\{include\} (\S+)\n(?::start-at: (.+)\n)?(?::end-before: (.+)\n)?:::$", re.MULTILINE)
_CODE_OR_LINK = re.compile(
    r"(?P<code>^```.*?^```$|`[^`\n]*`)|(?P<text>!?\[[^]]*\])\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)


def pages_of_files():
    """Files outside of docs/ -> the page that includes the whole of it."""
    pages = {(DOCS.parent / "README.md").resolve(): DOCS / "index.md"}
    for page in DOCS.rglob("*.md"):
        for path, start, end in _INCLUDE.findall(page.read_text(encoding="utf-8")):
            if not start and not end:
                pages[(page.parent / path).resolve()] = page
    return pages


PAGES = pages_of_files()


def with_links_from(page, file, text):
    """`text`, which stands in `file`, with its links as `page` needs them."""

    def link(match):
        if match["code"] or re.match(r"\w+:|#", match["target"]):
            return match[0]
        path, mark, anchor = match["target"].partition("#")
        target = (file.parent / path).resolve()
        target = PAGES.get(target, target)
        if not target.is_relative_to(DOCS):  # a source: the site has no page of it
            return match["text"][1:-1]
        return f"{match['text']}({os.path.relpath(target, page.parent)}{mark}{anchor})"

    return _CODE_OR_LINK.sub(link, text)


def resolve(app, docname, source):
    """Put included parts in their places, and make links lead to pages of the site."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return

    def include(match):
        path, start, end = match.groups()
        file = (page.parent / path).resolve()
        text = file.read_text(encoding="utf-8")
        begin = text.index(start) if start else 0
        app.env.note_dependency(str(file))
        return with_links_from(page, file, text[begin : text.index(end, begin) if end else None])

    # Own links first: what is included has been done then.
    source[0] = _INCLUDE.sub(include, with_links_from(page, page, source[0]))


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", resolve)
