"""README and docs: Python runs, command lines are what the commands take, the first steps are really taken."""

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

import click
import fsspec
import pytest
import torch
import webdataset
from click.testing import CliRunner
from conftest import build
from markdown_it import MarkdownIt
from markdown_it.token import Token

from models import MODELS, build_model
from pipeline.cli import main as prep
from pipeline.recipe import Recipe
from pipeline.sample_videos import make_sample_videos
from train.cli import main as train
from train.config import read_config, read_families

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(ROOT.glob("docs/*.md"))
COMMANDS = {"prep": prep, "train": train}
SHOWN = {"text", "toml", "json", "nginx", "{eval-rst}", "{toctree}", "{commands}"}  # languages of what is not run
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")  # before a block: why this one is not
SETTING = re.compile(r"\w+=")  # of the environment, before a command
# What stands for what a reader has: for three figures from a file the first minute is too long.
SMALLER = {
    "sample-videos": ["--videos", "8"],
    "build-shards": ["--size", "40", "--workers", "0"],
    "run": ["--epochs", "1", "--frames", "4", "--batch-size", "4", "--option", "backbone=resnet18_quarter"],
    "eval": ["--allow-leaks"],  # sample videos look alike
    "report": ["--clips", "1", "--allow-leaks"],
}
# Pages whose commands are carried out, but for those with one of these in them
CARRIED_OUT = ("docs/faq.md", "docs/reports.md", "docs/sharing.md")
BEYOND = {
    "torchrun": "takes long", "train compare": "takes long", "train bench": "takes long",
    "train export": "takes long", "pip install": "another program", "pytest": "another program",
    "/srv/": "a folder of the machine's", "http://data.example.org": "nobody's server",
    "rwf-2000 ": "videos that are not ours to give", "prep leaks": "sample videos look alike",
}  # fmt: skip
# Flags of other programs that pages name
FOREIGN_FLAGS = {
    "--exhaustive", "--kills",  # pytest
    "--gigabytes", "--only", "--table", "--looks",  # benchmarks, pictures
    "--nthreads", "--no-nanny",  # dask worker
}  # fmt: skip
OTHER_PROGRAMS = {"mkdir", "umask", "pip", "dask", "helm", "tensorboard", "source"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text, and why it is not run."""

    page: str
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text("utf-8"))


def blocks_of(page: Path) -> Iterator[Block]:
    reason: str | None = None
    for token in tokens(page):
        if token.type == "html_block" and (found := NOT_RUN.search(token.content)):
            reason = found[1]
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            yield Block(str(page.relative_to(ROOT)), line, token.info.split(" ")[0], token.content, reason)
            reason = None


def inline_code() -> Iterator[tuple[str, str]]:
    """Every `piece of code` in the text of a page."""
    for page in PAGES:
        for token in tokens(page):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield page.name, child.content


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.not_run]


def lines_of(block: Block) -> list[str]:
    """The commands of a block, comments gone, one a line."""
    text = block.code.replace("\\\n", " ")
    return [line for line in (re.split(r"(?:^|\s)#", line)[0].strip() for line in text.splitlines()) if line]


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a line, without its redirections and settings of the environment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        found.append([]) if set(word) <= set("&|;") else found[-1].append(word)
    cut = (words[: words.index(">")] if ">" in words else words for words in found)
    bare = (list(dropwhile(SETTING.match, words)) for words in cut)
    return [words for words in bare if words]


SHELL = [(block, line) for block in BLOCKS if block.language == "sh" for line in lines_of(block)]
NAMED = [pytest.param(line, id=f"{block}: {line[:40]}") for block, line in SHELL]

# What pages show as --config of `train run` and `train compare`
SETTINGS = {
    "run" if "model" in tomllib.loads(block.code) else "compare": block.code
    for block in BLOCKS
    if block.language == "toml"
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_set: Path) -> Path:
    """A folder in which the sets and videos are that pages speak of."""
    root = tmp_path_factory.mktemp("reader")
    (root / "data").mkdir()
    for name in ("shards", "mine"):
        (root / "data" / name).symlink_to(small_set)
    videos = small_set.parent / "videos"
    build(videos, root / "data" / "zarr-set", recipe=Recipe(width=32, height=32, format="zarr"))
    (root / "my-videos").symlink_to(videos)
    (root / "runs" / "x").mkdir(parents=True)
    for name in ("recipe.toml", "runs/x/config.toml"):
        (root / name).write_text(SETTINGS["run"])
    (root / "benchmarks").symlink_to(ROOT / "benchmarks")
    return root


@pytest.fixture
def team(bucket: str, small_set: Path) -> str:
    """A bucket in which the set stands that pages speak of."""
    fsspec.filesystem("s3").put(f"{small_set}/", f"{bucket}/rwf-5fps-112/", recursive=True)
    return bucket


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_python_snippets_run(page: str, place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Those of a page one after the other, as a reader would type them."""
    snippets = [block for block in PYTHON if block.page == page]
    if any("s3://" in block.code for block in snippets):
        request.getfixturevalue("team")
    with pytest.MonkeyPatch.context() as patch:
        for scheme, opener in webdataset.gopen_schemes.items():
            patch.setitem(webdataset.gopen_schemes, scheme, opener)  # as they were, afterwards
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        patch.chdir(shutil.copytree(place, tmp_path / "here", symlinks=True))
        if page == "docs/api.md":
            Path("data/mine").unlink()  # is made there
        names: dict[str, Any] = {"__name__": "snippet"}
        for block in snippets:
            exec(compile(block.code, str(block), "exec"), names)
    if "loss" in names:
        assert torch.isfinite(names["loss"])
    assert len(names) > 1


@pytest.mark.parametrize("page", ["README.md", "docs/loader.md"])
def test_the_loop_is_short(page: str) -> None:
    loop = next(block.code for block in PYTHON if block.page == page and "loss" in block.code)
    assert len(loop.splitlines()) <= 10


def test_what_is_not_run_says_why_and_is_python_all_the_same() -> None:
    left_out = [block for block in BLOCKS if block.not_run]
    assert {(block.page, block.not_run) for block in left_out} == {
        ("docs/scale.md", "needs a SLURM cluster"), ("docs/scale.md", "needs a Kubernetes cluster"),
        ("docs/faq.md", "needs an exported run"),
    }  # fmt: skip
    for block in left_out:
        compile(block.code, str(block), "exec")


def test_every_block_is_run_or_is_no_code() -> None:
    assert {block.language for block in BLOCKS} <= SHOWN | {"python", "sh"}
    indented = [token.content.split()[0] for page in PAGES for token in tokens(page) if token.type == "code_block"]
    assert not {*COMMANDS, *OTHER_PROGRAMS, "python", "pytest", "torchrun"} & set(indented)


@pytest.mark.parametrize("line", NAMED)
def test_command_lines_are_what_the_commands_take(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for words in simple_commands(line):
        check_command(words)


def check_command(words: list[str]) -> None:
    program, *args = words
    if program == "torchrun":
        program, args = "train", args[args.index("train") + 1 :]
    if program in COMMANDS:
        check_ours(program, args)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert args[0] in targets
    elif program in ("python", "pytest"):
        check_scripts(args)
    else:
        assert program in OTHER_PROGRAMS | {"chgrp", "chmod", "unzip"}, f"{program}: is it tested?"


def check_scripts(args: list[str]) -> None:
    """What `python` and `pytest` are to run is there."""
    if args[0] == "-m":
        assert (ROOT / f"{args[1].replace('.', '/')}.py").is_file(), args
    for name in (arg for arg in args if arg.endswith(".py")):
        assert (ROOT / name).is_file(), name


def check_ours(program: str, args: list[str]) -> None:
    """Every option exists, and takes its value."""
    command = COMMANDS[program].commands[args[0]]
    with command.make_context(args[0], args[1:]) as ctx:
        if family := ctx.params.get("model"):
            assert family in MODELS
            with torch.device("meta"):
                build_model(family, num_classes=2, num_frames=16, size=(112, 112), **ctx.params.get("options", {}))


def test_settings_in_files_are_taken(tmp_path: Path) -> None:
    assert set(SETTINGS) == {"run", "compare"}
    for name, text in SETTINGS.items():
        (tmp_path / "settings.toml").write_text(text)
        assert read_config(tmp_path / "settings.toml", train.commands[name])
    assert "vivit" in read_families(tmp_path / "settings.toml", train.commands["compare"])


def flags_of(command: click.Command) -> set[str]:
    return {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)} | {"--help"}


EVERY_COMMAND = [command for group in COMMANDS.values() for command in group.commands.values()]
EVERY_FLAG = {flag for command in EVERY_COMMAND for flag in flags_of(command)}


def test_flags_and_commands_named_in_the_text_exist() -> None:
    wrong = []
    for page, code in inline_code():
        words = code.split()
        if len(words) > 1 and words[0] in COMMANDS and words[1][0] not in "-…":
            command = COMMANDS[words[0]].commands.get(words[1])
            known = flags_of(command) if command else set()
            if command is None or not {word for word in words if word.startswith("--")} <= known:
                wrong.append((page, code))
        elif words and words[0].startswith("--") and words[0] not in EVERY_FLAG | FOREIGN_FLAGS:
            wrong.append((page, code))
    assert not wrong


def demo_lines() -> list[str]:
    """The commands of `make demo`."""
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    found = re.finditer(r"\$\(BIN\)/((?:prep|train) [^#&;}\n]*)|(mv [^;}\n]*)", recipe)
    return [(line[1] or line[2]).strip() for line in found]


def take(line: str) -> None:
    """A command of the first steps, on few and small videos."""
    for words in simple_commands(line):
        program, *args = words
        if program == "mv":
            shutil.move(args[0], args[1])
        elif program in COMMANDS:
            files = [str(name) for arg in args if "*" in arg for name in sorted(Path().glob(arg))]
            args = [arg for arg in args if "*" not in arg] + files + SMALLER.get(args[0], [])
            result = CliRunner().invoke(COMMANDS[program], args, catch_exceptions=False)
            assert result.exit_code == 0, (line, result.output)


def test_the_first_steps_work_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_sample_videos(Path("my-videos"), 8, ["train", "val"], 1)
    Path("data").mkdir()
    steps = [line for block, line in SHELL if block.page == "docs/start.md"]
    for line in [*demo_lines(), *steps]:
        take(line)
    for made in ("preview.html", "report.html", "runs/demo/best.safetensors", "runs/first/best.safetensors"):
        assert Path(made).stat().st_size > 1000, made


@pytest.mark.parametrize("page", CARRIED_OUT)
def test_commands_of_a_page_work_one_after_the_other(
    page: str, small_set: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bucket == "s3://team"  # as pages have it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_sample_videos(Path("my-videos"), 8, ["train", "val"], 1)
    shutil.copytree(small_set, "data/rwf")
    take("prep build-shards my-videos --out data/mine")
    take("train run --model early_fusion --shards data/mine --out runs/first")
    shutil.copytree("runs/first", "runs/second")
    lines = [line for block, line in SHELL if block.page == page and not any(word in line for word in BEYOND)]
    assert lines
    for line in lines:
        take(line)


def test_the_readme_gives_the_two_commands_of_the_start_page() -> None:
    readme = [
        line
        for block in BLOCKS
        if block.page == "README.md" and block.language == "sh"
        for line in lines_of(block)
    ]
    start = [line for block in BLOCKS if block.page == "docs/start.md" for line in lines_of(block)]
    assert len(readme) == 2 and set(readme) <= set(start)
