"""Bytes like others, but not quite: what runs where no coverage-guided fuzzer is installed."""

import random
from collections.abc import Iterator, Sequence

# What readers stumble over: numbers at the edges, and texts that mean more than they are.
WORDS = (
    b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b"9223372036854775808", b"1e999999999", b"true", b'""',
    b"\\ud800", b"../", b"\0", b"\xff", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"[" * 3000, b'{"":' * 3000, b"=1+1",
)  # fmt: skip


def mutations(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` variants of the seeds, the same every time."""
    dice = random.Random(seed)
    for _ in range(count):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 2, 5))):
            place = dice.randrange(len(data) + 1)
            stop = min(len(data), place + dice.choice((0, 1, 4, 30)))
            data[place:stop] = _other(dice, bytes(data), bytes(data[place:stop]))
        yield bytes(data)


def _other(dice: random.Random, whole: bytes, part: bytes) -> bytes:
    kind = dice.randrange(4)
    if kind == 0:
        return dice.choice(WORDS)
    if kind == 1:  # a bit
        flipped = bytearray(part or b"0")
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
        return bytes(flipped)
    if kind == 2:  # something from elsewhere in it
        start = dice.randrange(len(whole) + 1)
        return whole[start : start + dice.choice((1, 8, 100))]
    return dice.randbytes(len(part))
