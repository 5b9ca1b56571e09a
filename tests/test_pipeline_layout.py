"""Whether a sidecar can be true: many at once are judged as each alone."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.layout import check_layout, find_impossible
from pipeline.shards.sidecar import Sample, Sidecar

RECIPE = Recipe(width=4, height=2, max_frames=8)
FRAME = 4 * 2 * 3  # bytes
EVIL = {"frames": 9, "offset": 10**6, "crc32c": "0", "sizes": (3,)}  # each of them is refused


@st.composite
def made_sidecars(draw: st.DrawFn) -> Sidecar:
    """Samples that stand one behind the other, of which one may lie; in any order."""
    samples: list[Sample] = []
    stop = 10
    for place, frames in enumerate(draw(st.lists(st.integers(1, 8), max_size=4))):
        samples.append(Sample(f"key{place}", "video", "label", "group", "0" * 64, frames, stop))
        stop += frames * FRAME + draw(st.integers(0, 3))
    if draw(st.booleans()) and samples:
        place = draw(st.integers(0, len(samples) - 1))
        name, value = draw(st.sampled_from([*EVIL.items(), ("offset", 10)]))  # the last is where the first one is
        samples[place] = replace(samples[place], **{name: value})
    size = draw(st.sampled_from([stop, stop - 4]))
    held = tuple(draw(st.permutations(samples)))
    return Sidecar("train-000000.tar", RECIPE.fingerprint, "train", 0, 1, size, "0" * 64, held, ())


def is_possible(sidecar: Sidecar) -> bool:
    try:
        check_layout(sidecar, RECIPE)
    except UserError:
        return False
    return True


@given(st.lists(made_sidecars(), max_size=6))
def test_many_sidecars_are_judged_as_each_alone(sidecars: list[Sidecar]) -> None:
    impossible = [place for place, sidecar in enumerate(sidecars) if not is_possible(sidecar)]
    found = find_impossible(sidecars, RECIPE)
    assert (found is None) == (not impossible)
    assert found is None or found[0] in impossible


@given(made_sidecars(), st.sampled_from(sorted(EVIL)))
def test_what_lies_is_found(sidecar: Sidecar, name: str) -> None:
    if sidecar.samples and is_possible(sidecar):
        last = len(sidecar.samples) - 1
        samples = (*sidecar.samples[:last], replace(sidecar.samples[last], **{name: EVIL[name]}))
        assert not is_possible(replace(sidecar, samples=samples))
