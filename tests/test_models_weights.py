"""`--weights`: other people's checkpoints give their numbers, and whatever does not match is named."""

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shared_folder
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models import build_model
from models.family import Family
from models.frames import fit_channels
from models.origin import UNKNOWN, Origin
from models.videomae import VideoMAEPretraining
from models.vit_mend import resize_positions
from models.weights import load_weights
from train.checkpoint import save_weights

State = dict[str, Tensor]


def made_up(name: str, shape: list[int]) -> Tensor:
    """The value that anyone can make again: see the README beside the reference outputs."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape)
    if name.endswith("running_var"):
        return torch.tensor(0.5 + random.random_sample(shape)).float()
    if name.endswith("A_log"):
        return torch.tensor(np.log(1 + 15 * random.random_sample(shape))).float()
    if name.startswith("classifier") and len(shape) == 2:  # VGG's: a hundred million numbers that nobody uses
        return torch.zeros(1)
    values = torch.tensor(random.standard_normal(shape)).float()
    if len(shape) >= 2:
        return values * float(np.sqrt(2 / np.prod(shape[1:])))
    return 1 + 0.1 * values if name.endswith("weight") or name == "D" else 0.1 * values


def fresh(name: str, **options: Any) -> Family:
    torch.manual_seed(0)
    return build_model(name, **{"num_classes": 2, "num_frames": 8, "size": (64, 64), **options}).eval()


def resnet18() -> State:
    """A torchvision ResNet-18 by its names, without torchvision."""
    trunk = fresh("single_frame").get_submodule("trunk")
    state = {name: made_up(name, list(tensor.shape)) for name, tensor in trunk.state_dict().items()}
    return {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def saved(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def ours(model: Family, family: str, path: Path, labels: tuple[str, ...] | None = None) -> Path:
    """As a run of that family saves it."""
    origin = Origin(family, {}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), model.grid, labels=labels)
    save_weights(path, model, origin)
    return path


@pytest.mark.parametrize(
    ("file", "family", "options", "part", "suffix"),
    [
        ("resnet18", "single_frame", {}, "trunk", ".pth"),
        ("vgg11_bn", "late_fusion", {"backbone": "vgg11"}, "trunk", ".safetensors"),
        ("s3d_112", "s3d", {}, "trunk", ".bin"),
        ("s3d_224", "s3d", {}, "trunk", ".pt"),
        ("mamba_block", "cnn_mamba", {}, "layers.0.mixer", ".pth"),
    ],
)
def test_loaded_weights_give_what_the_library_that_they_are_from_gives(
    tmp_path: Path, file: str, family: str, options: dict[str, Any], part: str, suffix: str
) -> None:
    reference = json.loads((shared_folder("reference-outputs") / f"{file}.json").read_text())
    state = {name: made_up(name, shape) for name, shape in reference["keys"].items()}
    model = fresh(family, **options)
    loaded = load_weights(saved(state, tmp_path / f"weights{suffix}"), model, family)
    assert all(name.startswith(("fc.", "classifier.")) for name in loaded.unexpected)
    clips = torch.tensor(np.random.RandomState(0).standard_normal(reference["input_shape"])).float()
    with torch.inference_mode():
        given: Tensor = model.get_submodule(part)(clips)
    for name, expected in reference["outputs"].items():
        found = given
        if name == "logits":
            head = "fc" if "fc.weight" in state else "classifier.1"
            found = functional.linear(given, state[f"{head}.weight"].flatten(1), state[f"{head}.bias"])
        wanted = torch.tensor(expected["values"]).view(expected["shape"])
        assert (found - wanted).norm() / wanted.norm() < 1e-4


def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path) -> None:
    state = resnet18()
    plain, wrapped = fresh("single_frame"), fresh("single_frame")
    load_weights(saved(state, tmp_path / "a.pth"), plain, "single_frame")
    nested = {"epoch": 3, "state_dict": {f"module.backbone.{name}": value for name, value in state.items()}}
    loaded = load_weights(saved(nested, tmp_path / "b.pth"), wrapped, "single_frame")
    assert loaded.format == "torchvision ResNet" and len(loaded.matched) == len(state) - 2
    assert torch.equal(wrapped.state_dict()["trunk.conv1.weight"], plain.state_dict()["trunk.conv1.weight"])


def test_the_arguments_in_videomaes_own_files_do_no_harm(tmp_path: Path) -> None:
    model = fresh("videomae", scale="micro")
    content = {"model": dict(model.state_dict()), "epoch": 3, "args": argparse.Namespace(lr=1e-3, model="vit")}
    loaded = load_weights(saved(content, tmp_path / "a.pth"), fresh("videomae", scale="micro"), "videomae")
    assert loaded.format == "VideoMAE" and not loaded.missing and not loaded.unexpected


@pytest.mark.parametrize("content", [b"no zip, no pickle", b"\x80\x02cnumpy\narray\n."])
def test_a_file_that_cannot_be_unpickled_is_one_plain_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.pth: cannot be read as weights: \w") as error:
        load_weights(tmp_path / "a.pth", fresh("single_frame"), "single_frame")
    assert str(error.value).isprintable() and "weights_only" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_model_of_ours_that_was_saved_wrapped_is_known(tmp_path: Path, prefix: str) -> None:
    model = fresh("single_frame")
    wrapped = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    loaded = load_weights(saved(wrapped, tmp_path / "a.pth"), model, "single_frame")
    assert loaded.format == "reelcache" and not loaded.missing and not loaded.unexpected


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("resnet34", "resnet18"), ("resnet18", "resnet50"), ("resnet18_half", "resnet18"), ("vgg16", "vgg11")],
)
def test_weights_of_another_backbone_name_the_one_to_choose(tmp_path: Path, given: str, wanted: str) -> None:
    trunk = fresh("single_frame", backbone=given).get_submodule("trunk").state_dict()
    state = {name: tensor for name, tensor in trunk.items() if not name.endswith("num_batches_tracked")}
    with pytest.raises(
        ValueError, match=f"it holds a {given}, the model a {wanted}; choose the option backbone={given}"
    ):
        load_weights(saved(state, tmp_path / "a.pth"), fresh("cnn_lstm", backbone=wanted), "cnn_lstm")


@pytest.mark.parametrize(
    ("family", "given", "wanted", "lost"),
    [
        ("cnn_mamba", {}, {"depth": 2}, "layers.2."),
        ("vivit", {"attention": "factorised_self_attention"}, {}, "blocks.0.*_time"),
    ],
)
def test_layers_that_the_model_has_not_are_refused(
    tmp_path: Path, family: str, given: dict[str, str], wanted: dict[str, Any], lost: str
) -> None:
    small = {"scale": "micro"} if family == "vivit" else {}
    path = ours(fresh(family, **small, **given), family, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=f"tensors have no place in this model, of another size or kind, such as {lost}"
    ):
        load_weights(path, fresh(family, **small, **wanted), family)


def test_what_did_not_match_is_named(tmp_path: Path) -> None:
    state = resnet18()
    del state["layer2.0.conv1.weight"]
    loaded = load_weights(saved(state, tmp_path / "a.safetensors"), fresh("cnn_lstm"), "cnn_lstm")
    assert loaded.unexpected == ("fc.bias", "fc.weight")
    assert {"trunk.layer2.0.conv1.weight", "lstm.weight_ih_l0", "head.0.weight"} <= set(loaded.missing)
    assert not any(name.startswith("trunk.layer1") for name in loaded.missing)


def test_normalisation_comes_with_the_weights(tmp_path: Path) -> None:
    state = {
        name: made_up(name, list(v.shape)) for name, v in fresh("s3d").get_submodule("trunk").state_dict().items()
    }
    loaded = load_weights(saved(state, tmp_path / "s3d.pth"), fresh("s3d"), "s3d")
    assert loaded.mean == (0.43216, 0.394666, 0.37645) and loaded.std == (0.22803, 0.22145, 0.216989)
    loaded = load_weights(saved(resnet18(), tmp_path / "a.pth"), fresh("single_frame"), "single_frame")
    assert loaded.mean == (0.485, 0.456, 0.406)


def test_early_fusion_answers_a_clip_that_stands_still_as_its_picture(tmp_path: Path) -> None:
    path = saved(resnet18(), tmp_path / "a.pth")
    early, single = fresh("early_fusion"), fresh("single_frame")
    load_weights(path, early, "early_fusion")
    load_weights(path, single, "single_frame")
    picture = torch.randn(2, 3, 64, 64)
    still = picture[:, None].expand(2, 8, 3, 64, 64)
    with torch.inference_mode():
        expected = single.get_submodule("trunk")(picture)
        found = early.get_submodule("trunk")(still.flatten(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_a_grey_picture_is_answered_alike_whatever_the_number_of_channels(channels: int) -> None:
    kernel = torch.randn(4, 3, 7, 7)
    grey = torch.randn(2, 1, 9, 9)
    expected = functional.conv2d(grey.expand(2, 3, 9, 9), kernel)
    found = functional.conv2d(grey.expand(2, channels, 9, 9), fit_channels(kernel, channels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["single_frame", "early_fusion"])
def test_the_first_layer_of_a_family_with_other_channels_is_mended(tmp_path: Path, family: str) -> None:
    path = saved(resnet18(), tmp_path / "a.pth")
    loaded = load_weights(path, fresh(family, in_channels=6), family)
    assert "trunk.conv1.weight" in loaded.matched


def test_a_run_gives_all_but_a_head_for_other_classes_and_its_normalisation(tmp_path: Path) -> None:
    run = fresh("late_fusion", num_classes=5)
    ours(run, "late_fusion", tmp_path / "best.safetensors")
    loaded = load_weights(tmp_path, fresh("late_fusion"), "late_fusion")
    assert (
        loaded.format == "reelcache late_fusion"
        and loaded.mean == (0.1, 0.2, 0.3)
        and loaded.std == (0.4, 0.5, 0.6)
    )
    head = {f"head.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert set(loaded.unexpected) == set(loaded.missing) == head


def test_a_head_is_sorted_by_the_labels_and_one_for_others_stays_out(
    tmp_path: Path,
) -> None:
    run, model = fresh("single_frame").eval(), fresh("single_frame").eval()
    path = ours(run, "single_frame", tmp_path / "a.safetensors", ("fight", "calm"))
    assert not load_weights(path, model, "single_frame", ["calm", "fight"]).missing
    clips = torch.randn(1, 2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(clips), run(clips).flip(1))
    loaded = load_weights(path, model, "single_frame", ["cats", "dogs"])
    assert len(loaded.unexpected) == 6 and set(loaded.unexpected) == set(loaded.missing)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_head_behind_other_features_stays_out_as_a_whole(tmp_path: Path, bidirectional: bool) -> None:
    path = ours(fresh("single_frame"), "single_frame", tmp_path / "a.safetensors")
    loaded = load_weights(path, fresh("cnn_lstm", bidirectional=bidirectional), "cnn_lstm")
    assert {"head.0.weight", "head.2.weight", "head.4.bias"} <= set(loaded.missing) & set(loaded.unexpected)


def test_pre_training_starts_a_classifier_and_a_classifier_pre_training(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pretrained = VideoMAEPretraining(num_frames=8, size=(64, 64), scale="micro")
    ours(pretrained, "videomae_pretraining", tmp_path / "best.safetensors")
    model = fresh("videomae", scale="micro")
    loaded = load_weights(tmp_path, model, "videomae")
    assert loaded.format == "reelcache videomae_pretraining" and loaded.mean == (0.1, 0.2, 0.3)
    assert set(loaded.missing) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert {name.partition(".")[0] for name in loaded.unexpected} == {
        "norm", "encoder_to_decoder", "mask_token", "decoder",
    }  # fmt: skip
    again = VideoMAEPretraining(num_frames=8, size=(64, 64), scale="micro")
    loaded = load_weights(ours(model, "videomae", tmp_path / "a.safetensors"), again, "videomae_pretraining")
    assert all(name.startswith(("fc_norm.", "head.")) for name in loaded.unexpected)
    for name, tensor in model.get_submodule("blocks").state_dict().items():
        assert torch.equal(tensor, pretrained.encoder.blocks.state_dict()[name])
        assert torch.equal(tensor, again.encoder.blocks.state_dict()[name])


def test_weights_of_another_scale_name_the_one_to_choose(tmp_path: Path) -> None:
    path = ours(fresh("videomae", scale="micro"), "videomae", tmp_path / "a.safetensors")
    words = "it holds a micro transformer, the model is tiny; choose the option scale=micro"
    with pytest.raises(ValueError, match=words):
        load_weights(path, fresh("videomae", scale="tiny"), "videomae")


def test_a_file_of_ours_is_known_outside_its_run(tmp_path: Path) -> None:
    micro = {"scale": "micro", "num_frames": 2}
    path = ours(fresh("vivit", **micro), "vivit", tmp_path / "mine.safetensors")
    loaded = load_weights(path, fresh("vivit", **micro), "vivit")
    assert (loaded.format, loaded.mean, loaded.missing) == ("reelcache vivit", (0.1, 0.2, 0.3), ())


def test_a_folder_that_is_no_run_is_told_apart_from_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run with weights: it has no best.safetensors; weights are files"):
        load_weights(tmp_path, fresh("single_frame"), "single_frame")


def test_a_run_folder_whose_weights_do_not_say_what_they_are_is_refused(tmp_path: Path) -> None:
    saved(dict(fresh("s3d", num_frames=16).state_dict()), tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match=r"best.safetensors: does not say what it holds"):
        load_weights(tmp_path, fresh("s3d", num_frames=16), "s3d")


def test_a_file_of_an_older_release_loads_and_does_not_know_what_it_learnt(tmp_path: Path) -> None:
    model = fresh("early_fusion")
    told = '{"family": "early_fusion", "options": {}, "mean": [0, 0, 0], "std": [1, 1, 1], "grid": null}'
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"reelcache": told})
    loaded = load_weights(tmp_path / "a.safetensors", model, "early_fusion")
    assert loaded.learnt == (UNKNOWN,) and not loaded.missing and not loaded.unexpected


OLD = '"family": "s3d", "options": {}, "mean": [], "std": [], "grid": null'


@pytest.mark.parametrize(
    "told",
    [
        "{", "{}", '{"family": "s3d", "options": {}, "mean": 1, "std": [], "grid": null}',
        f'{{{OLD}, "learnt": [{{}}]}}', f'{{{OLD}, "learnt": [{{"digest": 1}}]}}', f'{{{OLD}, "learnt": 3}}',
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_read_is_one_clear_line(tmp_path: Path, told: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"reelcache": told})
    with pytest.raises(ValueError, match="its metadata cannot be read"):
        load_weights(tmp_path / "a.safetensors", fresh("single_frame"), "single_frame")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"num_frames": 8, "size": (64, 64)}, {"num_frames": 4, "size": (96, 48)}),
        (
            {"num_frames": 4, "size": (64, 32)},
            {"num_frames": 4, "size": (32, 64)},
        ),  # as many tokens, placed otherwise
    ],
)
def test_positions_of_a_run_are_resized_from_the_grid_that_it_had(
    tmp_path: Path, given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    run, model = (fresh("vivit", scale="micro", **options) for options in (given, wanted))
    path = ours(run, "vivit", tmp_path / "run.safetensors")
    load_weights(path, model, "vivit")
    assert run.grid is not None and model.grid is not None
    positions = run.get_parameter("pos_embed")[:, 1:]
    found = model.get_parameter("pos_embed")[:, 1:]
    torch.testing.assert_close(found, resize_positions(positions, run.grid, model.grid))


def test_a_run_of_three_grey_frames_is_not_taken_for_a_picture_network(tmp_path: Path) -> None:
    path = ours(fresh("early_fusion", num_frames=3, in_channels=1), "early_fusion", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"trunk.conv1.weight \[64, 3, 7, 7\] for \[64, 24, 7, 7\]"):
        load_weights(path, fresh("early_fusion"), "early_fusion")


def test_mambas_layers_are_found_below_any_name(tmp_path: Path) -> None:
    ours = fresh("cnn_mamba").state_dict()
    state = {
        f"backbone.{k}": torch.full_like(v, 0.5) for k, v in ours.items() if k.startswith(("layers", "norm_f"))
    }
    model = fresh("cnn_mamba")
    loaded = load_weights(saved(state, tmp_path / "lm.bin"), model, "cnn_mamba")
    assert loaded.format == "mamba-ssm" and len(loaded.matched) == len(state) and not loaded.unexpected
    assert (model.state_dict()["layers.2.mixer.A_log"] == 0.5).all()


def test_a_shape_that_cannot_be_mended_is_an_error_that_names_it(tmp_path: Path) -> None:
    state = {**resnet18(), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    model = fresh("single_frame")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"trunk.layer1.0.conv1.weight \[64, 64, 1, 1\] for \[64, 64, 3, 3\]"):
        load_weights(saved(state, tmp_path / "a.pth"), model, "single_frame")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "name", "family", "message"),
    [
        ({"a.b": torch.zeros(1)}, "w.pth", "s3d", "nothing in it is known to s3d; it holds a.b"),
        ({"epoch": 3}, "w.pth", "s3d", "holds no tensors by name"),
        (
            {"x": Path("x")},
            "w.pth",
            "s3d",
            "w.pth: cannot be read as weights: it holds a pathlib[.a-z]*PosixPath, and",
        ),
        ({"a": torch.zeros(1)}, "w.onnx", "s3d", "weights are files that end in .safetensors"),
        (None, "w.pth", "s3d", "no such file"),
        ({"A_log": torch.zeros(1)}, "w.pth", "s3d", "mamba-ssm weights are not for s3d; they fit cnn_mamba"),
        ({"A_log": torch.zeros(2, 2)}, "w.pth", "cnn_mamba", r"A_log \[2, 2\] for \[1024, 16\]"),
        ({"x.mixer.A_log": torch.zeros(1)}, "w.pth", "cnn_mamba", "nothing matched; it holds x.mixer.A_log"),
    ],
)
def test_files_that_are_no_help_are_refused(
    tmp_path: Path, content: Any, name: str, family: str, message: str
) -> None:
    if content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / name, fresh(family), family)
