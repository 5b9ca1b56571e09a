"""Where videos come from: a folder or a CSV to a list of `Video`. Lists names; opens no video."""

import csv
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.errors import UserError
from pipeline.foreign import CONTROL
from pipeline.places import as_place, filesystem, is_url, reached

VIDEO_EXTENSIONS = frozenset(
    [
        ".3g2",
        ".3gp",
        ".apng",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
# Folder names that mean a split; several data sets spell them their own way.
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the one label of videos that have none
LABEL_PATTERN = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")  # surrogates: bytes that are not UTF-8


@dataclass(frozen=True, slots=True)
class Video:
    """One source video.

    `id` is its identity: the CSV's `key`, else the path relative to the source's root, so that teammates with
    other roots get the same set. `group`: what it was cut from; a group never stands in two splits by our
    doing. `split` is None where the source does not say.
    """

    id: str
    path: str
    label: str
    group: str
    split: str | None = None


def list_videos(source: Path | str, group_by: str | None = None, *, labelled: bool = True) -> list[Video]:
    """The videos of a folder or a CSV, at a path or a URL, sorted by id.

    Folders: `<label>/…/*.mp4`, or `<split>/<label>/…/*.mp4` where every folder is named train, val or test.
    CSV: columns `path,label[,split][,group][,key]`, paths relative to the CSV, or URLs. `group_by`: a regular
    expression whose first group (or whole match) in the id is the video's group; what it does not match is
    a group of its own. Without labels (`labelled` false) folders, but for the splits, and the CSV's column mean
    nothing and need not be there. Raises `UserError`.
    """
    pattern = _compile(group_by)
    source = as_place(str(source))
    if isinstance(source, str):
        with reached(source):
            videos = _from_url(source, pattern, labelled=labelled)
    elif source.is_dir():
        videos = _from_folder(str(source), sorted(_walk(source)), pattern, labelled=labelled)
    elif source.is_file():
        videos = _from_csv(str(source), _read(source), pattern, labelled=labelled)
        if not any(is_url(video.path) or os.path.exists(video.path) for video in videos):
            raise UserError(f"{source}: none of its {len(videos)} videos exists; the first is looked for at "
                            f"{videos[0].path} (paths are relative to the CSV)")  # fmt: skip
    else:
        raise UserError(
            f"{source}: no such file or folder; give a folder of <label>/*.mp4, or a CSV with path,label "
            "(`prep sample-videos data/videos` makes some to try)"
        )
    videos.sort(key=lambda video: video.id)
    twice = [video.id for video, following in pairwise(videos) if video.id == following.id]
    if twice:
        raise UserError(f"{source}: {twice[0]!r} is listed {'twice' if len(twice) == 1 else 'more than once'}; "
                        "each video needs a path (or key) of its own")  # fmt: skip
    return videos


def _compile(group_by: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(group_by) if group_by else None
    except re.error as error:
        raise UserError(f"--group-by {group_by}: not a regular expression: {error}") from None


def _group(video_id: str, pattern: re.Pattern[str] | None) -> str:
    found = pattern.search(video_id) if pattern else None
    if not found:
        return video_id
    return next((part for part in found.groups() if part), found.group()) or video_id


def _from_url(url: str, pattern: re.Pattern[str] | None, *, labelled: bool) -> list[Video]:
    """Whatever the far end says goes wrong is raised as it is."""
    system, path = filesystem(url)
    if url.lower().endswith(".csv"):
        return _from_csv(url, _decoded(system.cat_file(path)), pattern, labelled=labelled)
    names = (name[len(path) :].strip("/") for name in system.find(path))
    found = [tuple(name.split("/")) for name in names if _is_video(name) and not _is_hidden(name)]
    return _from_folder(url, sorted(found), pattern, labelled=labelled)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _from_folder(
    root: str, found: list[tuple[str, ...]], pattern: re.Pattern[str] | None, *, labelled: bool
) -> list[Video]:
    """`found`: the parts of each video's path below `root`."""
    if not found:
        raise UserError(
            f"{root}: no videos in this folder (looked for .mp4, .avi, .mkv and {len(VIDEO_EXTENSIONS) - 3} more)"
        )
    by_split = all(len(parts) > 1 and parts[0].lower() in SPLIT_FOLDERS for parts in found)
    if labelled:
        _check_folders(root, found, by_split=by_split)
    videos = []
    for parts in found:
        id_ = "/".join(parts)
        split = SPLIT_FOLDERS[parts[0].lower()] if by_split else None
        label = parts[by_split] if labelled else UNLABELLED
        if CONTROL.search(label):
            raise UserError(f"{root}: the folder name {label!r} has control characters; rename it, it is a label")
        videos.append(Video(id_, os.path.join(root, *parts), label, _group(id_, pattern), split))
    return videos


def _check_folders(root: str, found: list[tuple[str, ...]], *, by_split: bool) -> None:
    """Raises `UserError` where the layout does not give every video a label."""
    loose = [parts[-1] for parts in found if len(parts) == 1]
    if loose:
        raise UserError(
            f"{root}: {loose[0]} stands outside a label folder ({len(loose)} such); "
            "sort videos into <label>/ folders, give a CSV with path,label, or say --unlabelled"
        )
    tops = {parts[0] for parts in found}
    splits = {top for top in tops if top.lower() in SPLIT_FOLDERS}
    if splits and splits != tops:
        raise UserError(
            f"{root}: {sorted(splits)[0]} looks like a split, {sorted(tops - splits)[0]} like a label; "
            "lay them out as <split>/<label>/*.mp4 or as <label>/*.mp4, or give a CSV"
        )
    unlabelled = [parts for parts in found if by_split and len(parts) == 2]
    if unlabelled:
        raise UserError(
            f"{root}: {'/'.join(unlabelled[0])} stands in a split but in no label folder "
            f"({len(unlabelled)} such); lay them out as <split>/<label>/*.mp4, or say --unlabelled"
        )


def _walk(root: Path) -> Iterator[tuple[str, ...]]:
    """Every video below `root`, as the parts of its relative path; hidden files and folders left out."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

    seen: set[str] = set()  # a link may lead back to where it stands
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        parents = Path(folder).relative_to(root).parts
        for name in names:
            if not _is_hidden(name) and _is_video(name):
                yield (*parents, name)


def _read(path: Path) -> str:
    try:
        return _decoded(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from error


def _decoded(content: bytes) -> str:
    """Line ends stay as they are, and bytes that are not UTF-8 do as in `os.fsdecode`: file names have both."""
    return content.decode("utf-8-sig", errors="surrogateescape")


def is_csv_label(label: str) -> bool:
    """Whether a label read from a CSV is this one; folders may have names that are none."""
    return label == label.strip() and LABEL_PATTERN.fullmatch(label) is not None


def _from_csv(place: str, text: str, pattern: re.Pattern[str] | None, *, labelled: bool) -> list[Video]:
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        columns = set(rows.fieldnames or ())
        if len(columns) < len(rows.fieldnames or ()):
            raise UserError(f"{place}: two columns of its first line have the same name")
        needed = ["path", *(["label"] if labelled else [])]
        if not columns.issuperset(needed):
            raise UserError(
                f"{place}: a CSV of videos needs the columns {','.join(needed)} (and may have split, group, key); "
                f"its first line has {', '.join(sorted(columns)) or 'nothing'}"
            )
        videos = [_from_row(place, rows.line_num, row, pattern, labelled=labelled) for row in rows]
    except csv.Error as error:
        raise UserError(f"{place}: cannot be read as CSV: {error}") from error
    if not videos:
        raise UserError(f"{place}: lists no videos")
    return videos


def _from_row(
    place: str, line: int, row: dict[str, str | None], pattern: re.Pattern[str] | None, *, labelled: bool
) -> Video:
    def cell(name: str) -> str:
        """As it stands, for a file's name may begin with a blank; but one of blanks alone is empty."""
        text = row.get(name) or ""
        return text if text.strip() else ""

    def refuse(problem: str) -> UserError:
        return UserError(f"{place}, line {line}: {problem}")

    label, split = cell("label").strip() if labelled else UNLABELLED, cell("split").strip().lower()
    if not cell("path") or not label:
        raise refuse("path or label is empty")
    for name in ("path", "group", "key"):
        if "\0" in cell(name):
            raise refuse(f"{name} has a NUL byte")
    if not is_csv_label(label):
        raise refuse("label has control characters, bytes that are not UTF-8, or more than 200 characters")
    if split and split not in SPLIT_FOLDERS:
        raise refuse(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    try:
        name, path = _located(cell("path"), os.path.dirname(place))
    except UserError as error:
        raise refuse(str(error)) from None
    id_ = cell("key") or name
    return Video(
        id=id_,
        path=path,
        label=sys.intern(label),  # one string for all videos that have it
        group=cell("group") or _group(id_, pattern),
        split=SPLIT_FOLDERS[split] if split else None,
    )


def _located(text: str, folder: str) -> tuple[str, str]:
    """What a video is called, and where it lies, by the path or URL in a CSV in `folder`. Raises `UserError`."""
    found = as_place(text)
    if isinstance(found, str):
        return text, text
    if is_url(text) and found.is_relative_to(Path(folder).absolute()):  # file://
        found = found.relative_to(Path(folder).absolute())
    return found.as_posix(), os.path.join(folder, found)
