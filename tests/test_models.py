"""Every family and variant: sizes, shapes, gradients, precision, export, and that a sample's logits do not depend
on its neighbours."""

import itertools
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import MODELS, build_model, count_parameters
from models.backbones import BACKBONES, ResNet18, get_backbone
from models.family import Family
from models.s3d import Conv
from models.single_frame import SingleFrame
from models.vit import Transformer


@dataclass(frozen=True)
class Row:
    """A family or variant, and its parameters for T = 16, 112 px, 2 classes."""

    name: str
    parameters: int
    options: dict[str, Any] = field(default_factory=dict)
    ordered: bool = True  # whether the order of frames matters
    small: dict[str, Any] = field(default_factory=dict)  # what makes it quick to compute

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def build(self, frames: int = 8, size: tuple[int, int] = (64, 64), classes: int = 2, **more: Any) -> Family:
        """The small form; options in `more` win. Its logits tell clips apart, as those of a head that starts near
        zero do not."""
        model = self.build_full(frames, size, classes=classes, **{**self.small, **more})
        if isinstance(model, Transformer):
            nn.init.normal_(model.get_parameter("head.weight"), std=0.1)
        return model

    def build_full(self, frames: int, size: tuple[int, int], classes: int = 2, **more: Any) -> Family:
        torch.manual_seed(0)
        return build_model(
            self.name, num_classes=classes, num_frames=frames, size=size, **{**self.options, **more}
        )


NARROW = {"backbone": "resnet18_quarter"}
FAMILIES = [
    Row("single_frame", 11_505_090, ordered=False, small=NARROW),
    Row("late_fusion", 11_505_090, ordered=False, small=NARROW),
    Row("late_fusion", 15_437_250, {"fusion": "concat"}, small=NARROW),
    Row("early_fusion", 11_646_210, small=NARROW),
    Row("cnn_lstm", 15_314_626, small=NARROW),
    Row("cnn_lstm", 21_352_130, {"bidirectional": True}, small=NARROW),
    Row("cnn_mamba", 16_394_562, small={"depth": 1}),
    Row("s3d", 9_091_106),
    Row("vivit", 86_540_546, small={"scale": "micro"}),
    Row("vivit", 114_637_826, {"attention": "factorised_encoder"}, small={"scale": "micro"}),
    Row("vivit", 114_905_858, {"attention": "factorised_self_attention"}, small={"scale": "micro"}),
    Row("vivit", 86_539_010, {"attention": "factorised_dot_product"}, small={"scale": "micro"}),
    Row("vivit", 86_251_778, {"embedding": "uniform"}, small={"scale": "micro"}),
    Row("videomae", 86_228_738, small={"scale": "micro"}),
]
every_family = pytest.mark.parametrize("row", FAMILIES, ids=str)


def clips_for(frames: int = 8, width: int = 64, height: int = 64, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, frames, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_the_table_of_this_test_is_complete() -> None:
    assert list(dict.fromkeys(row.name for row in FAMILIES)) == list(MODELS)


@every_family
def test_a_family_has_the_size_that_it_claims_and_a_source(row: Row) -> None:
    with torch.device("meta"):
        model = row.build_full(16, (112, 112))
    assert count_parameters(model) == row.parameters
    assert model.source


@every_family
def test_stages_hold_each_parameter_once_and_matrices_decay(row: Row) -> None:
    with torch.device("meta"):
        model = row.build()
    stages = [[stage] if isinstance(stage, nn.Parameter) else list(stage.parameters()) for stage in model.stages()]
    assert sorted(map(id, itertools.chain(*stages))) == sorted(map(id, model.parameters()))
    assert all(stages) and len(stages) > 3
    undecayed = model.undecayed()
    assert all(p in undecayed for p in model.parameters() if p.ndim <= 1)
    assert sum(p.numel() for p in undecayed) < 0.1 * count_parameters(model)


@every_family
@pytest.mark.parametrize("classes", [2, 5])
def test_a_family_maps_clips_to_logits_and_learns_with_all_its_weights(row: Row, classes: int) -> None:
    model = row.build(size=(64, 48), classes=classes)
    logits = model(clips_for(height=48))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_family
def test_the_usual_lengths_and_sizes_go_forward_and_backward(row: Row, exhaustive: bool) -> None:
    device = "cpu" if exhaustive else "meta"  # shapes alone are cheap
    all_of_them = itertools.product((8, 16, 32), (112, 160, 224))
    for frames, side in all_of_them if exhaustive else [(8, 224), (32, 112)]:
        with torch.device(device):
            model = row.build_full(frames, (side, side))
            logits = model(torch.zeros(1, frames, 3, side, side))
        logits.sum().backward()
        assert logits.shape == (1, 2) and all(p.grad is not None for p in model.parameters())


@every_family
@pytest.mark.parametrize("channels", [1, 6])
def test_clips_may_have_other_channels_than_rgb(row: Row, channels: int) -> None:
    with torch.device("meta"):
        logits = row.build(in_channels=channels)(torch.zeros(1, 8, channels, 64, 64))
    assert logits.shape == (1, 2)


@every_family
def test_a_clip_gets_the_same_logits_alone_and_in_a_batch(row: Row) -> None:
    model = row.build().eval()
    clips = clips_for(batch=3)
    with torch.inference_mode():
        torch.testing.assert_close(model(clips)[1:2], model(clips[1:2]), rtol=1e-4, atol=1e-5)


@every_family
def test_the_order_of_frames_matters_where_the_family_says_so(row: Row) -> None:
    model = row.build().eval()
    clips = clips_for(batch=1)
    with torch.inference_mode():
        assert torch.allclose(model(clips), model(clips.flip(1)), rtol=1e-4, atol=1e-6) != row.ordered


@every_family
def test_bf16_gives_nearly_the_logits_of_fp32(row: Row) -> None:
    model = row.build().eval()
    clips = clips_for()
    with torch.inference_mode():
        exact = model(clips)
        with torch.autocast("cpu", torch.bfloat16):
            near = model(clips).float()
    torch.testing.assert_close(near, exact, rtol=2e-2, atol=2e-2)


@every_family
def test_a_family_can_be_exported(row: Row) -> None:
    model = row.build().eval()
    clips = clips_for()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The tensor attributes self.lstm", category=UserWarning)
        program = torch.export.export(model, (clips,))
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(clips), model(clips), rtol=1e-4, atol=1e-5)


@every_family
def test_a_family_can_be_compiled_for_training(row: Row, exhaustive: bool) -> None:
    if not exhaustive and row.name != "cnn_mamba":
        pytest.skip("the others take long to trace; --exhaustive compiles them")
    torch.compiler.reset()
    model = row.build().eval()  # batch norm of two clips would magnify every rounding
    clips = clips_for()
    compiled = torch.compile(model, backend="aot_eager")(clips)
    torch.testing.assert_close(compiled, model(clips), rtol=1e-4, atol=1e-5)
    compiled.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_single_frame_averages_logits_in_training_and_probabilities_in_evaluation() -> None:
    model = FAMILIES[0].build().eval()
    assert isinstance(model, SingleFrame)
    clips = clips_for(batch=1)
    with torch.inference_mode():
        of_frames = torch.cat([model(clips[:, t : t + 1]) for t in range(8)]).softmax(1)
        torch.testing.assert_close(model(clips).softmax(1)[0], of_frames.mean(0))
        logits = model.head(model.features(clips))
        model.training = True  # of this module alone: batch norm goes on as before
        torch.testing.assert_close(model(clips), logits.mean(1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("early_fusion", {"size": (32, 64)}, "resnet18 needs frames of more than 32 pixels, got 32×64"),
        ("single_frame", {"backbone": "alexnet"}, "no backbone is called 'alexnet'; there are resnet18, "),
        ("late_fusion", {"fusion": "sum"}, "fusion is 'mean' or 'concat', not 'sum'"),
        ("cnn_lstm", {"bidirectional": "no"}, "option bidirectional is True or False, such as False; got 'no'"),
        ("cnn_lstm", {"bidirectional": 1}, "option bidirectional is True or False"),
        ("cnn_mamba", {"depth": 2.5}, "cnn_mamba: option depth is a whole number, such as 3; got 2.5"),
        ("cnn_mamba", {"depth": True}, "option depth is a whole number"),
        ("vivit", {"drop_path": "a lot"}, "vivit: option drop_path is a number, such as 0.0; got 'a lot'"),
        ("late_fusion", {"fusion": ["mean"]}, "option fusion is a word"),
        ("cnn_mamba", {"depth": 0}, "cnn_mamba needs a depth of at least 1, got 0"),
        ("s3d", {"num_frames": 4}, "s3d needs at least 5 frames of 17 pixels"),
        ("s3d", {"size": (16, 112)}, "got 8 frames of 16×112"),
        ("magic", {}, "no model family is called 'magic'; there are single_frame"),
    ],
)
def test_input_that_a_family_cannot_take_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"num_classes": 2, "num_frames": 8, "size": (64, 64), **options})


@pytest.mark.parametrize("row", [FAMILIES[2], FAMILIES[3]], ids=str)
def test_clips_of_another_length_are_refused(row: Row) -> None:
    with pytest.raises(ValueError, match="made for 8 frames, got 16"):
        row.build()(torch.zeros(1, 16, 3, 64, 64))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ["single_frame", "late_fusion", "early_fusion", "cnn_lstm", "cnn_mamba"])
def test_every_backbone_carries_every_2d_family(name: str, backbone: str) -> None:
    with torch.device("meta"):
        logits = Row(name, 0).build(backbone=backbone)(torch.zeros(2, 8, 3, 64, 64))
    assert logits.shape == (2, 2)


def test_backbones_have_torchvisions_size_and_names() -> None:
    sizes = {name: count_parameters(get_backbone(name)) for name in BACKBONES}
    assert sizes == {  # torchvision's num_params without fc or classifier
        "resnet18": 11_689_512 - 513_000,
        "resnet34": 21_797_672 - 513_000,
        "resnet50": 25_557_032 - 2_049_000,
        "vgg11": 132_868_840 - 123_642_856,
        "vgg16": 138_365_992 - 123_642_856,
        "resnet18_half": 2_798_880,  # ours: fewer channels everywhere
        "resnet18_quarter": 702_096,
        "efficientnet_lite0": 4_652_008 - 1_281_000,  # timm's count of tf_efficientnet_lite0
    }
    names = set(ResNet18().state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias", "layer4.1.conv2.weight"} <= names


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_gradients_in_bf16_are_those_of_float32_for_clips_of_any_length(frames: int) -> None:
    """Memory that was used before: what reads more than was written finds nan there."""
    conv = Conv(48, 128, (3, 1, 1), padding=(1, 0, 0), bias=False)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
    torch.manual_seed(0)
    clips = torch.randn(16, 48, frames, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    exact = torch.autograd.grad(conv(clips).square().sum(), conv.weight)[0]
    for _ in range(20):
        used = [torch.full((size,), float("nan")) for size in (1000, 5000, 20_000, 49_152, 100_000, 300_000)]
        del used
        with torch.autocast("cpu", torch.bfloat16):
            found = conv(clips)
        gradient = torch.autograd.grad(found.float().square().sum(), conv.weight)[0]
        assert ((gradient - exact).norm() / exact.norm()).item() < 2e-2
