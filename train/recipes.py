"""How each family is trained unless told otherwise. A row in OWN is where a family's numbers are changed."""

import math
from dataclasses import dataclass, fields

from models import MODELS

MOST_FRAMES = 4096  # of a clip


@dataclass(frozen=True)
class Augment:
    """How far training clips are changed; as it stands, not at all. Raises `ValueError` for what cannot be.

    flip, grayscale, blur, erase: the probability of a mirrored clip, one without colour, a blurred one, a box
    that is blank in all frames. crop: the smallest share of the area that a crop keeps, resized to full size;
    ratio: how many times wider or higher than the frame its shape may be. brightness, contrast, saturation: how
    far the factor may be from 1; hue: from 0, in turns. mixup (Zhang et al. 2017, arXiv 1710.09412), cutmix (Yun
    et al. 2019, arXiv 1905.04899): alpha of their Beta distribution; with both, each pair of clips gets one.
    """

    flip: float = 0.0
    crop: float = 1.0
    ratio: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):  # of what derives from this, too
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} {value}: must be a number, and not infinite")
        highest = {"ratio": math.inf, "mixup": math.inf, "cutmix": math.inf, "hue": 0.5}
        for field in fields(Augment):
            value, top = getattr(self, field.name), highest.get(field.name, 1.0)
            if not 0 <= value <= top:
                raise ValueError(f"{field.name} {value}: must lie between 0 and {top}")
        if not self.crop:
            raise ValueError("crop 0: nothing would be left; 1 keeps all")
        if self.ratio < 1:
            raise ValueError(f"ratio {self.ratio}: must be 1 or more; 1 keeps the frame's shape")

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed, so that labels are shares: see `soft_labels`."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def cut_share(self) -> float:
        """The share of pairs that get CutMix, where clips are mixed."""
        return 0.5 if self.mixup and self.cutmix else float(self.cutmix > 0)


@dataclass(frozen=True)
class TrainRecipe(Augment):
    """Settings of one training run; every one can be given as a flag of `train run`.

    `lr` is the peak, reached after `warmup` epochs and followed by a cosine to zero; `layer_decay` is the rate of
    each stage of the network over that of the one after it; `beta2` is AdamW's decay of the mean of squares;
    gradients are cut to the norm `clip_norm`, 0: never; a batch goes through the model in `accumulate` parts;
    `input` is what of a clip the model is shown (`train.inputs.INPUTS`).

    `sampling`, `stride`: which frames make a clip, see `train.clips.Sampling`. `repeats`: clips of each sample in
    a batch. `balanced`: classes are drawn equally often. `class_weights`: what a clip counts in the loss, see
    `train.class_weights`. `ema`: decay of the averaged weights, see `train.ema`; 0: none. `freeze_epochs`: see
    `train.freeze`. `best_by`: the metric on val that chooses the best epoch; `patience`: the run ends after so
    many epochs without a better one; 0: never.
    """

    flip: float = 0.5
    crop: float = 0.6
    brightness: float = 0.2
    contrast: float = 0.2
    epochs: int = 20
    batch_size: int = 16
    frames: int = 16
    input: str = "rgb"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 1.0
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    accumulate: int = 1
    layer_decay: float = 1.0
    dropout: float = 0.0
    beta2: float = 0.999
    sampling: str = "window"
    stride: int = 1
    repeats: int = 1
    balanced: bool = False
    class_weights: str = "none"
    ema: float = 0.0
    freeze_epochs: int = 0
    best_by: str = "accuracy"
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.frames <= MOST_FRAMES:
            raise ValueError(f"--frames {self.frames}: a clip has 1 to {MOST_FRAMES}")
        if self.sampling == "uniform" and self.stride != 1:
            raise ValueError(
                f"--stride {self.stride}: not with --sampling uniform, which takes frames of the whole video"
            )
        if self.batch_size % self.repeats:
            raise ValueError(f"--repeats {self.repeats}: --batch-size {self.batch_size} is not a multiple of it")
        if self.balanced and self.class_weights == "balanced":
            raise ValueError(
                "--class-weights balanced: not with --balanced, which has evened out the classes already"
            )
        if self.freeze_epochs > self.epochs:
            raise ValueError(f"--freeze-epochs {self.freeze_epochs}: there are only {self.epochs} epochs")


# What a pre-training has no use for: it sees no label, and its last weights are its best.
LABELS_ONLY = (
    "label_smoothing", "layer_decay", "dropout", "erase", "mixup", "cutmix", "balanced", "class_weights",
    "freeze_epochs", "best_by", "patience",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainRecipe(TrainRecipe):
    """Settings of one masked pre-training; every one that has to do with it can be given as a flag of
    `train pretrain`.

    A mirrored clip is another one, not the same: what is painted is mirrored with it. So nothing is learnt
    about direction from `flip`, and data are doubled. mask_ratio: the share of a frame's patches that is hidden.
    pictures_every: epochs from one picture of reconstructions to the next; 0: none.
    """

    crop: float = 0.44  # the smallest of VideoMAE's crops, two thirds of a side
    ratio: float = 1.15
    brightness: float = 0.0
    contrast: float = 0.0
    epochs: int = 200
    batch_size: int = 64
    lr: float = 3e-4
    warmup: float = 10.0
    label_smoothing: float = 0.0
    beta2: float = 0.95
    mask_ratio: float = 0.75
    pictures_every: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio {self.mask_ratio}: must lie between 0 and 1")


# What trains otherwise than by the defaults.
OWN = {
    # Fine-tuning: without --weights, transformers need more videos than most people have.
    "vivit": TrainRecipe(epochs=30, lr=1e-4, warmup=2.5, label_smoothing=0.2),
    # VideoMAE's for UCF101 (its scripts/ucf101), but for: 100 epochs; RandAugment, for which our colours and crops
    # stand; stochastic depth, which is an option of the model (drop_path=0.2) and takes much of a shallow one;
    # two clips a video in a batch, which spare a slow loader: with a fast one other videos teach more.
    "videomae": TrainRecipe(
        epochs=30, lr=5e-4 * 16 / 256, warmup=5.0, layer_decay=0.7, dropout=0.5, mixup=0.8, cutmix=1.0, erase=0.25
    ),
}
RECIPES = {family: OWN.get(family, TrainRecipe()) for family in MODELS}

# Pre-training: the family that it starts -> its recipe. The network is called <family>_pretraining.
PRETRAIN_RECIPES = {"videomae": PretrainRecipe()}
