"""Configuration of the Sphinx documentation."""

import inspect

from sphinx.application import Sphinx

import sb3_diffusion
from sb3_diffusion.saving.safe_load import ALGORITHMS

project = "sb3_diffusion"
copyright = "2026, the sb3_diffusion developers"
version = release = sb3_diffusion.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]


def argument_tables() -> str:
    """
    :return: what each argument of an algorithm may be beyond its type, from the table that its constructor and safe loading
        read, as reStructuredText
    """
    lines = []
    for name, algorithm in sorted(ALGORITHMS.items()):
        defaults = inspect.signature(algorithm).parameters
        lines += [f"**{name}**", "", ".. list-table::", "   :header-rows: 1", ""]
        lines += ["   * - argument", "     - default", "     - must be"]
        for argument, kind in ((key, kind) for key, kind in algorithm.arguments.items() if key in defaults):
            lines += [f"   * - ``{argument}``", f"     - ``{defaults[argument].default!r}``", f"     - {kind.text}"]
        lines.append("")
    return "\n".join(lines)


def fill_in_tables(app: object, docname: str, source: list[str]) -> None:
    source[0] = source[0].replace("ARGUMENT_TABLES", argument_tables()) if docname == "api" else source[0]


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_in_tables)
