"""Folders and CSVs to lists of videos, and what a user is told when they do not fit."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.places import absolute, as_place
from pipeline.sources import list_videos


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def csv_of(root: Path, text: str) -> Path:
    touch(root, "a.mp4", "b.mp4")
    path = root / "videos.csv"
    path.write_text(text)
    return path


def test_folders_are_labels(tmp_path: Path) -> None:
    videos = list_videos(touch(tmp_path, "cats/a.mp4", "dogs/deep/b.AVI", "dogs/.hidden.mp4", "cats/notes.txt"))
    assert [(v.id, v.label, v.split, v.group) for v in videos] == [
        ("cats/a.mp4", "cats", None, "cats/a.mp4"),
        ("dogs/deep/b.AVI", "dogs", None, "dogs/deep/b.AVI"),
    ]


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    videos = list_videos(touch(tmp_path, "train/Fight/a.avi", "Validation/NonFight/b.avi"))
    assert [(v.split, v.label) for v in videos] == [("val", "NonFight"), ("train", "Fight")]


def test_without_labels_folders_mean_nothing_but_for_splits(tmp_path: Path) -> None:
    loose = list_videos(touch(tmp_path / "loose", "a.mp4", "cats/b.mp4", "train/c.mp4"), labelled=False)
    assert [(v.id, v.label, v.split) for v in loose] == [
        ("a.mp4", "unlabelled", None), ("cats/b.mp4", "unlabelled", None), ("train/c.mp4", "unlabelled", None),
    ]  # fmt: skip
    split = list_videos(touch(tmp_path / "split", "train/a.mp4", "val/deep/b.mp4"), labelled=False)
    assert [(v.label, v.split) for v in split] == [("unlabelled", "train"), ("unlabelled", "val")]
    (listed,) = list_videos(csv_of(tmp_path, "path,label\na.mp4,\n"), labelled=False)
    assert listed.label == "unlabelled"


def test_group_by_finds_the_recording_in_the_name(tmp_path: Path) -> None:
    root = touch(tmp_path, "fight/abc_0.avi", "fight/abc_1.avi", "fight/other.avi")
    groups = [video.group for video in list_videos(root, r"([^/]+)_\d+\.avi$")]
    assert groups == ["abc", "abc", "fight/other.avi"]
    assert len({video.group for video in list_videos(root, "z*")}) == 3  # matches nothing, everywhere


def test_a_link_that_leads_back_lists_nothing_twice(tmp_path: Path) -> None:
    root = touch(tmp_path, "cats/a.mp4")
    (root / "cats" / "loop").symlink_to(root / "cats")
    assert [video.id for video in list_videos(root)] == ["cats/a.mp4"]


def test_a_csv_may_name_split_group_and_key(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "path,label,split,group,key\na.mp4,cats,TRAIN,g,one\nb.mp4,dogs,,,\n")
    one, b = sorted(list_videos(path), key=lambda video: video.label)
    assert (one.id, one.split, one.group, one.path) == ("one", "train", "g", str(tmp_path / "a.mp4"))
    assert (b.id, b.split, b.group) == ("b.mp4", None, "b.mp4")


def test_paths_keys_and_groups_of_a_csv_are_taken_as_they_stand(tmp_path: Path) -> None:
    touch(tmp_path, " b\r\n.mp4")
    text = f'path,label,split,group,key\n" b\r\n.mp4", cats , TRAIN ," g","{"k" * 201}\n "\na.mp4,cats,,  ,\n'
    path = csv_of(tmp_path, "")
    path.write_bytes(text.encode())
    a, b = list_videos(path)
    assert (b.path, b.label, b.split, b.group) == (str(tmp_path / " b\r\n.mp4"), "cats", "train", " g")
    assert (a.id, a.group, b.id) == ("a.mp4", "a.mp4", "k" * 201 + "\n ")


def test_a_csv_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "\ufeffpath,label\r\na.mp4,cats\r\n")
    assert [video.label for video in list_videos(path)] == ["cats"]


def test_a_csv_in_another_encoding_is_refused_where_it_would_change_labels(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "")
    path.write_bytes("path,label\na.mp4,été\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"line 2: label has .* bytes that are not UTF-8"):
        list_videos(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,cats\n", "needs the columns path,label"),
        ("", "its first line has nothing"),
        ("path,label\n", "lists no videos"),
        ("path,label\na.mp4,\n", "line 2: path or label is empty"),
        ("path,label,split\na.mp4,cats,holdout\n", "split is 'holdout'"),
        ("path,label\ns3://,cats\n", "line 2: s3://: names no bucket"),
        ("path,label\nx.mp4,cats\n", "none of its 1 videos exists"),
        ("path,label\na.mp4,cats\na.mp4,dogs\n", "'a.mp4' is listed twice"),
        ("path,label\na.mp4,ca\x07ts\n", "control characters"),
        ("path,label,key\na.mp4,cats,a\0\n", "line 2: key has a NUL byte"),
    ],
)
def test_a_csv_that_does_not_fit_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_videos(csv_of(tmp_path, text))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "no videos in this folder"),
        (["a.mp4", "cats/b.mp4"], "a.mp4 stands outside a label folder"),
        (["train/a.mp4", "val/b.mp4"], "stands in a split but in no label folder"),
        (["train/cats/a.mp4", "extra/b.mp4"], "train looks like a split, extra like a label"),
    ],
)
def test_a_folder_that_does_not_fit_says_why(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_videos(touch(tmp_path, *names))


def test_a_wrong_path_says_what_would_be_right(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder; give a folder"):
        list_videos(tmp_path / "nowhere")


def test_a_broken_expression_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--group-by"):
        list_videos(touch(tmp_path, "cats/a.mp4"), "(")


def test_file_urls_are_paths(tmp_path: Path) -> None:
    root = touch(tmp_path / "50% of it#1", "cats/a b.mp4")
    assert as_place(root.as_uri()) == as_place(f"FILE://localhost{root.as_uri()[7:]}") == root
    assert absolute(f"file://{tmp_path}/no%FF?#x") == f"{tmp_path}/no\udcff?#x"
    assert [video.path for video in list_videos(root.as_uri())] == [str(root / "cats" / "a b.mp4")]
    with pytest.raises(UserError, match=r"file://server/a\.mp4: names no file of this machine"):
        as_place("file://server/a.mp4")


def test_file_urls_in_a_csv_are_paths(tmp_path: Path) -> None:
    beside, other = tmp_path / "set" / "in it.mp4", tmp_path / "else where.mp4"
    path = csv_of(touch(tmp_path / "set"), f"path,label,key\n{beside.as_uri()},cats,\n{other.as_uri()},cats,\n"
                  f"{(tmp_path / 'set' / 'a.mp4').as_uri()},cats,key\na.mp4,dogs,\n")  # fmt: skip
    found = {video.id: video.path for video in list_videos(path)}
    plain = str(tmp_path / "set" / "a.mp4")
    assert found == {"in it.mp4": str(beside), str(other): str(other), "key": plain, "a.mp4": plain}


@pytest.mark.parametrize("url", ["s3://", "s3:///videos", "https:///", "memory://"])
def test_a_url_without_a_bucket_or_host_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="names no bucket or host"):
        list_videos(url)
    assert as_place("memory:///videos/") == "memory:///videos"
