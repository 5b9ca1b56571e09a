"""Other people's transformers: the same numbers out of the same weights, by every style of names."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models_vit import awake
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Family
from models.formats import Format
from models.videomae import VideoMAE, VideoMAEPretraining, sincos_positions, sincos_table
from models.vit import SIZES
from models.vit_mend import mend_kernel, mend_positions
from models.vit_weights import VIT_FORMATS
from models.vivit import ViViT
from models.weights import load_weights

State = dict[str, Tensor]


def format_of(state: State, family: str) -> Format:
    return next(f for f in VIT_FORMATS if family in f.families and f.recognises(set(state)))


def load(model: Family, state: State, family: str, fresh: str = "", unused: str = "") -> None:
    """Loads foreign weights, mended where needed, and checks what is left over on either side.

    `fresh`: a pattern of our names without foreign weights. `unused`: of foreign weights without a name of ours.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "foreign.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
        loaded = load_weights(path, model, family)
    assert loaded.format == format_of(state, family).name
    assert all(re.match(unused or "$", name) for name in loaded.unexpected), loaded.unexpected
    assert all(re.match(fresh or "$", name) for name in loaded.missing), loaded.missing
    if unused:
        assert loaded.unexpected


def hugging_face(kind: str, scale: str, frames: int, side: int) -> nn.Module:
    """A model of transformers with random weights, in the size of ours."""
    transformers = pytest.importorskip("transformers")
    width, depth, heads = SIZES[scale]
    config: dict[str, Any] = {
        "image_size": side, "num_frames": frames, "num_labels": 3, "hidden_size": width,
        "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width,
    }  # fmt: skip
    if kind == "vivit":
        model = transformers.VivitForVideoClassification(transformers.VivitConfig(**config))
    elif kind == "videomae":
        model = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**config))
    else:
        config |= {
            "decoder_hidden_size": width // 2, "decoder_num_attention_heads": heads // 2,
            "decoder_intermediate_size": 2 * width, "use_mean_pooling": False,
        }  # fmt: skip
        model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**config))
    return awake(model)


def saved(model: Any, folder: Path, version: int) -> State:
    """The model's weights as transformers 4 or 5 names them."""
    model.save_pretrained(folder, save_original_format=version == 4)
    return dict(load_file(folder / "model.safetensors"))


def scales(exhaustive: bool) -> list[str]:
    return ["micro", "base"] if exhaustive else ["micro"]


@pytest.mark.parametrize("version", [4, 5])
def test_vivit_agrees_with_transformers(version: int, tmp_path: Path, exhaustive: bool) -> None:
    for scale in scales(exhaustive):
        twin, clips = hugging_face("vivit", scale, 4, 64), torch.randn(2, 4, 3, 64, 64)
        state = saved(twin, tmp_path, version)
        assert ("vivit.encoder.layer.0.attention.attention.query.bias" in state) == (version == 4)
        model = ViViT(num_classes=3, num_frames=4, size=(64, 64), scale=scale).eval()
        load(model, state, "vivit")
        with torch.inference_mode():
            assert distance(model(clips), twin(clips).logits) < 1e-4
    assert format_of(state, "vivit").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("side", [64, 224])
def test_videomae_agrees_with_transformers(version: int, side: int, tmp_path: Path, exhaustive: bool) -> None:
    for scale in scales(exhaustive):
        twin: Any = hugging_face("videomae", scale, 16, side)
        clips = torch.randn(1, 16, 3, side, side)
        state = saved(twin, tmp_path, version)
        assert ("videomae.encoder.layer.0.attention.attention.q_bias" in state) == (version == 4)
        model = VideoMAE(num_classes=3, num_frames=16, size=(side, side), scale=scale).eval()
        load(model, state, "videomae")
        if side == 224:
            torch.testing.assert_close(model.get_buffer("positions"), twin.videomae.embeddings.position_embeddings)
        else:  # transformers numbers the tokens anew where we resize
            twin.videomae.embeddings.position_embeddings = model.get_buffer("positions")
        with torch.inference_mode():
            assert distance(model(clips), twin(clips).logits) < 1e-4
    assert format_of(state, "videomae").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("side", [64, 224])
def test_pre_training_agrees_with_transformers(version: int, side: int, tmp_path: Path, exhaustive: bool) -> None:
    for scale in scales(exhaustive):
        twin: Any = hugging_face("pretraining", scale, 16, side)
        clips = torch.randn(2, 16, 3, side, side)
        model = VideoMAEPretraining(num_frames=16, size=(side, side), scale=scale).eval()
        load(model, saved(twin, tmp_path, version), "videomae_pretraining")
        if side != 224:
            twin.position_embeddings = model.get_buffer("decoder_positions")
            twin.videomae.embeddings.position_embeddings = model.get_buffer("encoder_positions")
        mask = model.tube_mask(2)
        expected, loss = twin(clips, mask).loss, model(clips, mask).mean()
        expected.backward()
        loss.backward()
        assert distance(loss, expected) < 1e-4
        ours, theirs = model.encoder.patch_embed.proj, twin.videomae.embeddings.patch_embeddings.projection
        assert distance(ours.weight.grad, theirs.weight.grad) < 1e-3


def distance(ours: Tensor | None, theirs: Tensor) -> float:
    """Relative to the size of the whole."""
    assert ours is not None
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def test_a_pre_trained_encoder_becomes_a_classifier(tmp_path: Path) -> None:
    twin: Any = hugging_face("pretraining", "micro", 4, 64)
    ours = VideoMAEPretraining(num_frames=4, size=(64, 64), scale="micro")
    load(ours, saved(twin, tmp_path, 5), "videomae_pretraining")
    for state in (saved(twin, tmp_path, 4), saved(twin, tmp_path, 5), ours.state_dict()):
        model = VideoMAE(num_classes=2, num_frames=4, size=(64, 64), scale="micro")
        decoder = r"norm\.|encoder_to_decoder\.|mask_token|decoder\."
        load(model, state, "videomae", fresh=r"(fc_norm|head)\.", unused=decoder)
        for name, tensor in model.blocks.state_dict().items():
            assert torch.equal(tensor, ours.encoder.blocks.state_dict()[name])


def test_a_head_that_reads_one_token_is_not_taken() -> None:
    state = VideoMAE(num_classes=2, num_frames=4, size=(64, 64), scale="micro").state_dict()
    state = {name.replace("fc_norm.", "norm."): tensor for name, tensor in state.items()}
    converted = format_of(state, "videomae").convert(state)
    assert "norm.weight" in converted and "head.weight" not in converted


@pytest.mark.parametrize("table", ["sincos", "learnt"])
def test_openmmlabs_names_are_ours_in_disguise(table: str) -> None:
    model = VideoMAE(num_classes=2, num_frames=4, size=(64, 64), scale="micro")
    disguise = {
        r"^patch_embed\.proj": "patch_embed.projection",
        r"mlp\.fc1": "mlp.layers.0.0", r"mlp\.fc2": "mlp.layers.1",
        r"^head\.": "cls_head.fc_cls.", r"^(?!cls_head)": "backbone.",
    }  # fmt: skip
    state = {"backbone.pos_embed": sincos_table(32, 48) if table == "sincos" else torch.randn(1, 32, 48)}
    for own, tensor in model.state_dict().items():
        name = own
        for pattern, foreign in disguise.items():
            name = re.sub(pattern, foreign, name)
        state[name] = tensor
    converted = format_of(state, "videomae").convert(state)
    extra = set() if table == "sincos" else {"pos_embed"}  # left to be reported
    assert set(converted) == set(model.state_dict()) | extra


def timm_vit(side: int) -> State:
    """Random weights by timm's names: micro scale, 16-pixel patches, pictures of `side` pixels, 7 classes."""
    torch.manual_seed(0)
    state = {
        "cls_token": torch.randn(1, 1, 48), "pos_embed": torch.randn(1, 1 + (side // 16) ** 2, 48),
        "patch_embed.proj.weight": torch.randn(48, 3, 16, 16) / 28, "patch_embed.proj.bias": torch.randn(48),
        "norm.weight": torch.rand(48), "norm.bias": torch.randn(48),
        "head.weight": torch.randn(7, 48), "head.bias": torch.randn(7),
    }  # fmt: skip
    shapes = {"attn.qkv": (144, 48), "attn.proj": (48, 48), "mlp.fc1": (192, 48), "mlp.fc2": (48, 192)}
    for block in range(2):
        for name, shape in shapes.items():
            state[f"blocks.{block}.{name}.weight"] = torch.randn(shape) * shape[1] ** -0.5
            state[f"blocks.{block}.{name}.bias"] = torch.randn(shape[0]) / 10
        for name in ("norm1", "norm2"):
            state |= {f"blocks.{block}.{name}.{kind}": torch.rand(48) for kind in ("weight", "bias")}
    return state


def timm_tokens(state: State, pictures: Tensor, gelu: str = "none") -> Tensor:
    """timm's VisionTransformer.forward_features: [B, 3, H, W] → [B, 1 + N, 48]. GELU is exact there."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (48,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patches = F.conv2d(pictures, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = torch.cat([state["cls_token"].expand(len(pictures), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + state["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = (part.view(*x.shape[:2], 4, 12).transpose(1, 2) for part in qkv.chunk(3, -1))
        attended = (q @ k.transpose(2, 3) / 12**0.5).softmax(-1) @ v
        x = x + linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)), approximate=gelu)
        x = x + linear(f"{block}.mlp.fc2", hidden)
    return norm("norm", x)


@pytest.mark.parametrize("embedding", ["uniform", "tubelet"])
def test_timms_vit_gives_the_same_tokens_for_each_frame(embedding: str) -> None:
    """`tubelet`: of the central frame. ViViT's GELU is by tanh, which timm's is but nearly."""
    model = ViViT(
        num_classes=2, num_frames=4, size=(64, 64), scale="micro", attention="factorised_encoder",
        embedding=embedding,
    )  # fmt: skip
    state, clips = timm_vit(64), torch.randn(2, 4, 3, 64, 64)
    load(model, state, "vivit", fresh=r"(temporal|head)\.", unused=r"head\.")
    pictures = (clips if embedding == "uniform" else clips[:, 1::2]).flatten(0, 1)
    assert distance(model.tokens(clips), timm_tokens(state, pictures, "tanh")) < 1e-5
    assert distance(model.tokens(clips), timm_tokens(state, pictures)) < 1e-3


@pytest.mark.parametrize("attention", ["joint", "factorised_self_attention", "factorised_dot_product"])
def test_timms_vit_starts_every_vivit(attention: str) -> None:
    """From larger pictures, too; a picture's positions are those of all time steps."""
    model = ViViT(num_classes=2, num_frames=8, size=(64, 64), scale="micro", attention=attention)
    load(model, timm_vit(96), "vivit", fresh=r"head\.|blocks.\d.(norm|attn)_time", unused=r"cls_token|head\.")
    steps = model.pos_embed[:, -4 * 16 :].view(4, 16, 48)
    torch.testing.assert_close(steps[0], steps[3])
    assert steps[0].std() > 0.1


def test_our_own_vivit_is_not_taken_for_timms() -> None:
    state = ViViT(num_classes=2, num_frames=4, size=(64, 64), scale="micro").state_dict()
    assert format_of(state, "vivit").convert(state) == state


def test_timms_vit_starts_videomae_without_the_keys_bias() -> None:
    model = VideoMAE(num_classes=2, num_frames=2, size=(64, 64), scale="micro")
    state = timm_vit(64)
    load(model, state, "videomae", fresh=r"(fc_norm|head)\.", unused=r"cls_token|pos_embed|norm\.|head\.")
    picture = torch.randn(1, 3, 64, 64)
    # without its [class] token, and with VideoMAE's positions
    state |= {"cls_token": torch.empty(1, 0, 48), "pos_embed": sincos_positions(model.grid, 48)}
    state |= {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    x = model.blocks(
        model.patch_embed(model.split(picture.repeat(2, 1, 1, 1)[None])) + model.get_buffer("positions")
    )
    assert distance(F.layer_norm(x, (48,), eps=1e-6), timm_tokens(state, picture)) < 1e-5


@pytest.mark.parametrize("inflation", ["central_frame", "average"])
@pytest.mark.parametrize(("steps", "channels"), [(1, 3), (2, 3), (3, 6), (2, 4), (1, 1), (2, 2)])
def test_a_still_clip_is_embedded_as_its_picture(inflation: str, steps: int, channels: int) -> None:
    """In as many channels as there are, of a grey picture."""
    kernel, grey = torch.randn(5, 3, 16, 16), torch.randn(16, 16)
    mended = mend_kernel(kernel, torch.Size([5, channels, steps, 16, 16]), inflation)
    assert mended is not None
    torch.testing.assert_close((mended * grey).sum((1, 2, 3, 4)), (kernel * grey).sum((1, 2, 3)))
    used = (mended != 0).any(0).any(0).flatten(1).any(1).tolist()
    assert used == ([True] * steps if inflation == "average" else [step == steps // 2 for step in range(steps)])


def test_a_tubelets_kernel_becomes_a_frames() -> None:
    kernel, frame = torch.randn(5, 3, 2, 16, 16), torch.randn(3, 16, 16)
    mended = mend_kernel(kernel, torch.Size([5, 3, 1, 16, 16]), "central_frame")
    assert mended is not None
    torch.testing.assert_close(
        (mended[:, :, 0] * frame).sum((1, 2, 3)), (kernel * frame[:, None]).sum((1, 2, 3, 4))
    )


def test_kernels_of_other_patches_cannot_be_mended() -> None:
    assert mend_kernel(torch.zeros(5, 3, 32, 32), torch.Size([5, 3, 2, 16, 16]), "average") is None
    assert mend_kernel(torch.zeros(7, 3, 16, 16), torch.Size([5, 3, 2, 16, 16]), "average") is None


def ramp(T: int, H: int, W: int) -> Tensor:
    """Positions that say where they are, between 0 and 1: [1, T·H·W, 3]."""
    axes = [(torch.arange(length) + 0.5) / length for length in (T, H, W)]
    return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).view(1, -1, 3)


@pytest.mark.parametrize("grid", [(8, 7, 7), (4, 7, 7), (16, 10, 10), (8, 9, 12)])
@pytest.mark.parametrize(
    ("old", "told"), [((16, 14, 14), False), ((8, 14, 14), False), ((4, 14, 14), True), ((16, 7, 9), True)]
)
def test_positions_are_resized_in_three_dimensions(
    grid: tuple[int, int, int], old: tuple[int, int, int], told: bool
) -> None:
    """Away from the borders, a place keeps what it was told; the [class] token's position is kept as it is."""
    T, H, W = grid
    foreign = torch.cat([torch.full((1, 1, 3), 9.0), ramp(*old)], 1)
    mended = mend_positions(foreign, torch.Size([1, 1 + T * H * W, 3]), grid, old if told else None)
    assert mended is not None and mended[0, 0].tolist() == [9, 9, 9]
    inside = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(mended[:, 1:].view(1, T, H, W, 3)[inside], ramp(*grid).view(1, T, H, W, 3)[inside])


def test_positions_of_all_time_steps_start_a_factorised_encoder() -> None:
    foreign = torch.cat([torch.zeros(1, 1, 3), ramp(16, 14, 14)], 1)
    mended = mend_positions(foreign, torch.Size([1, 1 + 49, 3]), (8, 7, 7), None)
    assert mended is not None
    torch.testing.assert_close(mended[0, 1:, 0], torch.full((49,), 0.5))


def test_positions_that_lie_on_no_grid_cannot_be_mended() -> None:
    assert mend_positions(torch.zeros(1, 1 + 7 * 13, 3), torch.Size([1, 393, 3]), (8, 7, 7), None) is None
    assert mend_positions(torch.zeros(1, 1569, 4), torch.Size([1, 393, 3]), (8, 7, 7), None) is None


@pytest.mark.parametrize(("count", "grids"), [(785, r"\(16, 7, 7\) or \(4, 14, 14\)"), (393, r"\(8, 7, 7\) or ")])
def test_positions_that_may_lie_on_two_grids_are_not_guessed(count: int, grids: str) -> None:
    with pytest.raises(ValueError, match=f"its {count} positions lie on {grids}"):
        mend_positions(torch.zeros(1, count, 3), torch.Size([1, 1 + 25, 3]), (1, 5, 5), None)


@pytest.mark.parametrize("frames", [2, 8])
def test_a_factorised_encoder_takes_the_time_steps_of_another(frames: int) -> None:
    given, wanted = (
        ViViT(num_classes=2, num_frames=count, size=(32, 32), scale="micro", attention="factorised_encoder")
        for count in (4, frames)
    )
    assert given.temporal is not None and wanted.temporal is not None
    nn.init.zeros_(given.temporal.pos_embed)
    given.temporal.pos_embed.data[0] += torch.arange(3.0)[:, None]  # [class], then two steps
    mended = wanted.mend("temporal.pos_embed", given.temporal.pos_embed, None)
    assert mended is not None
    expected = [0, 1.5] if frames == 2 else [0, 1, 1.25, 1.75, 2]
    assert mended[0, :, 0].tolist() == expected
