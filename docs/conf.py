"""Settings of the documentation: ``python -m sphinx -W --keep-going docs build/docs`` builds it, strictly."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where site_pages.py lies

import papertape

project = "Papertape"
author = "Papertape authors"
project_copyright = "2026, Papertape authors"
release = version = papertape.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_pages"]
exclude_patterns = ["Thumbs.db"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
# That a name has several targets: of the annotation Chosen("circuit") Sphinx takes the kind for a type.
suppress_warnings = ["ref.python"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"Papertape {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
