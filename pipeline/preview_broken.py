"""What `prep preview` says of videos that were rejected, or kept in part: how many why, and which."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.page import html, shown
from pipeline.preview_clips import names_of
from pipeline.shards.index import ShardSet
from pipeline.shards.sidecar import Broken

MOST = 300  # videos of each kind that are shown
REASONS = 12  # that are counted each
NUMBER = re.compile(r"[0-9]+(?:[.,:][0-9]+)*")


@dataclass(frozen=True)
class Entry:
    """A video that is `rejected` or `damaged`."""

    state: str
    split: str
    broken: Broken

    def as_dict(self) -> dict[str, Any]:
        """What the page takes of it: there is nothing to play."""
        nothing = dict.fromkeys(("seconds", "brightness", "motion", "sheet"))
        reason = shown(self.broken.reason, 300)
        return {**names_of(self.broken, self.split), **nothing, "state": self.state, "reason": reason}


def broken_videos(shard_set: ShardSet) -> tuple[list[Entry], list[Entry]]:
    """The rejected and the damaged ones, by path."""
    rejected = [Entry("rejected", car.split, broken) for car in shard_set.sidecars for broken in car.rejected]
    damaged = [Entry("damaged", car.split, broken) for car in shard_set.sidecars for broken in car.damaged]
    return sorted(rejected, key=_path), sorted(damaged, key=_path)


def _path(entry: Entry) -> str:
    return entry.broken.video


def broken_text(rejected: Sequence[Entry], damaged: Sequence[Entry]) -> str:
    """Both as HTML: reasons by their number, then a table by path."""
    if not rejected and not damaged:
        return "<p>Nothing was rejected, and nothing is damaged.</p>"
    text = f"{len(rejected):,} rejected, {len(damaged):,} damaged and kept in part."
    if max(len(rejected), len(damaged)) > MOST:
        text += f" The first {MOST} of each are shown; prep inspect lists them all."
    listed = sorted([*rejected[:MOST], *damaged[:MOST]], key=_path)
    counts = Counter(_kind(entry.broken.reason) for entry in (*rejected, *damaged)).most_common()
    return f"<p>{text}</p>{_reasons(counts) if len(listed) > len(counts) else ''}{_table(listed)}"


def _kind(reason: str) -> str:
    """The reason without its numbers, which differ from video to video."""
    return NUMBER.sub("…", shown(reason, 300))


def _reasons(counts: Sequence[tuple[str, int]]) -> str:
    rows = [(f"{count:,}", reason) for reason, count in counts[:REASONS]]
    if rest := counts[REASONS:]:
        rows.append((f"{sum(count for _, count in rest):,}", f"{len(rest):,} other reasons"))
    body = "".join(f'<tr><td class="number">{count}</td><td>{html(reason)}</td></tr>' for count, reason in rows)
    head = "<tr><th scope=col class=number>videos</th><th scope=col>why</th></tr>"
    return f'{_scroll("Reasons")}<table class="reasons"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _table(entries: Sequence[Entry]) -> str:
    head = "".join(f"<th scope=col>{name}</th>" for name in ("video", "label", "split", "state", "frames", "why"))
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, entries))}</tbody>"
    return f"{_scroll('Rejected and damaged')}<table>{body}</table></div>"


def _row(entry: Entry) -> str:
    broken = entry.broken
    return (
        f"<tr><td>{html(shown(broken.video))}</td><td>{html(shown(broken.label))}</td><td>{html(entry.split)}</td>"
        f'<td>{entry.state}</td><td class="number">{broken.frames:,}</td>'
        f"<td>{html(shown(broken.reason, 300))}</td></tr>"
    )


def _scroll(name: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
