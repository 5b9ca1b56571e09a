"""The transformer families: every kind of attention, masks and losses of pre-training, what is refused."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model, count_parameters
from models.family import Family
from models.videomae import VideoMAE, VideoMAEPretraining, sincos_positions, sincos_table
from models.vit import DropPath, join_tubelets, split_tubelets
from models.vivit import ATTENTIONS, ViViT

VIVITS = [{"attention": attention} for attention in ATTENTIONS] + [
    {"embedding": "uniform"},
    {"attention": "factorised_encoder", "embedding": "uniform"},
]
VARIANTS: list[tuple[str, dict[str, Any]]] = [*(("vivit", options) for options in VIVITS), ("videomae", {})]
EACH = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: "-".join([*value.values()])
                               if isinstance(value, dict) else value)  # fmt: skip


def awake(model: nn.Module) -> nn.Module:
    """The model with random numbers of ordinary size for all weights: none is zero, none hides another."""
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "pos_embed", "mask_token")):
            nn.init.normal_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1)
    return model.eval()


def small(name: str, options: dict[str, Any], frames: int = 4, size: tuple[int, int] = (64, 48)) -> Family:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, num_frames=frames, size=size, scale="micro", **options)
    assert isinstance(model, Family)
    return model


def pretraining(size: tuple[int, int] = (64, 48), **options: Any) -> VideoMAEPretraining:
    torch.manual_seed(0)
    return VideoMAEPretraining(num_frames=4, size=size, scale="micro", **options)


def test_pre_training_has_the_size_that_it_claims() -> None:
    with torch.device("meta"):
        model = VideoMAEPretraining(num_frames=16, size=(112, 112))
    assert round(count_parameters(model) / 1e6, 2) == 94.21


@EACH
def test_frames_and_sizes_of_the_course_go_forward_and_back(
    name: str, options: dict[str, Any], exhaustive: bool
) -> None:
    for frames, side in product((8, 16, 32), (112, 160, 224)) if exhaustive else [(8, 160)]:
        model = small(name, options, frames, (side, side))
        logits = model(torch.randn(1, frames, 3, side, side))
        logits.square().sum().backward()
        assert logits.shape == (1, 3)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@EACH
def test_bf16_logits_are_near_those_of_fp32(name: str, options: dict[str, Any]) -> None:
    model, clips = awake(small(name, options)), torch.randn(2, 4, 3, 48, 64)
    with torch.inference_mode():
        exact = model(clips)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(clips).float()
    assert (rough - exact).norm() / exact.norm() < 2e-2


@EACH
def test_compiled_and_exported_models_say_the_same(name: str, options: dict[str, Any], exhaustive: bool) -> None:
    if not exhaustive and options != {"attention": "factorised_self_attention"}:
        pytest.skip("the others take long to trace; --exhaustive compiles them")
    model, clips = awake(small(name, options)), torch.randn(2, 4, 3, 48, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(model, (clips,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(compiled(clips), model(clips))
        torch.testing.assert_close(exported(clips), model(clips))


@EACH
def test_a_clip_is_seen_alone_and_its_frames_in_order(name: str, options: dict[str, Any]) -> None:
    model, clips = awake(small(name, options)), torch.randn(3, 4, 3, 48, 64)
    with torch.inference_mode():
        logits = model(clips)
        torch.testing.assert_close(logits[1:2], model(clips[1:2]))
        assert (model(clips.flip(1)) - logits).abs().max() > 1e-3 * logits.abs().max()


@EACH
def test_each_parameter_is_in_one_stage(name: str, options: dict[str, Any]) -> None:
    model = small(name, options)
    stages = model.stages()
    counts = Counter(
        id(p) for stage in stages for p in (stage.parameters() if isinstance(stage, nn.Module) else [stage])
    )
    assert counts == Counter(id(p) for p in model.parameters())
    assert stages[1] is model.get_submodule("blocks.0")


@EACH
def test_vectors_tokens_and_positions_do_not_decay(name: str, options: dict[str, Any]) -> None:
    model = small(name, options)
    still = model.undecayed()
    decaying = {name for name, parameter in model.named_parameters() if parameter not in still}
    assert decaying and all(name.endswith(".weight") and "norm" not in name for name in decaying)


def test_a_factorised_encoder_sees_each_frame_by_itself() -> None:
    model = small("vivit", {"attention": "factorised_encoder", "embedding": "uniform"})
    assert isinstance(model, ViViT)
    clips = torch.randn(2, 4, 3, 48, 64)
    changed = clips.clone()
    changed[1, 2] += 1
    awake(model)
    same = (model.tokens(clips) == model.tokens(changed)).all(2).all(1)
    assert same.tolist() == [True] * 6 + [False, True]  # B·T frames


@pytest.mark.parametrize("attention", ["factorised_self_attention", "factorised_dot_product"])
def test_factorised_attention_looks_along_time_and_space(attention: str) -> None:
    model = awake(small("vivit", {"attention": attention, "embedding": "uniform"}))
    steps, patches = 4, 3 * 4
    looks = model.get_submodule("blocks.0.attn" if attention == "factorised_dot_product" else "blocks.0")
    x = torch.randn(1, steps * patches, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad(looks(x).view(steps, patches, 48)[1, 2].sum(), x)
    reached = gradient.view(steps, patches, 48).abs().sum(-1) > 0
    cross = torch.zeros_like(reached)
    cross[1], cross[:, 2] = True, True
    assert reached.all() if attention == "factorised_self_attention" else torch.equal(reached, cross)


def test_tubelets_are_cut_as_a_convolution_cuts_them() -> None:
    model, clips = small("videomae", {}), torch.randn(2, 4, 3, 48, 64)
    assert isinstance(model, VideoMAE)
    tokens = model.patch_embed(model.split(clips))
    expected = model.patch_embed.proj(clips.transpose(1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected)
    assert torch.equal(join_tubelets(split_tubelets(clips, 2), model.grid), clips)


def test_long_and_short_sequences_attend_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clips = awake(small("vivit", {})), torch.randn(1, 4, 3, 48, 64)
    short = model(clips)
    monkeypatch.setattr("models.vit.SHORT", 0)
    torch.testing.assert_close(model(clips), short)


def test_positions_are_the_native_table_resized() -> None:
    native = sincos_positions((8, 14, 14), 48)
    assert torch.equal(native, sincos_table(8 * 14 * 14, 48))
    half = native.view(8, 7, 2, 7, 2, 48).mean((2, 4)).view(1, -1, 48)
    torch.testing.assert_close(sincos_positions((8, 7, 7), 48), half)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    dropped = drop(torch.ones(4000, 2, 3))
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[:, 0, 0], dropped[:, 1, 2])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(4, 2)), torch.ones(4, 2))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vivit", {"num_frames": 5}, "multiple of 2 frames, got 5"),
        ("videomae", {"size": (60, 48)}, "multiple of 16 pixels, got 60×48"),
        ("vivit", {"attention": "none"}, "no attention 'none'; there are joint"),
        ("vivit", {"embedding": "none"}, "no embedding 'none'; there are tubelet"),
        ("vivit", {"inflation": "none"}, "central_frame or average"),
        ("vivit", {"drop_path": 1.0}, "drop_path is at least 0 and less than 1, not 1.0"),
        ("videomae", {"drop_path": -0.1}, "drop_path is at least 0 and less than 1"),
        ("videomae", {"drop_path": float("nan")}, "drop_path is at least 0 and less than 1"),
        ("vivit", {"attention": "factorised_encoder", "temporal_depth": 0}, "a temporal_depth of at least 1"),
        ("vivit", {"position_std": 0.0}, "a position_std above 0"),
        ("videomae", {"patch_gain": 0.0}, "a patch_gain above 0"),
        ("videomae", {"scale": "huge"}, "no scale is called 'huge'; there are micro"),
    ],
)
def test_what_a_family_cannot_take_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    fitting: dict[str, Any] = {"num_classes": 2, "num_frames": 4, "size": (64, 48), "scale": "micro"}
    with pytest.raises(ValueError, match=words):
        build_model(name, **(fitting | options))


def test_positions_start_as_far_apart_as_asked() -> None:
    model = small("vivit", {"attention": "factorised_encoder", "position_std": 0.5})
    positions = torch.cat([model.get_parameter(f"{part}pos_embed").flatten() for part in ("", "temporal.")])
    assert positions.std().item() == pytest.approx(0.5, rel=0.1)


def test_patches_start_as_much_fainter_as_asked() -> None:
    plain, faint = (small("videomae", {"patch_gain": gain}).state_dict() for gain in (1.0, 0.25))
    for name, tensor in plain.items():
        assert torch.equal(faint[name], tensor * (0.25 if name == "patch_embed.proj.weight" else 1))


def test_other_clips_are_refused() -> None:
    model = small("videomae", {})
    with pytest.raises(ValueError, match="made for 4 frames, got 8"):
        model(torch.zeros(1, 8, 3, 48, 64))
    with pytest.raises(ValueError, match=r"made for \[4, 3, 48, 64\] clips, got \[4, 3, 64, 48\]"):
        model(torch.zeros(1, 4, 3, 64, 48))


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 5), (0.75, 13)])
def test_a_tube_mask_hides_the_same_patches_in_all_time_steps(ratio: float, visible: int) -> None:
    model = VideoMAEPretraining(num_frames=16, size=(112, 112), scale="micro", mask_ratio=ratio)
    mask = model.tube_mask(6, torch.Generator().manual_seed(1)).view(6, 8, 49)
    assert (mask == mask[:, :1]).all()
    assert ((~mask).sum(2) == visible).all()
    assert len({tuple(row.tolist()) for row in mask[:, 0]}) == 6
    assert torch.equal(mask.flatten(1), model.tube_mask(6, torch.Generator().manual_seed(1)))


def test_the_loss_counts_hidden_tubelets_alone() -> None:
    model, clips = pretraining(), torch.randn(1, 4, 3, 48, 64)
    nn.init.zeros_(model.decoder.head.weight)  # it paints nothing: the loss is the targets' mean square
    mask = model.tube_mask(1)
    noise = split_tubelets(torch.randn_like(clips), 2) * mask.view(1, -1, 1, 1, 1, 1)
    hidden_changed = clips + join_tubelets(noise, model.grid)
    visible_changed = clips.clone()
    visible_changed[hidden_changed == clips] += torch.randn(1)
    loss = model(clips, mask)
    assert loss.item() == pytest.approx(1, abs=0.01)  # of pixels with mean 0 and variance 1
    assert model(visible_changed, mask) == loss
    assert model(hidden_changed, mask) != loss


def test_all_weights_of_pre_training_learn_and_are_in_one_stage() -> None:
    model = pretraining()
    model(torch.randn(2, 4, 3, 48, 64)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    staged = [p for stage in model.stages() if isinstance(stage, nn.Module) for p in stage.parameters()]
    assert Counter(map(id, staged)) == Counter(map(id, model.parameters()))
    assert model.mask_token in model.undecayed()


def test_a_reconstruction_shows_what_was_seen_and_paints_the_rest() -> None:
    model, mean, std = pretraining(), torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    nn.init.zeros_(model.decoder.head.weight)
    pixels = torch.rand(2, 4, 3, 48, 64)
    mask = model.tube_mask(2)
    painted = model.reconstruct((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1), mask)
    expected = split_tubelets(pixels, 2)
    expected[mask] = expected[mask].mean((2, 3, 4), keepdim=True).expand_as(expected[mask])
    torch.testing.assert_close(painted, join_tubelets(expected, model.grid))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_perfect_prediction_paints_the_clip(monkeypatch: pytest.MonkeyPatch, normalised: bool) -> None:
    model, clips = pretraining(normalised_targets=normalised), torch.randn(2, 4, 3, 48, 64)
    mask = model.tube_mask(2)
    targets = model._normalise(split_tubelets(clips, 2)[mask].view(2, -1, 3, 2, 16, 16))[0]
    monkeypatch.setattr(model, "_predict", lambda *_: targets)
    assert not model(clips, mask).any()
    pixels = clips * model.get_buffer("std")[:, 0] + model.get_buffer("mean")[:, 0]
    torch.testing.assert_close(model.reconstruct(clips, mask), pixels)


def test_targets_that_are_not_normalised_are_the_clips_own_values() -> None:
    model, clips = pretraining(normalised_targets=False), torch.randn(2, 4, 3, 48, 64)
    tubelets = split_tubelets(clips, 2)
    targets, _, _ = model._normalise(tubelets)
    torch.testing.assert_close(targets, tubelets.permute(0, 1, 3, 4, 5, 2).flatten(2))


def test_masks_and_constants_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask ratio of 0\.05 hides 0 of 12 patches"):
        pretraining(mask_ratio=0.05)
    with pytest.raises(ValueError, match="must have 6 numbers each"):
        pretraining(in_channels=6)
    with pytest.raises(ValueError, match="must hide 20 of 24 tubelets in every clip"):
        pretraining()(torch.zeros(1, 4, 3, 48, 64), torch.zeros(1, 24, dtype=torch.bool))


def test_pre_training_compiles_as_one_graph(exhaustive: bool) -> None:
    if not exhaustive:
        pytest.skip("takes long to trace; --exhaustive compiles it")
    model, clips = pretraining(), torch.randn(2, 4, 3, 48, 64)
    mask: Tensor = model.tube_mask(2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips, mask), model(clips, mask))
