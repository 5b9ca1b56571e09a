"""The site of `make docs`: nothing warns, nothing is missing, nothing is fetched."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from pipeline.cli import main as prep
from train.cli import main as train

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GROUPS = {"prep": prep, "train": train}


def test_the_navigation_and_the_front_page_have_every_page() -> None:
    text = (DOCS / "index.md").read_text("utf-8")
    lists = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    listed = [line for block in lists for line in block.splitlines() if line and not line.startswith(":")]
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)
    assert pages == set(re.findall(r"\]\((\w+)\.md\)", text))


def test_the_reference_shows_both_commands_with_all_that_is_below() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    shown = re.findall(r"```\{commands\} (\S+)\n:prog: (\w+)", (DOCS / "commands.md").read_text())
    assert {name: place for place, name in shown} == scripts


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings_that_are_there() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", page.read_text("utf-8")):
            to = page.parent / target if target else page
            assert to.exists(), (page.name, target)
            assert not anchor or anchor in anchors(to), (page.name, target, anchor)


def test_the_picture_is_what_its_script_draws() -> None:
    """But for its photographs, which another OpenCV compresses in another way."""
    drawn = runpy.run_path(str(DOCS / "pictures" / "flow.py"))["draw"]()
    kept = (DOCS / "pictures" / "flow.svg").read_text("utf-8")
    told, shown = (re.sub('base64,[^"]*', "", svg) for svg in (drawn, kept))
    assert told == shown, "run python docs/pictures/flow.py"
    assert kept.count("<image") == drawn.count("<image") > 30 and len(kept) < 300_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    if find_spec("sphinx") is None:
        pytest.skip("needs the extra docs, which is not installed")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_every_command_and_option_is_on_the_site(site: Path) -> None:
    page = (site / "commands.html").read_text("utf-8")
    for program, group in GROUPS.items():
        for name, command in group.commands.items():
            assert f'id="{program}-{name}"' in page, name
            flags = (max(param.opts, key=len) for param in command.params if isinstance(param, click.Option))
            for flag in flags:
                assert f'id="{program}-{name}-{flag.lstrip("-")}"' in page, flag


def test_the_site_fetches_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+', text), page
        assert not re.findall(r'<link(?! rel="canonical")[^>]+href="(?:https?:)?//[^"]+', text), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text("utf-8")), style
