"""Sets passed around: push, pull, list, diff, through folders, a bucket and web servers; faults on the way."""

import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, build, edit_sidecar, set_bytes, write_video
from far import nginx, s3_at, s3_server, serving
from fuzz.samples import make_set

from pipeline.cli import main
from pipeline.errors import UserError, WorkFailed
from pipeline.recipe import Recipe
from pipeline.report import Step, no_stage
from pipeline.shards.index import read_set
from pipeline.share import transfer
from pipeline.verify import verify_set

FAULTS = ("cut", "500", "short", "flip", "long", "reset")


def prep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.fetch.PAUSE", 0.01)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`s3://share`, on this machine."""
    with s3_server() as url, s3_at(url, tmp_path_factory.mktemp("aws")):
        fsspec.filesystem("s3").mkdir("share")
        yield "s3://share"


@pytest.mark.parametrize("shard_format", ["webdataset", "zarr"])
def test_a_set_goes_to_a_bucket_and_comes_back_the_same(
    team: str, labelled_videos: Path, tmp_path: Path, shard_format: str
) -> None:
    recipe = Recipe(width=32, height=32, format=shard_format)
    build(labelled_videos, tmp_path / "set", recipe=recipe)
    there, shards = f"{team}/{shard_format}", len(read_set(tmp_path / "set").sidecars)
    pushed = json.loads(prep("push", tmp_path / "set", there, "--json").stdout)
    assert (pushed["copied"], pushed["kept"]) == (shards, 0)
    assert json.loads(prep("push", tmp_path / "set", there, "--json").stdout)["kept"] == shards
    assert prep("verify", there, "--deep").exit_code == 0
    assert f"{shards} shards copied" in prep("pull", there, tmp_path / "back").stdout
    assert set_bytes(tmp_path / "back") == set_bytes(tmp_path / "set")
    assert prep("diff", there, tmp_path / "set").exit_code == 0
    listed = json.loads(prep("list", team, "--json").stdout)
    assert shard_format in [found["name"] for found in listed] and all(found["age"] >= 0 for found in listed)


def test_a_set_is_pulled_from_web_servers(many: Path, tmp_path: Path) -> None:
    with serving(many) as server:
        transfer(server.url, tmp_path / "stdlib")
        assert [found["name"] for found in json.loads(prep("list", server.url, "--json").stdout)] == ["."]
        assert re.search("age.*notes(.|\n)*unknown", prep("list", server.url).stdout)  # such a server tells no age
    assert set_bytes(tmp_path / "stdlib") == set_bytes(many)
    with nginx(many.parent, tmp_path) as url:
        if url is None:
            pytest.skip("needs nginx")
        transfer(f"{url}/many", tmp_path / "nginx")
        assert prep("verify", f"{url}/many").exit_code == 0
        names = [found["name"] for found in json.loads(prep("list", url, "--json").stdout)]
    assert set_bytes(tmp_path / "nginx") == set_bytes(many)
    assert {"many", "shards"} <= set(names)
    assert_one_clear_line(prep("push", many, "https://host/x"), 2, "only read from")


def test_a_grown_set_replaces_the_old_one_and_nothing_is_dropped_unasked(
    labelled_videos: Path, tmp_path: Path
) -> None:
    build(labelled_videos, tmp_path / "set")
    transfer(tmp_path / "set", tmp_path / "copy")
    old = Path(shutil.copytree(tmp_path / "set", tmp_path / "old"))
    for number in range(3):
        write_video(labelled_videos / "cats" / f"new{number}.mp4", salt=60 + number)
    build(labelled_videos, tmp_path / "set", per_shard=1)
    transfer(tmp_path / "set", tmp_path / "copy")
    assert set_bytes(tmp_path / "copy") == set_bytes(tmp_path / "set")
    assert_one_clear_line(prep("push", old, tmp_path / "copy"), 2, "holds 3 videos that")
    assert prep("push", old, tmp_path / "copy", "--prune").exit_code == 0
    assert set_bytes(tmp_path / "copy") == set_bytes(old)


def test_places_that_hold_something_else_are_refused(labelled_videos: Path, tmp_path: Path) -> None:
    build(labelled_videos, tmp_path / "set")
    build(labelled_videos, tmp_path / "other", recipe=Recipe(width=16, height=16))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    before = set_bytes(tmp_path / "other")
    assert_one_clear_line(prep("push", tmp_path / "set", tmp_path / "other"), 2, "width=32, not 16")
    assert_one_clear_line(prep("push", tmp_path / "set", tmp_path / "mine"), 2, "holds other files")
    assert_one_clear_line(prep("push", tmp_path / "mine", tmp_path / "x"), 2, "no shard set here")
    assert set_bytes(tmp_path / "other") == before
    (tmp_path / "set" / ".building").write_text("")
    assert_one_clear_line(prep("push", tmp_path / "set", tmp_path / "x"), 2, "unfinished")


def test_a_source_that_changes_meanwhile_is_never_a_whole_set_at_the_target(
    labelled_videos: Path, tmp_path: Path
) -> None:
    build(labelled_videos, tmp_path / "set")

    def change(what: str, total: int) -> Step:
        if what == "copying":
            write_video(labelled_videos / "cats" / "new.mp4", salt=60)
            build(labelled_videos, tmp_path / "set")
        return no_stage(what, total)

    with pytest.raises(WorkFailed, match="has changed"):
        transfer(tmp_path / "set", tmp_path / "copy", stage=change)
    with pytest.raises(UserError, match=r"unfinished|no samples"):
        read_set(tmp_path / "copy")
    transfer(tmp_path / "set", tmp_path / "copy")
    assert set_bytes(tmp_path / "copy") == set_bytes(tmp_path / "set")


def test_check_replaces_what_is_damaged_at_the_target(many: Path, tmp_path: Path) -> None:
    transfer(many, tmp_path / "copy")
    for path in sorted((tmp_path / "copy").glob("*.tar"))[:2]:
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(bytes(data))
    assert transfer(many, tmp_path / "copy").copied == 0
    assert transfer(many, tmp_path / "copy", check=True).copied == 2
    assert set_bytes(tmp_path / "copy") == set_bytes(many)


def test_diff_names_what_differs(labelled_videos: Path, tmp_path: Path) -> None:
    for shard_format in ("webdataset", "zarr"):
        recipe = Recipe(width=32, height=32, format=shard_format)
        other = Path(shutil.copytree(labelled_videos, tmp_path / f"{shard_format}-videos"))
        a, b = tmp_path / f"{shard_format}-a", tmp_path / f"{shard_format}-b"
        build(labelled_videos, a, recipe=recipe, val=0.0)
        (other / "cats" / "0.mp4").unlink()
        write_video(other / "cats" / "2.mp4", frames=22, salt=70)
        write_video(other / "cats" / "extra.mp4", frames=22, salt=71)
        shutil.copy(other / "dogs" / "1.mp4", other / "cats" / "extra.mp4")
        build(other, b, recipe=recipe, per_shard=1, val=0.0)
        result = prep("diff", a, b, "--json")
        found = json.loads(result.stdout)
        assert result.exit_code == 1 and not found["recipe"]
        assert (found["only_a"], found["only_b"]) == (["cats/0.mp4"], ["cats/extra.mp4"])
        assert list(found["changed"]) == ["cats/2.mp4"] == found["frames"]
    assert "recipe: format=webdataset, not zarr" in prep("diff", tmp_path / "webdataset-a", a).stdout


def test_a_name_that_a_terminal_obeys_is_shown_and_not_sent(tmp_path: Path) -> None:
    recipe = Recipe(width=8, height=8, max_frames=32)
    a, b = make_set(tmp_path / "a", recipe), make_set(tmp_path / "b", recipe)
    (first, *others) = json.loads((b / "train-000000.json").read_text())["samples"]
    edit_sidecar(b / "train-000000.json", samples=[{**first, "video": "\x1b]0;x\x07\x1b[2J.mp4"}, *others])
    for result in (prep("diff", a, b), prep("verify", b, "--deep"), prep("verify", "-v", b, "--deep")):
        assert result.exit_code == 1 and "\\x1b[2J.mp4" in result.output
        assert "\x1b" not in result.output and "\x07" not in result.output


def test_diff_fetches_a_shard_once_for_all_its_videos(labelled_videos: Path, tmp_path: Path) -> None:
    rows = [f"{path},{{}},{path.name}\n" for path in sorted(labelled_videos.rglob("*.mp4"))]
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("path,label,key\n" + "".join(rows).format(*[name] * 8))
        recipe = Recipe(width=32, height=32, format="zarr")
        build(tmp_path / f"{name}.csv", tmp_path / name, recipe=recipe, per_shard=32, val=0.0)
    with serving(tmp_path / "b") as server:
        found = json.loads(prep("diff", tmp_path / "a", server.url, "--json").stdout)
        assert len(found["changed"]) == 8 and not found["frames"]
        assert server.counts["c.0.0.0.0"] == 1


@pytest.mark.parametrize("answer", [403, 404, 200])
def test_a_web_server_that_does_not_list_its_folders_is_told_of(many: Path, answer: int) -> None:
    with serving(many) as server:
        server.listing = answer
        for command in ("pull", "verify", "inspect"):
            into = ["never"] if command == "pull" else []
            assert_one_clear_line(
                prep(command, server.url, *into), 2, "must list its folders (nginx: autoindex on)"
            )


# Faults on the way


def test_a_server_that_goes_wrong_is_asked_again(many: Path, tmp_path: Path, exhaustive: bool) -> None:
    dice = random.Random(7)
    for number in range(30 if exhaustive else 1):
        with serving(many) as server:
            for name in (path.name for path in many.glob("*.tar")):
                server.faults[name] = dice.choices(FAULTS, k=dice.randrange(4))
            for name in (
                path.name for path in many.glob("*-*.json")
            ):  # a text is asked for three times, twice over
                server.faults[name] = dice.choices(["500", "cut", "short"], k=dice.randrange(2))
            for _ in range(20):
                try:
                    transfer(server.url, tmp_path / str(number))
                    break
                except UserError:
                    continue
        assert set_bytes(tmp_path / str(number)) == set_bytes(many)
        assert not verify_set(tmp_path / str(number)).damage


def start_transfer(source: Path | str, target: Path | str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "push", str(source), str(target)]
    return subprocess.Popen([*command, "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def _slowly(folder: Path) -> Iterator[str]:
    """The set from a server that takes its time, so that a kill meets a push that has something left to do."""
    with serving(folder) as server:
        server.delay = 0.05
        yield server.url


def can_be_read(target: Path) -> bool:
    """Not while it is said to be unfinished."""
    try:
        read_set(target)
    except UserError as error:
        if not re.search("unfinished|no samples|no shard set", str(error)):
            raise
        return False
    return True


def test_killed_pushes_go_on_and_end_the_same(many: Path, tmp_path: Path, kills: int) -> None:
    dice, target = random.Random(3), tmp_path / "copy"
    landed = 0
    with _slowly(many) as url:
        while landed < kills:
            push = start_transfer(url, target)
            while push.poll() is None and not any(target.glob(".tmp-*")):
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.8))
            push.kill()
            push.wait()
            if can_be_read(target):  # it was through
                assert set_bytes(target) == set_bytes(many)
                shutil.rmtree(target)
                continue
            landed += 1
            if landed % 10 == 0:  # from a fresh start, too
                assert start_transfer(url, target).wait() == 0
                assert set_bytes(target) == set_bytes(many)
                shutil.rmtree(target)
        assert start_transfer(url, target).wait() == 0
    assert set_bytes(target) == set_bytes(many)
    assert not verify_set(target, deep=True).damage


def test_killed_pushes_to_a_bucket_go_on(
    team: str, many: Path, tmp_path: Path, exhaustive: bool, kills: int
) -> None:
    if not exhaustive:
        pytest.skip("a minute; --exhaustive runs it")
    dice, target = random.Random(4), f"{team}/killed"
    with _slowly(many) as url:
        for _ in range(kills):
            push = start_transfer(url, target)
            time.sleep(dice.uniform(1.0, 4.0))
            push.kill()
            push.wait()
        assert start_transfer(url, target).wait() == 0
    assert not verify_set(target).damage
    transfer(target, tmp_path / "back")
    assert set_bytes(tmp_path / "back") == set_bytes(many)


def test_a_full_disk_is_said_and_the_push_goes_on_when_there_is_room(many: Path, small_disk: Path) -> None:
    assert_one_clear_line(prep("push", many, small_disk / "set"), 1, "No space left on device")
    with pytest.raises(UserError, match=r"unfinished|no samples"):
        read_set(small_disk / "set")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert prep("push", many, small_disk / "set").exit_code == 0
    assert set_bytes(small_disk / "set") == set_bytes(many)


def test_two_pushes_at_once_leave_one_set(many: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def push() -> None:
        try:
            transfer(many, tmp_path / "copy")
        except WorkFailed as error:  # said, and the same command goes on
            errors.append(error)

    threads = [threading.Thread(target=push) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transfer(many, tmp_path / "copy")
    assert set_bytes(tmp_path / "copy") == set_bytes(many) and len(errors) < 3
