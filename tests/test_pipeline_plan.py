"""The plan is pure: videos and what stands, in; tasks, out."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import (
    assign_splits,
    bucket_count,
    group_warnings,
    identity,
    lost_videos,
    plan,
    sample_key,
    split_warnings,
)
from pipeline.shards.directory import Standing, sidecar_name
from pipeline.shards.sidecar import Sample, Sidecar
from pipeline.sources import Video

ids = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=80, unique=True)


def videos_of(names: list[str], split: str | None = "train") -> list[Video]:
    return [Video(name, f"/videos/{name}", "label", name, split) for name in names]


def digests_of(videos: list[Video]) -> dict[str, str]:
    return {video.id: f"bytes of {video.path}" for video in videos}


def carry_out(videos: list[Video], standing: Standing, per_shard: int) -> Standing:
    """The set as it stands after the plan's tasks, without any file."""
    todo = plan(videos, digests_of(videos), standing, per_shard)
    after = Standing()
    shards = {name: standing.shards[name] for name in todo.names & set(standing.shards)}
    for task in todo.tasks:
        samples = tuple(
            Sample(
                sample_key(item.video.id),
                item.video.id,
                item.video.label,
                item.video.group,
                digests_of(videos)[item.video.id],
                1,
                i,
            )
            for i, item in enumerate(task.items)
        )
        shards[task.name] = Sidecar(
            f"{task.name}.tar", "f", task.split, task.bucket, task.buckets, 1, "sha", samples, ()
        )
    for sidecar in shards.values():
        after.shards[sidecar_name(sidecar)] = sidecar
        after.learn(sidecar.shard, sidecar)
    return after


@given(ids, st.integers(1, 8))
def test_every_video_is_in_exactly_one_shard(names: list[str], per_shard: int) -> None:
    todo = plan(videos_of(names), {}, Standing(), per_shard)
    assert sorted(item.video.id for task in todo.tasks for item in task.items) == sorted(names)


@given(ids, st.integers(1, 8))
def test_a_second_plan_has_nothing_to_do(names: list[str], per_shard: int) -> None:
    videos = videos_of(names)
    standing = carry_out(videos, Standing(), per_shard)
    assert plan(videos, digests_of(videos), standing, per_shard).tasks == ()


@given(ids, st.text(min_size=1, max_size=12))
def test_adding_one_video_rewrites_one_shard_and_decodes_one_video(names: list[str], new: str) -> None:
    names = [name for name in names if name != new]
    standing = carry_out(videos_of(names), Standing(), 100)
    grown = videos_of([*names, new])
    tasks = plan(grown, digests_of(grown), standing, 100).tasks
    assert [item.video.id for task in tasks for item in task.items if not item.reuse] == [new]
    assert len(tasks) == 1


@given(ids, ids)
def test_growth_copies_what_stands_and_decodes_only_what_is_new(old: list[str], more: list[str]) -> None:
    standing = carry_out(videos_of(old), Standing(), 4)
    grown = videos_of(sorted({*old, *more}))
    todo = plan(grown, digests_of(grown), standing, 4)
    decoded = {item.video.id for task in todo.tasks for item in task.items if not item.reuse}
    assert decoded == set(more) - set(old)


@given(ids)
def test_frames_that_another_task_copies_are_kept_until_it_has(names: list[str]) -> None:
    standing = carry_out(videos_of(names), Standing(), 4)
    moved = videos_of(names, "val")
    todo = plan(moved, digests_of(moved), standing, 4)
    assert set(todo.snapshots) == {name for name, sidecar in standing.shards.items() if sidecar.samples}


def test_other_bytes_under_the_same_name_are_decoded() -> None:
    videos = videos_of(["a", "b"])
    standing = carry_out(videos, Standing(), 4)
    changed = {**digests_of(videos), "b": "other bytes"}
    (task,) = plan(videos, changed, standing, 4).tasks
    assert [item.video.id for item in task.items if not item.reuse] == ["b"]


def test_a_new_label_copies_the_frames() -> None:
    videos = videos_of(["a", "b"])
    standing = carry_out(videos, Standing(), 4)
    relabelled = [videos[0], replace(videos[1], label="other")]
    (task,) = plan(relabelled, digests_of(videos), standing, 4).tasks
    assert all(item.reuse for item in task.items)


@given(ids, st.integers(0, 5))
def test_growing_data_never_moves_a_group_to_another_split(names: list[str], seed: int) -> None:
    few = assign_splits(videos_of(names[: len(names) // 2], None), 0.3, 0.2, seed)
    all_of_them = {video.id: video.split for video in assign_splits(videos_of(names, None), 0.3, 0.2, seed)}
    assert all(all_of_them[video.id] == video.split for video in few)


def test_a_group_stands_on_one_side() -> None:
    videos = [Video(str(i), "", "label", f"recording {i % 7}") for i in range(200)]
    sides = {(video.group, video.split) for video in assign_splits(videos, 0.5)}
    assert len(sides) == 7


def test_a_group_follows_the_split_that_the_source_names_for_one_of_it() -> None:
    videos = [Video("a", "", "label", "g", "test"), Video("b", "", "label", "g")]
    assert [video.split for video in assign_splits(videos, 0.0)] == ["test", "test"]


def test_buckets_are_the_power_of_two_that_keeps_shards_small() -> None:
    assert [bucket_count(n, 32) for n in (0, 1, 32, 33, 64, 65, 100_000)] == [1, 1, 1, 2, 2, 4, 4096]


def test_doubling_the_buckets_leaves_a_video_in_its_bucket_or_its_twin() -> None:
    for name in map(str, range(100)):
        assert identity(name) % 16 in (identity(name) % 8, identity(name) % 8 + 8)


def test_keys_are_readable_and_safe_in_any_tar() -> None:
    assert sample_key("fight/fi001.mp4").startswith("fight-fi001-mp4-")
    for odd in ("-rf.mp4", "ä ö.mp4", "a\nb", "日本", "x" * 300, "\udcff"):
        key = sample_key(odd)
        assert key.isascii() and "." not in key and "/" not in key and len(key) < 90
        assert not key.startswith("-")


def test_a_video_whose_bytes_are_gone_is_called_lost_a_renamed_one_is_not() -> None:
    videos = videos_of(["a", "b"])
    standing = carry_out(videos, Standing(), 4)
    renamed = [videos[0], replace(videos[1], id="new name")]
    assert lost_videos(renamed, digests_of([videos[0]]) | {"new name": digests_of(videos)["b"]}, standing) == []
    assert lost_videos(videos[:1], digests_of(videos[:1]), standing) == ["b"]


def test_warnings_name_shares_that_were_missed_labels_that_lack_and_groups_that_cross() -> None:
    videos = [Video("a", "", "cats", "g", "train"), Video("b", "", "dogs", "g", "val")]
    warnings = " / ".join(split_warnings(videos, {"val": 0.1}))
    assert "val got 50% of the videos, 10% was asked for" in warnings
    assert "train has no video labelled dogs" in warnings
    assert "1 groups stand in more than one split" in warnings


def test_a_group_by_that_puts_nothing_together_is_warned_of() -> None:
    alone = [Video(name, "", "cats", name, None) for name in "ab"]
    together = [replace(video, group="g") for video in alone]
    assert "no two videos share a group" in group_warnings(alone, "^x_(.+)", drawn=True)[0]
    assert not group_warnings(together, "^(.+)_", drawn=True)


def test_drawn_splits_of_videos_without_groups_are_warned_of() -> None:
    alone = [Video("a", "", "cats", "a", "train"), Video("b", "", "cats", "b", "val")]
    (warning,) = group_warnings(alone, None, drawn=True)
    assert "may stand in train and in val" in warning and "--group-by" in warning
    assert not group_warnings(alone, None, drawn=False)  # the source has said so
    assert not group_warnings([replace(video, split="train") for video in alone], None, drawn=True)
    assert not group_warnings([replace(video, group=video.id * 2) for video in alone], None, drawn=True)
