"""How Sphinx makes the site: `python -m sphinx -W -b html docs docs/_build`.

Pages are MyST Markdown; those with `code-cell`s in them are run when the site is made, so that what they draw and print
is of this version. The API is what the docstrings say, which are plain text: here their equations, which are indented,
become literal blocks, and what is in backticks is code.
"""

import re
import shutil
import tomllib
from pathlib import Path

import jax_bptt

HERE = Path(__file__).parent
ROOT = HERE.parent
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

project, author = "jax_bptt", "The jax_bptt authors"
copyright = author
version = release = jax_bptt.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "notebooks/README.md", "notebooks/pictures", "jupyter_execute"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"jax_bptt {version}"
html_theme_options = {"source_repository": URLS["Homepage"], "source_branch": "main", "source_directory": "docs/"}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_excludepatterns = ["notebooks/*"]  # they are committed as they ran
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False
maximum_signature_line_length = 80

_HEADER = re.compile(r"\s*(Args|Returns|Yields|Raises|Source):\s*$")


def _as_rest(app, what, name, obj, options, lines):
    """Docstrings as reStructuredText: what is indented deeper than its paragraph is literal, backticks are code."""
    made, literal, base = [], None, 0
    for line in lines:
        indent, before = len(line) - len(line.lstrip()), made[-1] if made else ""
        if literal is not None and line.strip() and indent < literal:
            literal = None
        if _HEADER.match(line):
            base = indent + 4
        elif line.strip() and indent < base:
            base = indent
        if literal is None and line.strip() and indent >= base + 4 and not before.strip():
            made += [" " * base + "::", ""]
            literal = indent
        made.append(line if literal is not None else _inline(line))
    lines[:] = made


def _says_nothing(app, what, name, obj, skip, options):
    """Whether a member is a field of a NamedTuple, of which Python says no more than its number."""
    return skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number")


def _inline(line):
    """Backticks doubled, and bars, which would be substitutions, escaped elsewhere."""
    parts = re.split(r"`([^`]+)`", line)
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    ends = ["\\ " if after[:1].isalnum() else "" for after in parts[2::2]]  # a literal ends where no word goes on
    parts[1::2] = [f"``{part}``{end}" for part, end in zip(parts[1::2], ends, strict=True)]
    return "".join(parts)


def setup(app):
    """What Sphinx calls: the notebooks are laid among the pages, and docstrings are read as said above."""
    shutil.rmtree(HERE / "notebooks", ignore_errors=True)
    shutil.copytree(ROOT / "notebooks", HERE / "notebooks")
    app.connect("autodoc-process-docstring", _as_rest, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _says_nothing)
