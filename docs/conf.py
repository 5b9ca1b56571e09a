"""The site: `make docs`. Pages are Markdown that reads on GitHub, too; commands and API come from the code."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project = "Reelcache"
extensions = ["myst_parser", "sphinx.ext.autodoc", "commands_directive"]
smartquotes = False  # two dashes are two dashes

myst_heading_anchors = 3  # [text](page.md#heading), as on GitHub

default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

html_theme = "furo"  # loads nothing from anywhere, light and dark
html_title = "Reelcache"
html_copy_source = False
html_show_copyright = False


def list_arguments(_app: Sphinx, _kind: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings tell arguments in lines that begin with `name`: each becomes an item of a list."""
    told, inside = [], False
    for line in lines:
        begins = re.match(r"`\w+`(, `\w+`)*:? ", line) is not None
        if begins and not inside:
            told.append("")
        inside = begins or (inside and bool(line.strip()))
        told.append(f"- {line}" if begins else f"  {line}" if inside else line)
    lines[:] = told


def setup(app: Sphinx) -> None:
    """For Sphinx."""
    app.connect("autodoc-process-docstring", list_arguments)
