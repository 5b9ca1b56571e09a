"""One HTML file that opens offline: style, script, data and pictures inside, and nothing else may run in it.

Text that comes from a data set is hostile until shown otherwise. In the body it stands escaped; data go in as JSON
in which no tag can begin, and the scripts show them as text. The Content-Security-Policy names the SHA-256 of each
script and style of ours: whatever else got in would neither run nor load.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
{styles}
</head>
<body>
"""


def web_file(name: str, package: str = "pipeline") -> str:
    """A text of the package's folder `web`."""
    return files(package).joinpath("web", name).read_text("utf-8")


def shown(text: str, longest: int = 200) -> str:
    """Text that can be written as UTF-8, its start cut off where it is long: the end of a path tells more."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= longest else "…" + text[1 - longest :]


def html(text: object) -> str:
    """Text as it may stand between tags and in an attribute."""
    return escape(shown(str(text), 2000))


def as_json(values: Any) -> str:
    """JSON for a `script` element: neither `</script>` nor `<!--` can stand in it."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def make_page(title: str, body: str, data: Any, *, scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """The page. `body` is HTML, its texts escaped by `html`; scripts and styles are texts of ours, and come after
    those that all pages share."""
    scripts = (web_file("clips.js"), *scripts)
    styles = (web_file("page.css"), *styles)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hashes(styles)}; script-src {_hashes(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = HEAD.format(
        policy=policy, title=html(title), styles="\n".join(f"<style>{style}</style>" for style in styles)
    )
    tail = f'<script type="application/json" id="data">{as_json(data)}</script>\n'
    tail += "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"{head}{body}\n{tail}\n</body>\n</html>\n"


def write_page(file: Path, page: str) -> None:
    """Whole or not at all."""
    made = file.with_name(f".{file.name}.tmp")
    try:
        made.write_text(page, encoding="utf-8", newline="\n")
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)


def _hashes(texts: Sequence[str]) -> str:
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
    )
