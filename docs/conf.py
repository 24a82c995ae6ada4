"""Configuration of the Sphinx documentation."""

import sb3_diffusion

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
