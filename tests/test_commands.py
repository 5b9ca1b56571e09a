"""All commands of both programs: help with an example that parses, one name for one thing, one line for a mistake,
one JSON document, no escape codes where nobody wants them, completion."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, write_video

import pipeline.summary
from pipeline.cli import main as prep
from train.cli import main as train
from train.cli_options import PRECISIONS
from train.compute import PRECISIONS as KNOWN_PRECISIONS
from train.recipes import LABELS_ONLY

PROGRAMS: dict[str, click.Group] = {"prep": prep, "train": train}
ALL = [(program, name) for program, group in PROGRAMS.items() for name in group.commands]
EXAMPLE = re.compile(r"\b(?:prep|train) .*?(?=\)| [|>] |$)")
HEAVY = {"torch", "dask", "distributed", "cv2", "av", "zarr", "sklearn", "numpy", "rich"}
# A file, a folder or a URL; a path, or one for each family; frames for all, or shards for this machine
OWN_TYPES = {"--out", "--weights", "--cache"}
TINY = ["--option", "scale=micro", "--frames", "4", "--batch-size", "8", "--precision", "fp32", "--epochs", "1"]
JUDGED = ["--allow-leaks", "--precision", "fp32", "--clips", "1"]
# What each command is called with to print JSON. {set}: 24 videos, {run}: a run on them, {new}: a fresh folder.
JSON = {
    "prep sample-videos": ["{new}/videos", "--videos", "4"],
    "prep build-shards": ["{set}/../videos/val", "--out", "{new}/set", "--size", "32", "--workers", "0"],
    "prep inspect": ["{set}"],
    "prep leaks": ["{set}"],
    "prep preview": ["{set}", "--out", "{new}/preview.html", "--videos", "4"],
    "prep push": ["{set}", "{new}/set"],
    "prep pull": ["{set}", "{new}/set"],
    "prep list": ["{set}/.."],
    "prep verify": ["{set}"],
    "prep diff": ["{set}", "{set}"],
    "train run": ["--model", "vivit", "--shards", "{set}", "--out", "{new}/run", *TINY],
    "train pretrain": ["--shards", "{set}", "--out", "{new}/run", *TINY],
    "train compare": ["--models", "vivit", "--option", "vivit.scale=micro", "--shards", "{set}", "--out", "{new}",
                      "--allow-leaks", *TINY[2:]],
    "train eval": ["{run}", *JUDGED],
    "train predict": ["{run}", "{video}", "--clips", "1", "--precision", "fp32"],
    "train watch": ["{run}", "{video}", "--label", "cats", "--full-speed", "--on", "1", "--off", "1",
                    "--precision", "fp32"],
    "train export": ["{run}", "--to", "torch", "--parity-clips", "1", "--out", "{new}/model.pt2"],
    "train report": ["{run}", "--out", "{new}/report.html", *JUDGED],
    "train bench": ["--model", "early_fusion", "--shards", "{set}", "--frames", "4", "--batch-size", "2",
                    "--seconds", "0"],
    "train models": ["--model", "early_fusion"],
}  # fmt: skip


def invoke(program: str, *arguments: object, columns: int = 80) -> Result:
    environment = {"COLUMNS": str(columns)}
    return CliRunner().invoke(PROGRAMS[program], [str(argument) for argument in arguments], env=environment)


def examples_in(text: str) -> list[list[str]]:
    """The lines below `Example:` as words: program, command, arguments."""
    block = re.search(r"^ *Examples?:\n((?: +\S.*\n)+)", text, re.MULTILINE)
    assert block, text
    lines = block[1].splitlines()
    found = [EXAMPLE.search(line) for line in lines]
    assert all(found), lines
    return [shlex.split(one[0]) for one in found if one]


def options() -> list[tuple[str, click.Option]]:
    """Every option of every command, with `prep inspect` and so on."""
    return [
        (f"{program} {name}", param)
        for program, name in ALL
        for param in PROGRAMS[program].commands[name].params
        if isinstance(param, click.Option)
    ]


def by_flag(about: Callable[[click.Option], object]) -> dict[str, dict[object, list[str]]]:
    """What is said about each flag, and by which commands."""
    found: dict[str, dict[object, list[str]]] = defaultdict(lambda: defaultdict(list))
    for command, option in options():
        found[max(option.opts, key=len)][about(option)].append(command)
    return found


def core(option: click.Option) -> str:
    """The first words of its help: what it is about."""
    return " ".join(re.sub(r"^With --[a-z]+: ", "", option.help or "").split()[:2])


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "run"
    result = invoke("train", "run", "--model", "vivit", *TINY, "--shards", small_set, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("words", [("prep",), ("train",), *ALL], ids=" ".join)
def test_examples_in_help_are_calls_of_commands_that_take_them(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "painter"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").write_text("seed = 3\nmodel = 'videomae'")
    calls = examples_in(invoke(*words, "--help").output)
    assert list(words) in [call[: len(words)] for call in calls]
    for program, command, *arguments in calls:
        group = PROGRAMS[program]
        with click.Context(group, info_name=program) as parent:
            assert group.commands[command].make_context(command, arguments, parent).params


@pytest.mark.parametrize(("program", "name"), ALL)
def test_every_option_has_help_that_ends(program: str, name: str) -> None:
    for param in PROGRAMS[program].commands[name].params:
        if isinstance(param, click.Option):
            assert param.help and re.search(r"(\.|\])$", param.help), param.opts


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_help_fits_the_terminal_and_a_page(columns: int) -> None:
    for program, name in [*ALL, ("prep", ""), ("train", "")]:
        text = invoke(program, *name.split(), "--help", columns=columns).output
        assert max(map(len, text.splitlines())) <= min(columns, 100), f"{program} {name}\n{text}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_of_commands_cuts_no_sentence(program: str) -> None:
    listed = invoke(program, "--help").output
    for name, command in PROGRAMS[program].commands.items():
        first = (command.help or "").split("\n\n")[0]
        assert re.search(rf"^  {name} +{re.escape(first.rstrip('.'))}\.?$", listed, re.MULTILINE), first


def test_one_name_has_one_meaning_and_one_type() -> None:
    for flag, meanings in by_flag(core).items():
        assert len(meanings) == 1, f"{flag}: {dict(meanings)}"
    for flag, types in by_flag(lambda option: (option.type.name, option.is_flag)).items():
        assert len(types) == 1 or flag in OWN_TYPES, f"{flag}: {dict(types)}"


def test_one_meaning_has_one_name() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for _, option in options():
        names[option.help or ""].add(max(option.opts, key=len))
    assert [flags for flags in names.values() if len(flags) > 1] == []
    assert {opt for _, option in options() for opt in option.opts if not opt.startswith("--")} == {"-v"}
    assert {command for command, option in options() if "-v" in option.opts} == {" ".join(one) for one in ALL}


def test_precisions_are_those_that_there_are() -> None:
    assert tuple(PRECISIONS.choices) == KNOWN_PRECISIONS


def test_pretraining_has_all_flags_of_training_but_those_on_labels() -> None:
    run, pretrain = ({param.name for param in train.commands[name].params} for name in ("run", "pretrain"))
    assert run - pretrain == set(LABELS_ONLY)
    assert pretrain - run == {"mask_ratio", "pictures_every"}


@pytest.mark.parametrize(("program", "name"), [*ALL, ("prep", ""), ("train", "")])
def test_an_unknown_flag_is_one_line(program: str, name: str) -> None:
    result = invoke(program, *name.split(), "--nonesuch")
    assert_one_clear_line(result, 2, "--nonesuch")
    assert len(result.stderr.splitlines()) == 1 and f"See: {program} {name}".strip() in result.stderr


@pytest.mark.parametrize(
    ("program", "name"), [one for one in ALL if any(p.required for p in PROGRAMS[one[0]].commands[one[1]].params)]
)
def test_a_missing_argument_is_one_line(program: str, name: str) -> None:
    result = invoke(program, name)
    assert_one_clear_line(result, 2, "Missing")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", JSON)
def test_json_is_one_document_on_stdout_even_with_v(
    command: str, small_set: Path, run_folder: Path, tmp_path: Path, exhaustive: bool
) -> None:
    if command == "train export" and not exhaustive:
        pytest.skip("takes 5 s, and tests/test_train_export.py reads its JSON, too; --exhaustive runs it")
    places = {"set": small_set, "run": run_folder, "new": tmp_path}
    if "{video}" in JSON[command]:
        places["video"] = write_video(tmp_path / "a.mp4", frames=40)
    program, name = command.split()
    result = invoke(program, name, *(word.format(**places) for word in JSON[command]), "--json", "-v")
    assert result.exit_code == 0, result.output
    documents = result.stdout.splitlines() if name == "watch" else [result.stdout]
    assert documents and all(json.loads(text) for text in documents)
    assert "\x1b" not in result.output


def test_every_command_but_completion_prints_json() -> None:
    assert {command for command, option in options() if option.name == "as_json"} == set(JSON)
    assert {" ".join(one) for one in ALL} - set(JSON) == {"prep completion", "train completion"}


def on_a_terminal(environment: dict[str, str], *arguments: object) -> str:
    """What `prep` prints there."""
    ours, its = pty.openpty()
    code = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=its, stderr=its, env={**os.environ, "TERM": "xterm", **environment}):
        os.close(its)
        text = b""
        while piece := _read(ours):
            text += piece
    os.close(ours)
    return text.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_no_color_is_respected_on_a_terminal(small_set: Path) -> None:
    assert "\x1b[1m" in on_a_terminal({}, "inspect", small_set)
    plain = on_a_terminal({"NO_COLOR": "1"}, "inspect", small_set)
    assert "fingerprint" in plain or "recipe" in plain
    assert "\x1b" not in plain


def test_in_a_pipe_no_empty_line_comes_before_a_message(tmp_path: Path) -> None:
    stderr = invoke("prep", "build-shards", tmp_path / "nowhere").stderr
    assert stderr.startswith("Error: ") and len(stderr.splitlines()) == 1


def test_v_tells_what_is_done_and_else_nothing_is_told(small_set: Path) -> None:
    assert invoke("prep", "inspect", small_set).stderr == ""
    told = invoke("prep", "inspect", small_set, "-v").stderr
    assert f"pipeline.shards.index: {small_set}: " in told
    assert invoke("prep", "inspect", small_set).stderr == ""


def test_an_error_that_nobody_foresaw_is_one_line_and_a_traceback_with_v(
    small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.summary, "summarize", lambda _: next(iter(())))
    assert_one_clear_line(invoke("prep", "inspect", small_set), 1, "this should not happen: StopIteration")
    told = invoke("prep", "inspect", small_set, "-v")
    assert told.exit_code == 1 and "Traceback" in told.stderr and told.stderr.splitlines()[-1].startswith("Error:")


@pytest.mark.parametrize(("program", "words"), [("prep", ["inspect"]), ("train", ["run", "--model", "vivit"])])
def test_ctrl_c_is_one_line(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.index.read_set", interrupted)
    monkeypatch.setattr("train.loop.read_set", interrupted)
    result = invoke(program, *words)
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_reader_that_has_seen_enough_is_no_error_and_a_server_that_hangs_up_is_one(small_set: Path) -> None:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "inspect", str(small_set), "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    code = "import errno, pipeline.summary as s; from pipeline.cli import main\n"
    code += "def summarize(_): raise BrokenPipeError(errno.EPIPE, 'the server hung up')\n"
    code += "s.summarize = summarize; main()"
    failed = subprocess.run([command[0], "-c", code, *command[3:]], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "the server hung up" in failed.stderr and not failed.stdout


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = f"""if True:
        import sys
        from click.testing import CliRunner
        from pipeline.cli import main as prep
        from train.cli import main as train
        for group in (prep, train):
            for words in ([], *([name] for name in group.commands)):
                assert CliRunner().invoke(group, [*words, "--help"]).exit_code == 0
        print(*({HEAVY!r} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def complete(program: str, words: list[str], incomplete: str) -> list[CompletionItem]:
    shell = ShellComplete(PROGRAMS[program], {}, program, f"_{program.upper()}_COMPLETE")
    return shell.get_completions(words, incomplete)


@pytest.mark.parametrize(
    ("program", "words", "incomplete", "wanted"),
    [
        ("prep", [], "ins", ["inspect"]),
        ("train", ["run"], "--ba", ["--batch-size", "--balanced"]),
        ("train", ["run", "--model"], "early", ["early_fusion"]),
        ("train", ["pretrain", "--model"], "", ["videomae"]),
        ("train", ["compare", "--models"], "s3d,viv", ["s3d,vivit"]),
        ("train", ["eval", "--split"], "", ["train", "val", "test"]),
        ("train", ["eval", "--checkpoint"], "", ["best", "last"]),
        ("prep", ["build-shards", "--format"], "z", ["zarr"]),
        ("prep", ["build-shards", "--codec"], "z", ["zstd"]),
        ("prep", ["build-shards", "--decoder"], "", ["pyav", "opencv"]),
        ("prep", ["build-shards", "--fit"], "c", ["crop"]),
        ("prep", ["completion"], "z", ["zsh"]),
    ],
)
def test_tab_completes_commands_flags_and_values(
    program: str, words: list[str], incomplete: str, wanted: list[str]
) -> None:
    assert [item.value for item in complete(program, words, incomplete)] == wanted


@pytest.mark.parametrize(
    ("program", "words", "kind"),
    [
        ("prep", ["inspect"], "file"), ("prep", ["build-shards", "--out"], "file"), ("train", ["eval"], "dir"),
        ("train", ["predict", "runs/first"], "file"), ("train", ["run", "--shards"], "file"),
    ],
)  # fmt: skip
def test_paths_are_completed_by_the_shell(program: str, words: list[str], kind: str) -> None:
    assert [(item.type, item.value) for item in complete(program, words, "da")] == [(kind, "da")]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_asks_the_program(program: str, shell: str) -> None:
    script = invoke(program, "completion", shell).stdout
    assert f"_{program.upper()}_COMPLETE={shell}_complete" in script and program in script


def test_the_shells_question_is_answered_without_torch() -> None:
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "from train.cli import main; main(prog_name='train')"
    asked = {"_TRAIN_COMPLETE": "bash_complete", "COMP_WORDS": "train run --model sing", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["plain,single_frame", "False"]
