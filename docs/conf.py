"""How Sphinx builds the site: `sphinx-build -W -n docs docs/_build`. It needs no network."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
# The signatures are read from the imported package, which needs one back end.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

project = "deepseek_hpf"
author = "The deepseek_hpf authors"
project_copyright = "The deepseek_hpf authors, Apache-2.0"
version = release = installed_version("deepseek_hpf")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "markdown_docstrings",
    "generated_reference",
]
exclude_patterns = ["_build"]
nitpicky = True
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The docstrings say in words what an argument may be; the full types would fill three lines each.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
smartquotes = False  # they would make a dash of the two of `--suite`
# Docstrings have single backticks, as Keras's do.
default_role = "code"

html_theme = "furo"
html_title = "deepseek_hpf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "default"  # its comments have enough contrast
pygments_dark_style = "github-dark"
