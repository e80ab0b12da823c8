"""The site: ``sphinx-build -W docs build/site`` (extra ``stablebptt[docs]``).

Sphinx, because the package is imported and not parsed: the repository's root is the package, and generic functions, options of
tasks and commands are made at run time.
"""

import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import make_reference  # noqa: E402
from docutils import nodes  # noqa: E402
from docutils.parsers.rst import roles  # noqa: E402
from sphinx.addnodes import pending_xref  # noqa: E402

from stablebptt.version import __version__  # noqa: E402

project = "stablebptt"
author = "the authors of stablebptt"
copyright = "the authors of stablebptt; MIT licence"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
]
exclude_patterns = ["examples", "images", "reproduction", "runs", "_build"]
templates_path: list[str] = []
nitpicky = True

# Markdown, and the tutorial as a notebook that is executed
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")

# Python
DESCRIBED = make_reference.described()
default_role = "public"
autodoc_typehints = "none"
toc_object_entries = False
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Look
html_theme = "pydata_sphinx_theme"
html_title = "stablebptt"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_prev_next": True,
    "navbar_align": "left",
    "header_links_before_dropdown": 5,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "tutorial": []}
html_show_sourcelink = False

warnings.filterwarnings("ignore", "Unknown section")  # numpydoc reads docstrings before `_sections` has seen them
STAR = re.compile(r"(?<=[(,\s])(\*{1,2})(?=\w+[,)])")  # of a shape such as (B, *state), which is no emphasis
ENTRY = re.compile(r"^(\S.*?) : (.*)$")
OWN_SECTION = re.compile(r"^(Settings|Options of .*)$")


def _sections(app, what, name, obj, options, lines):
    """Our docstrings in numpydoc's words.

    What follows "name :" is a description and no type, the stars of shapes are stars, and sections that name the options of tasks
    are notes.
    """
    found, section, noted = [], "", False
    for line, below in zip(lines, [*lines[1:], ""]):
        line = STAR.sub(lambda star: star[0].replace("*", r"\*"), line)
        if below and set(below) == {"-"}:
            section = line
            if OWN_SECTION.match(line):
                found += [f"**{line}**", ""] if noted else ["Notes", "-----", f"**{line}**", ""]
                noted = True
                continue
        if OWN_SECTION.match(section) and line and set(line) == {"-"}:
            continue
        entry = ENTRY.match(line) if section in ("Parameters", "Attributes") else None
        found += [entry[1], f"    {entry[2]}"] if entry else [line]
    lines[:] = found


def _public(role, rawtext, text, lineno, inliner, options=None, content=None):
    """A name between backticks: a link if it is public here or in the package, otherwise code."""
    env = inliner.document.settings.env
    shown = nodes.literal(rawtext, text)
    for room in (env.ref_context.get("py:module"), "stablebptt", "stablebptt.kernels" if "adjoint" in env.docname else None):
        target = DESCRIBED.get(text if text.startswith("stablebptt.") else f"{room}.{text}")
        if target is not None:
            where = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True, "refdoc": env.docname}
            return [pending_xref(rawtext, shown, refwarn=True, **where)], []
    return [shown], []


def _make_pages(app):
    """Write the reference, and refuse docstrings that lack something."""
    make_reference.write(HERE / "reference")
    faults = [fault for module in make_reference.modules() for fault in make_reference.faults(module)]
    if faults:
        raise RuntimeError("docstrings lack something:\n" + "\n".join(faults))


def setup(app):
    roles.register_local_role("public", _public)
    app.connect("builder-inited", _make_pages)
    app.connect("autodoc-process-docstring", _sections, priority=100)
