"""Every family: sizes, shapes, gradients, and that a sample's logits do not depend on its neighbours."""

from typing import Any

import pytest
import torch

from models import MODELS, build_model, count_parameters
from models.backbones import ResNet18

# family, frames, parameters for T = 16, 112 px, 2 classes
FAMILIES = [
    ("early_fusion", 16, 11_646_210),
    ("vivit", 16, 86_540_546),
    ("videomae", 16, 86_228_738),
]
# what makes a family small enough to run here
SMALL: dict[str, dict[str, Any]] = {"vivit": {"scale": "micro"}, "videomae": {"scale": "micro"}}


def test_the_table_of_this_test_is_complete() -> None:
    assert [name for name, _, _ in FAMILIES] == list(MODELS)


@pytest.mark.parametrize(("name", "frames", "parameters"), FAMILIES)
def test_a_family_has_the_size_that_it_claims(name: str, frames: int, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=2, num_frames=frames, size=(112, 112))
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(("name", "frames"), [family[:2] for family in FAMILIES])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_family_maps_clips_to_logits_and_learns_with_all_its_weights(
    name: str, frames: int, classes: int
) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=classes, num_frames=frames, size=(64, 48), **SMALL.get(name, {}))
    logits = model(torch.randn(2, frames, 3, 48, 64))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "frames"), [family[:2] for family in FAMILIES])
def test_a_clip_gets_the_same_logits_alone_and_in_a_batch(name: str, frames: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=2, num_frames=frames, size=(64, 64), **SMALL.get(name, {})).eval()
    clips = torch.randn(3, frames, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(clips)[1:2], model(clips[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "frames"), [family[:2] for family in FAMILIES])
def test_the_order_of_frames_matters(name: str, frames: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=2, num_frames=frames, size=(64, 64), **SMALL.get(name, {})).eval()
    clips = torch.randn(1, frames, 3, 64, 64)
    assert not torch.allclose(model(clips), model(clips.flip(1)))


def test_clips_of_another_length_are_refused() -> None:
    model = build_model("early_fusion", num_classes=2, num_frames=8, size=(64, 64))
    with pytest.raises(ValueError, match="made for 8 frames, got 16"):
        model(torch.zeros(1, 16, 3, 64, 64))


def test_an_unknown_family_names_those_that_are() -> None:
    with pytest.raises(ValueError, match="no model family is called 'magic'; there are early_fusion"):
        build_model("magic", num_classes=2, num_frames=16, size=(112, 112))


def test_the_resnet_trunk_has_torchvisions_size_and_names() -> None:
    trunk = ResNet18()
    assert count_parameters(trunk) == 11_176_512
    names = set(trunk.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias", "layer4.1.conv2.weight"} <= names
