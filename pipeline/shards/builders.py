"""Any number of builders fill one set, on machines that share nothing but its folder or bucket.

    .builders/<token>.json   a builder's mark: who, where, since when, and what the set is to hold; written again
                             every `RENEW` seconds
    .builders/<shard>.lease  the token of the builder that has this shard in hand
    .builders/gate           held for the moment in which somebody joins, leaves, or takes leases from the dead

Each is created by one alone (`Folder.create`). A builder is dead when its process is gone, where that can be
seen, or when its mark is `EXPIRE` seconds old by the clock of the place: compared with one's own mark, never with
a clock of this machine. A lease is worth as much as its builder's mark. Whoever finds at the end that its lease
was taken away throws its shard away. Where creating is not exclusive, two may make the same shard, and the bytes
are the same.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from pipeline.errors import UserError
from pipeline.foreign import OverlongError, parse_json
from pipeline.machine import is_gone, machine
from pipeline.shards.folder import Folder, Foreign, ask_each, get_folder

BUILDERS = ".builders"
GATE = f"{BUILDERS}/gate"
MARK, LEASE = ".json", ".lease"
RENEW = 15.0  # seconds between two signs of life
EXPIRE = 180.0  # seconds without one; NFS may show a sign of life a minute late
GATE_EXPIRE = 60.0  # of a builder that was killed in the moment in which it held the gate
POLL = 0.1  # seconds between two tries to pass the gate
Shown = Annotated[str, msgspec.Meta(max_length=255)]  # to people, in one line


@dataclass(frozen=True)
class Mark:
    """What a builder says of itself. `goal`: a digest of what it wants the set to hold."""

    token: str
    goal: str
    host: Shown
    pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    machine: str
    since: Shown

    @property
    def who(self) -> str:
        """For people."""
        return f"{self.host} (pid {self.pid}, since {self.since})"


class Crew:
    """The builders of the set at `place`, seen by one of them, who wants it to hold `goal`."""

    def __init__(self, place: str, goal: str) -> None:
        # A folder object of its own: what it writes must not make the others list the set again.
        self._folder = get_folder(place, probe=False)
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.mark = Mark(secrets.token_hex(8), goal, socket.gethostname(), os.getpid(), machine(), since)
        self._renewed: tuple[float, float] | None = None  # by the place's clock, and by ours
        self._stopped = threading.Event()

    @contextmanager
    def joined(self, *, alone: bool = False) -> Iterator[None]:
        """Be one of the builders.

        Raises `UserError` where another one is at work that wants the set to hold something else, or (`alone`)
        where any other is.
        """
        with self.gate():
            self._renew()
            for other in self.others():
                if alone or other.goal != self.mark.goal:
                    self._folder.remove(_mark_name(self.mark.token))
                    raise UserError(_refusal(self._folder, other, alone=alone))
        thread = threading.Thread(target=self._beat, name="builder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
            try:
                self._leave()
            except (OSError, UserError):  # the place is gone or full, and the error of the build says so
                with suppress(OSError, UserError):
                    self._folder.remove(_mark_name(self.mark.token))

    def others(self) -> list[Mark]:
        """The other builders that are alive, by token."""
        found = self._folder.names(BUILDERS)
        tokens = [name.removesuffix(MARK) for name in found if name.endswith(MARK)]
        marks = ask_each(self._folder, self._living, [token for token in tokens if token != self.mark.token])
        return [mark for mark in marks if mark]

    def holders(self, shards: Iterable[str]) -> dict[str, Mark]:
        """Of these shards those that another living builder has in hand, each with that builder.

        Leases of the dead are taken from them.
        """
        leased = self._leases()
        there = [shard for shard in shards if shard in leased]
        held, dead = self._held(there)
        if dead:
            with self.gate():
                # Looked at again: only a dead builder's file is removed, never one that was created meanwhile.
                held, dead = self._held(there)
                for shard in dead:
                    self._folder.remove(_lease_name(shard))
        return held

    def _held(self, shards: list[str]) -> tuple[dict[str, Mark], list[str]]:
        """Those that other living builders have, and those whose lease is of a dead one."""
        tokens = dict(zip(shards, ask_each(self._folder, self._holder, shards), strict=True))
        living = {mark.token: mark for mark in self.others()}
        dead = [shard for shard, token in tokens.items() if token is not None and token not in living]
        return {shard: living[token] for shard, token in tokens.items() if token in living}, dead

    def _leases(self) -> set[str]:
        return {name.removesuffix(LEASE) for name in self._folder.names(BUILDERS) if name.endswith(LEASE)}

    def _holder(self, shard: str) -> str | None:
        return _read(self._folder, _lease_name(shard))

    def _living(self, token: str) -> Mark | None:
        """The mark of a builder that is not known to be dead."""
        name = _mark_name(token)
        written, mark = self._folder.modified(name), parse_mark(_read(self._folder, name), token)
        if mark is None or is_gone(mark.machine, mark.pid):
            return None
        if written is None or self._renewed is None:
            return mark
        there, here = self._renewed
        age = there + (time.monotonic() - here) - written
        return mark if age < EXPIRE else None

    def _beat(self) -> None:
        while not self._stopped.wait(RENEW):
            # The next one tries again; if none succeeds the others take over, and no harm is done.
            with suppress(OSError, UserError):
                self._renew()

    def _renew(self) -> None:
        name = _mark_name(self.mark.token)
        self._folder.write(name, json.dumps(asdict(self.mark), indent=1) + "\n")
        written = self._folder.modified(name)
        self._renewed = (written, time.monotonic()) if written is not None else None

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Nobody else joins, leaves or takes leases away meanwhile."""
        since, seen = time.monotonic(), None
        while not (self._folder.create(GATE, self.mark.token) or self._holds_gate()):
            if (now := (_read(self._folder, GATE), self._folder.modified(GATE))) != seen:
                since, seen = time.monotonic(), now
            elif time.monotonic() - since > GATE_EXPIRE:
                self._folder.remove(GATE)
            time.sleep(POLL)
        try:
            yield
        finally:
            if self._holds_gate():
                self._folder.remove(GATE)

    def _holds_gate(self) -> bool:
        return _read(self._folder, GATE) == self.mark.token

    def _leave(self) -> None:
        """Take away what is ours, and what is of the dead; the last one takes the folder along."""
        with self.gate():
            self._folder.remove(_mark_name(self.mark.token))
            living = {mark.token for mark in self.others()}
            for name in self._folder.names(BUILDERS):
                token = name.removesuffix(MARK)
                if name.endswith(LEASE):
                    token = self._holder(name.removesuffix(LEASE)) or ""
                if name.endswith((MARK, LEASE)) and token not in living:
                    self._folder.remove(f"{BUILDERS}/{name}")
            if not living:
                self._folder.remove(BUILDERS)


@contextmanager
def lease(folder: Folder, shard: str, token: str) -> Iterator[bool]:
    """Have the shard in hand, as the builder `token` (""; one that asks nobody); yields whether that is so.

    Goes on, too, where this builder had it already: its worker died, and another one does the work again.
    """
    if not token:
        yield True
        return
    held = folder.create(_lease_name(shard), token) or is_held(folder, shard, token)
    try:
        yield held
    finally:
        if held and is_held(folder, shard, token):
            folder.remove(_lease_name(shard))


def is_held(folder: Folder, shard: str, token: str) -> bool:
    """Whether the shard is still the builder's: it may have slept for so long that it was taken for dead."""
    return not token or _read(folder, _lease_name(shard)) == token


def names_of(crew: Collection[Mark]) -> str:
    """Who they are, for people."""
    first = min(crew, key=lambda mark: mark.token)
    return first.who if len(crew) == 1 else f"{first.who} and {len(crew) - 1} more"


def _refusal(folder: Folder, other: Mark, *, alone: bool) -> str:
    wants = (
        "--overwrite would remove what it makes; leave the option out to join it"
        if alone and other.goal
        else "it builds from other videos or with other options, and two would undo each other"
    )
    return (
        f"{folder}: {other.who} is building this set: {wants}. Wait for it to end (or stop it: {EXPIRE / 60:g} "
        "minutes after its last sign of life it is in nobody's way), or give another --out"
    )


def _mark_name(token: str) -> str:
    return f"{BUILDERS}/{token}{MARK}"


def _lease_name(shard: str) -> str:
    return f"{BUILDERS}/{shard}{LEASE}"


def _read(folder: Folder, name: str) -> str | None:
    """What stands there; "" for what is no text of ours, and so no living builder's: anybody may write there."""
    try:
        return folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, OverlongError, Foreign):
        return ""


def parse_mark(text: str | None, token: str) -> Mark | None:
    """The mark of the builder `token`; None for what is none."""
    try:
        mark = msgspec.convert(parse_json(text or ""), Mark)
    except ValueError:
        return None
    return mark if mark.token == token else None
