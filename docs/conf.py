"""The site: `make docs`. Pages are plain Markdown that reads on GitHub, too; commands and API come from the code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "Reelcache"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["models/*.py"]

myst_heading_anchors = 3  # [text](page.md#heading), as on GitHub

default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"  # loads nothing from anywhere, light and dark
html_title = "Reelcache"
html_copy_source = False
