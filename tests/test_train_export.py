"""`train export`: files that others can run, and that say what the run says."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import QUICK, assert_one_clear_line
from far import FarServer
from torch import nn

from models import MODELS, build_model
from pipeline.recipe import Recipe
from train import export
from train.cli import main
from train.clips import Sampling
from train.compute import Compute
from train.inputs import INPUTS, make_input, to_clips
from train.trained import Trained, load_trained

CPU = Compute(torch.device("cpu"), bf16=False)
NARROW = {"backbone": "resnet18_quarter"}
SMALL: dict[str, dict[str, Any]] = {
    "single_frame": NARROW,
    "late_fusion": NARROW,
    "early_fusion": NARROW,
    "cnn_lstm": NARROW,
    "cnn_mamba": {**NARROW, "depth": 1},
    "vivit": {"scale": "micro"},
    "videomae": {"scale": "micro"},
}
VIVITS = ("factorised_encoder", "factorised_self_attention", "factorised_dot_product")
FAMILIES = [
    *((name, SMALL.get(name, {})) for name in MODELS),
    *(("vivit", {"scale": "micro", "attention": attention}) for attention in VIVITS),
]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def make_trained(name: str, options: dict[str, Any], kind: str = "rgb") -> Trained:
    """A family as if trained: its last layer tells clips apart, so that parity has something to compare."""
    torch.manual_seed(0)
    model = build_model(
        name, num_classes=3, num_frames=8, size=(64, 64), in_channels=INPUTS[kind], **options
    ).eval()
    labels, mean, std = ("a", "b", "c"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=last.in_features**-0.5)
    with torch.inference_mode():
        logits = model(make_input(to_clips(some_frames(4), mean, std), kind))
    with torch.no_grad():
        spread = logits.std(0).max()
        last.bias.copy_((last.bias - logits.mean(0)) / spread)
        last.weight /= spread
    return Trained(model, labels, mean, std, Sampling(8), Recipe(width=64, height=64), kind, {})


def some_frames(clips: int) -> torch.Tensor:
    """Noise, each clip brighter than the one before."""
    noise = np.random.default_rng(1).integers(0, 64, (clips, 8, 64, 64, 3), np.uint8)
    return torch.from_numpy(noise + np.linspace(0, 191, clips).astype(np.uint8)[:, None, None, None, None])


def parity(to: str, name: str, options: dict[str, Any], path: Path, kind: str = "rgb") -> float:
    trained = make_trained(name, options, kind)
    target = export.TARGETS[to]
    with export._quiet():
        target.write(export._trace(trained), '{"labels": []}', path)
        apart = export._difference(target.read(path), trained, some_frames(4), CPU)
    spread = trained.probabilities(some_frames(4), CPU).std(0).max()
    assert spread > 0.05, "all clips look alike to this model: the comparison would show nothing"
    return apart


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_every_family_exports_to_a_torch_program(
    name: str, options: dict[str, Any], tmp_path: Path, exhaustive: bool
) -> None:
    if not exhaustive and (name in ("single_frame", "late_fusion") or "attention" in options):
        pytest.skip("of the same parts as others; --exhaustive exports all")
    assert parity("torch", name, options, tmp_path / "model.pt2") < 1e-5


@pytest.mark.parametrize("kind", ["diff", "rgb+diff"])
def test_frame_differences_are_made_inside(kind: str, tmp_path: Path) -> None:
    assert parity("torch", "videomae", SMALL["videomae"], tmp_path / "model.pt2", kind) < 1e-5


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_every_family_exports_to_onnx(
    name: str, options: dict[str, Any], tmp_path: Path, exhaustive: bool
) -> None:
    if not exhaustive and (name in ("single_frame", "late_fusion", "s3d") or "attention" in options):
        pytest.skip("of the same parts as others, or slow; --exhaustive exports all")
    for package in export.TARGETS["onnx"].packages:
        pytest.importorskip(package, reason="needs the extra `export`")
    assert parity("onnx", name, options, tmp_path / "model.onnx") < 1e-5


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    run = ["run", *QUICK, "--frames", 4, "--epochs", 1, "--shards", small_set, "--out", out]
    result = train(*run)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_parity_is_checked_on_the_clips_of_a_set_behind_a_url(run_copy: Path, server: FarServer) -> None:
    about = json.loads((run_copy / "run.json").read_text())
    about["settings"]["shards"] = server.url
    (run_copy / "run.json").write_text(json.dumps(about))
    frames, kind = export._parity_clips(load_trained(run_copy, "best", CPU), 4, print)
    assert kind == "real" and frames.shape == (4, 4, 48, 48, 3)


def test_a_torch_program_holds_labels_and_preprocessing_and_needs_none_of_our_code(run_copy: Path) -> None:
    result = train("export", run_copy, "--to", "torch", "--json")
    made = json.loads(result.stdout)
    assert made["parity"]["kind"] == "real" and made["parity"]["clips"] == 8
    assert made["parity"]["max_abs_difference"] <= 1e-6
    files = {"reelcache.json": ""}
    program = torch.export.load(run_copy / "model.pt2", extra_files=files)
    about = json.loads(files["reelcache.json"])
    assert about["labels"] == ["cats", "dogs"] and about["fps"] == "5" and about["size"] == [48, 48]
    assert about["frames"] == 4 and about["mean"] == pytest.approx([0.485, 0.456, 0.406])
    probabilities = program.module()(torch.zeros((3, 4, 48, 48, 3), dtype=torch.uint8))
    assert probabilities.shape == (3, 2) and probabilities.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_an_onnx_file_holds_labels_and_preprocessing(run_copy: Path) -> None:
    for package in export.TARGETS["onnx"].packages:
        pytest.importorskip(package, reason="needs the extra `export`")
    import onnxruntime

    result = train("export", run_copy, "--to", "onnx")
    assert result.exit_code == 0 and "0.0001 is allowed" in result.stdout, result.output
    session = onnxruntime.InferenceSession(run_copy / "model.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["reelcache.json"])
    assert about["labels"] == ["cats", "dogs"] and about["output"].startswith("probabilities")
    assert session.get_inputs()[0].shape[1:] == [4, 48, 48, 3]


def test_a_file_that_differs_from_the_run_is_not_kept(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = export.Deployed.forward
    monkeypatch.setattr(export.Deployed, "forward", lambda self, frames: deployed(self, frames) + 2e-4)
    assert_one_clear_line(train("export", run_copy, "--to", "torch"), 1, "its probabilities differ from the run's")
    assert not list(run_copy.glob("*model.pt2*"))


def test_numbers_that_are_none_do_not_pass_for_equal() -> None:
    trained = make_trained("videomae", SMALL["videomae"])
    assert (
        export._difference(lambda frames: torch.full((len(frames), 3), torch.nan), trained, some_frames(2), CPU)
        > 1
    )


def test_where_the_shards_are_gone_random_clips_serve_and_it_is_said(run_copy: Path) -> None:
    about = json.loads((run_copy / "run.json").read_text())
    about["settings"]["shards"] = "gone"
    (run_copy / "run.json").write_text(json.dumps(about))
    result = train("export", run_copy, "--to", "torch", "--parity-clips", 3)
    assert result.exit_code == 0 and "parity is checked on random clips: gone: no shard set here" in result.stderr
    assert "3 random clips" in result.stdout


def test_a_standing_file_is_not_replaced_unasked(run_copy: Path) -> None:
    (run_copy / "model.pt2").touch()
    assert_one_clear_line(train("export", run_copy, "--to", "torch"), 2, "exists; give another name")


def test_a_file_is_not_called_what_it_is_not(run_copy: Path) -> None:
    result = train("export", run_copy, "--to", "torch", "--out", run_copy / "model.onnx")
    assert_one_clear_line(result, 2, "model.onnx: is written as PT2; call it ")


def test_a_place_that_is_not_there_is_told_before_the_run_is_loaded(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "load_trained", None)
    result = train("export", run_copy, "--to", "torch", "--out", "nowhere/x.pt2")
    assert_one_clear_line(result, 2, "--out nowhere/x.pt2: there is no folder nowhere")


def test_onnx_without_its_packages_says_what_to_install(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _name: None)
    result = train("export", run_copy, "--to", "onnx")
    assert_one_clear_line(result, 2, "pip install 'reelcache[export]'")
