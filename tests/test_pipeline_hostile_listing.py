"""What a stranger's bucket can list: files of a shard that are none are written nowhere, and read nowhere."""

import hashlib
import io
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from conftest import edit_sidecar
from fsspec.implementations.memory import MemoryFileSystem
from fuzz.samples import make_set

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.fetch import place_in
from pipeline.shards.folder import get_folder
from pipeline.share import transfer
from pipeline.verify import verify_set
from train.stream import ClipStream

STEM = "train-000000"


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """A bucket that lists one more file in a shard than a bucket should, and gives it away."""

    protocol = "hostile"
    store: ClassVar[dict[str, object]] = {}
    listed = ""  # behind the name of the shard

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("hostile://"))
        return stripped

    def find(self, path: str, **options: object) -> dict[str, dict[str, object]]:
        """Of a shard, or of the set."""
        found: dict[str, dict[str, object]] = super().find(path, **options)
        shards = {name.rpartition("/")[0] for name in found if name.endswith("/c.0.0.0.0")}
        evil = {"size": len(EVIL), "type": "file"}
        return found | {shard + self.listed: {**evil, "name": shard + self.listed} for shard in shards}

    def _open(self, path: str, *rest: object, **options: object) -> io.BytesIO:
        if self.listed and path.endswith(self.listed):
            return io.BytesIO(EVIL)
        opened: io.BytesIO = super()._open(path, *rest, **options)
        return opened


EVIL = b"evil"
LISTINGS = {
    "absolute": "//{out}/evil",
    "absolute, further in": "/in//{out}/evil",
    "dotted": "/../../../evil",
    "dotted, further in": "/in/../../../../evil",
    "a dot": "/./evil",
    "backslashes": "/..\\..\\evil",
    "hidden": "/.evil",
    "of no format": "/evil",
    "a folder in it": "/in/evil",
    "a name that begins as one": "/c.0.0.0.0/evil",
    "NUL": "/evil\0",
}


@pytest.mark.parametrize("name", LISTINGS)
@pytest.mark.parametrize("counted", [True, False], ids=["counted", "beside"])
def test_what_a_bucket_lists_is_written_nowhere_but_in_the_shard(
    name: str, counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("hostile", Bucket, clobber=True)
    (out := tmp_path / "out").mkdir()
    listed = LISTINGS[name].format(out=str(out).lstrip("/"))
    made = make_set(tmp_path / "set", Recipe(width=8, height=8, format="zarr", max_frames=32))
    if counted:  # the sidecar's digest has it, too
        files = {f"/{file.name}": file.read_bytes() for file in (made / "frames.zarr" / STEM).iterdir()}
        data = b"".join(content for _, content in sorted({**files, listed: EVIL}.items()))
        edit_sidecar(made / f"{STEM}.json", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    Bucket.store.clear()
    Bucket().put(f"{made}/", "/set/", recursive=True)
    monkeypatch.setattr(Bucket, "listed", listed)
    monkeypatch.setattr("pipeline.shards.fetch.PAUSE", 0.0)
    url = "hostile://set"
    said = ""
    try:
        transfer(url, out / "pulled")
        with ClipStream.open(url, frames_per_clip=4, batch_size=2, cache=out / "cache") as stream:
            assert len(list(stream.epoch(0))) == 1
    except UserError as error:
        said = str(error)
    assert bool(verify_set(url, deep=True, jobs=1).damage) == counted == ("missing or cut short" in said), said
    with get_folder(url).local(f"frames.zarr/{STEM}") as copy:
        assert {path.name for path in copy.iterdir()} == {"zarr.json", "c.0.0.0.0"}
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize("below", ["//etc/x", "/../x", "/a/../../x", "/./x", "/", "x", "/a\\b", "/a\0"])
def test_a_name_outside_its_shard_is_refused(below: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the name of a file in it"):
        place_in(tmp_path, below)
    assert place_in(tmp_path, "") == tmp_path and place_in(tmp_path, "/zarr.json") == tmp_path / "zarr.json"
