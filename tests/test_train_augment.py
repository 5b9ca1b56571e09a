"""Augmentation: the same for all frames of a clip, repeatable, and nothing where nothing is asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from train.augment import Draws, augment, draw_augmentation, soft_labels
from train.inputs import INPUTS, make_input, to_clips
from train.recipes import Augment
from train.transforms import crop_and_flip

STRONG = Augment(
    flip=0.5, crop=0.3, ratio=1.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0.5,
    erase=0.5, mixup=0.8, cutmix=1.0,
)  # fmt: skip
EACH = [{name: getattr(STRONG, name)} for name in vars(STRONG) if name != "ratio"]


def noise(batch: int = 6, frames: int = 4, height: int = 24, width: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, height, width, 3), dtype=torch.uint8, generator=generator)


def drawn(settings: Augment, frames: Tensor, step: int = 0) -> Draws:
    size = frames.shape[2], frames.shape[3]
    return draw_augmentation(settings, len(frames), size, np.random.default_rng([1, 0, step]))


def augmented(frames: Tensor, step: int = 0, **settings: Any) -> Tensor:
    return augment(frames, drawn(Augment(**settings), frames, step), IMAGENET_MEAN, IMAGENET_STD)


def in_units_of_light(clips: Tensor) -> Tensor:
    """Normalised clips back to 0 … 1."""
    return clips * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)


def plain(frames: Tensor) -> Tensor:
    return to_clips(frames, IMAGENET_MEAN, IMAGENET_STD)


def test_clips_are_normalised_as_the_formula_says() -> None:
    frames = noise()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(plain(frames), expected)


def test_no_augmentation_is_plain_normalisation_to_the_bit() -> None:
    frames = noise()
    assert torch.equal(augmented(frames), plain(frames))


def test_bf16_is_the_float32_clip_rounded() -> None:
    frames = noise()
    draws = drawn(Augment(crop=0.5, brightness=0.4, erase=1.0), frames)
    exact, rounded = (
        augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD, d) for d in (torch.float, torch.bfloat16)
    )
    assert rounded.dtype == torch.bfloat16 and torch.equal(exact.bfloat16(), rounded)


@pytest.mark.parametrize("settings", [*EACH, vars(STRONG)], ids=lambda s: "all" if len(s) > 1 else next(iter(s)))
def test_all_frames_of_a_clip_are_treated_alike(settings: dict[str, Any]) -> None:
    still = noise(frames=1, batch=8).expand(8, 5, 24, 20, 3).contiguous()
    clips = augmented(still, **settings)
    assert torch.equal(clips, clips[:, :1].expand_as(clips))
    assert not torch.equal(clips, plain(still))


def test_a_whole_batch_at_once_as_on_a_gpu_gives_what_clip_by_clip_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(7)
    by_clip = augmented(frames, **vars(STRONG))
    monkeypatch.setattr("train.augment.parts", lambda _: [slice(None)])
    torch.testing.assert_close(augmented(frames, **vars(STRONG)), by_clip)


def test_crops_of_floats_as_on_a_gpu_are_those_of_bytes_but_for_rounding() -> None:
    frames = noise(8)
    draws = drawn(Augment(crop=0.3, ratio=1.5, flip=0.5), frames)
    crops = [crop_and_flip(kind, draws.crop, draws.flip).float() for kind in (frames, frames.float())]
    torch.testing.assert_close(*crops, atol=1.1, rtol=0)  # of 255; bytes are rounded once a direction


def test_a_step_repeats_and_another_step_differs() -> None:
    frames = noise()
    first = augmented(frames, 3, **vars(STRONG))
    assert torch.equal(first, augmented(frames, 3, **vars(STRONG)))
    assert not torch.equal(first, augmented(frames, 4, **vars(STRONG)))


def test_a_rank_gets_what_one_process_would_give_its_clips() -> None:
    frames = noise(8)
    draws = drawn(STRONG, frames)
    whole = augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD)
    for part in (slice(0, 4), slice(4, 8)):
        assert torch.equal(augment(frames[part], draws[part], IMAGENET_MEAN, IMAGENET_STD), whole[part])


def test_turning_a_term_on_leaves_what_the_others_draw() -> None:
    frames = noise()
    one, both = drawn(Augment(crop=0.5), frames), drawn(Augment(crop=0.5, blur=0.5, mixup=1.0), frames)
    assert np.array_equal(one.crop, both.crop) and both.sigma.any() and not one.sigma.any()


def test_a_flip_mirrors_and_twice_is_no_change() -> None:
    frames = noise()
    mirrored = augmented(frames, flip=1.0)
    assert torch.equal(mirrored, plain(frames.flip(3)))
    assert torch.equal(augmented(frames.flip(3), flip=1.0), plain(frames))


def test_half_of_the_clips_are_mirrored() -> None:
    flip = drawn(Augment(flip=0.5), noise(400, 1, 2, 2)).flip
    assert 150 < flip.sum() < 250


def test_crops_lie_in_the_frame_with_the_share_and_shape_asked_for() -> None:
    crop = drawn(Augment(crop=0.4, ratio=1.5), noise(500, 1, 100, 100)).crop
    assert crop.min() >= 0 and (crop[:, :2] + crop[:, 2:]).max() <= 100
    share, shape = crop[:, 2] * crop[:, 3] / 100**2, crop[:, 3] / crop[:, 2]
    assert 0.38 < share.min() < 0.45 and share.max() > 0.95
    assert 0.65 < shape.min() < 0.75 and 1.35 < shape.max() < 1.53


def test_a_crop_is_resized_from_its_box() -> None:
    ramp = torch.arange(0, 200, 2, dtype=torch.uint8).view(1, 1, 1, 100, 1).expand(1, 2, 100, 100, 3).contiguous()
    draws = drawn(Augment(crop=0.2), ramp)
    _, left, _, columns = draws.crop[0].tolist()
    row = in_units_of_light(augment(ramp, draws, IMAGENET_MEAN, IMAGENET_STD))[0, 0, 0, 0] * 255
    expected = 2 * (left + (torch.arange(100) + 0.5) * columns / 100 - 0.5)
    torch.testing.assert_close(row[3:-3], expected[3:-3], atol=0.6, rtol=0)  # bytes are rounded


def test_crop_and_blur_of_one_colour_are_that_colour() -> None:
    frames = torch.full((4, 3, 16, 16, 3), 77, dtype=torch.uint8)
    torch.testing.assert_close(augmented(frames, crop=0.3, ratio=1.4, blur=1.0), plain(frames))


def test_blur_lowers_the_contrast_and_keeps_the_mean() -> None:
    frames = noise(2, 2, 64, 64)
    draws = drawn(Augment(blur=1.0), frames)
    blurred = augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD)
    assert blurred.std() < 0.9 * plain(frames).std()
    assert abs(float(blurred.mean() - plain(frames).mean())) < 0.02


def test_colours_stay_between_black_and_white() -> None:
    light = in_units_of_light(augmented(noise(16), brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5))
    assert -1e-5 < float(light.min()) < 0.01 and 0.99 < float(light.max()) < 1 + 1e-5


def test_brightness_and_contrast_are_the_usual_formulas() -> None:
    frames = noise(1) // 4 + 96  # far from the ends, where nothing is cut
    pixels = frames.permute(0, 1, 4, 2, 3) / 255
    brighter = in_units_of_light(augmented(frames, brightness=0.2))
    factor = float((brighter / pixels).mean())
    torch.testing.assert_close(brighter, factor * pixels, atol=1e-4, rtol=0)
    flatter = in_units_of_light(augmented(frames, contrast=0.2))
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(2).mean()
    factor = float(((flatter - grey) / (pixels - grey)).median())
    torch.testing.assert_close(flatter, grey + factor * (pixels - grey), atol=1e-4, rtol=0)
    assert factor != 1


def test_grayscale_leaves_the_luma_and_hue_and_saturation_leave_greys() -> None:
    frames = noise(3)
    grey = in_units_of_light(augmented(frames, grayscale=1.0))
    luma = (frames / 255 @ torch.tensor([0.299, 0.587, 0.114]))[:, :, None].expand_as(grey)
    torch.testing.assert_close(grey, luma, atol=1e-4, rtol=0)
    greys = frames[..., :1].expand_as(frames).contiguous()
    torch.testing.assert_close(augmented(greys, hue=0.5, saturation=0.9), plain(greys), atol=1e-3, rtol=0)


def test_erasing_blanks_one_box_through_all_frames() -> None:
    frames = noise(20, 3, 32, 32) // 2 + 128  # no pixel is the mean colour
    draws = drawn(Augment(erase=1.0), frames)
    clips = augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD)
    for clip, untouched, (top, left, rows, columns) in zip(
        clips, plain(frames), draws.erase.tolist(), strict=True
    ):
        box = torch.zeros(32, 32, dtype=torch.bool)
        box[top : top + rows, left : left + columns] = True
        assert torch.equal((clip == 0).all(1), box.expand(3, 32, 32)) and box.any()
        assert torch.equal(clip[..., ~box], untouched[..., ~box])


def test_mixup_is_the_weighted_mean_of_a_pair_and_of_its_labels() -> None:
    frames, labels = noise(5), torch.tensor([0, 1, 2, 2, 1])
    draws = drawn(Augment(mixup=0.8), frames)
    clips, own = augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD), plain(frames)
    soft = soft_labels(labels, draws, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    for place, partner in enumerate([1, 0, 3, 2, 4]):
        weight = float(draws.weight[place])
        torch.testing.assert_close(clips[place], weight * own[place] + (1 - weight) * own[partner])
    assert float(soft[1, 0]) == pytest.approx(1 - draws.weight[1]) and soft[4].tolist() == [0, 1, 0]
    assert soft[2, 2] == 1


def test_the_label_share_of_cutmix_is_its_share_of_the_area() -> None:
    frames = torch.zeros(16, 2, 24, 20, 3, dtype=torch.uint8)
    frames[1::2] = 255
    draws = drawn(Augment(cutmix=1.0), frames)
    light = in_units_of_light(augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD))
    white = light.mean((1, 2, 3, 4))
    soft = soft_labels(torch.arange(16) % 2, draws, 2)
    torch.testing.assert_close(soft[:, 1], white)
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    assert len(set(white.tolist())) > 8


def test_with_mixup_and_cutmix_each_pair_gets_one() -> None:
    draws = drawn(Augment(mixup=1.0, cutmix=1.0), noise(200, 1, 8, 8))
    cut = draws.paste[:, 2] > 0
    assert np.array_equal(cut[::2], cut[1::2]) and 30 < cut[::2].sum() < 70
    assert (draws.weight[~cut] < 1).all()


@pytest.mark.parametrize("repeats", [2, 3])
def test_two_clips_of_one_video_are_never_mixed(repeats: int) -> None:
    frames, videos = noise(7 * repeats), torch.arange(7).repeat_interleave(repeats)
    draws = draw_augmentation(Augment(mixup=0.8), len(frames), (24, 20), np.random.default_rng(0), repeats)
    soft = soft_labels(videos, draws, 7)
    shares = [sorted(row[row > 0].tolist()) for row in soft]
    assert all(len(row) == 2 for row in shares[:-repeats]) and shares[-repeats:] == [[1.0]] * repeats
    whole = augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD)
    unit = slice(2 * repeats, 4 * repeats)  # as a rank or a micro-batch gets it
    assert torch.equal(augment(frames[unit], draws[unit], IMAGENET_MEAN, IMAGENET_STD), whole[unit])
    first, other = 2 * repeats, 3 * repeats
    own, weight = plain(frames), float(draws.weight[first])
    torch.testing.assert_close(whole[first], weight * own[first] + (1 - weight) * own[other])


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_too_small_to_mix_pass(batch: int) -> None:
    frames = noise(batch)
    draws = drawn(STRONG, frames)
    assert augment(frames, draws, IMAGENET_MEAN, IMAGENET_STD).shape == (batch, 4, 3, 24, 20)
    assert soft_labels(torch.ones(batch, dtype=torch.int64), draws, 2).tolist() == [[0, 1]] * batch


@pytest.mark.parametrize("settings", [{"crop": 0.0}, {"ratio": 0.5}, {"hue": 0.6}, {"flip": 1.1}, {"mixup": -1}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augment(**settings)


@pytest.mark.parametrize("kind", INPUTS)
def test_each_kind_of_input_has_its_channels(kind: str) -> None:
    assert make_input(plain(noise()), kind).shape == (6, 4, INPUTS[kind], 24, 20)


def test_differences_are_those_of_the_frame_before_and_the_first_repeats() -> None:
    clips = plain(noise())
    change = make_input(clips, "diff")
    for frame in range(1, 4):
        assert torch.equal(change[:, frame], clips[:, frame] - clips[:, frame - 1])
    assert torch.equal(change[:, 0], change[:, 1])
    assert torch.equal(make_input(clips, "rgb+diff"), torch.cat([clips, change], 2))


@pytest.mark.parametrize("frames", [1, 4])
def test_differences_of_a_still_clip_are_zero(frames: int) -> None:
    still = plain(noise(frames=1)).expand(6, frames, 3, 24, 20)
    assert make_input(still, "diff").count_nonzero() == 0


def test_an_unknown_kind_of_input_is_named() -> None:
    with pytest.raises(ValueError, match="flow"):
        make_input(plain(noise()), "flow")
