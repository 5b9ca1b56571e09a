"""How each family is trained unless told otherwise. A family's row is where its numbers are changed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainRecipe:
    """Settings of one training run; every one can be given as a flag of `train run`.

    `lr` is the peak, reached after `warmup` epochs and followed by a cosine to zero; `crop` is the smallest
    share of the area that a random crop keeps; `jitter` is how far contrast and brightness move; `layer_decay`
    is the rate of each stage of the network over that of the one after it.
    """

    epochs: int = 20
    batch_size: int = 16
    frames: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 1.0
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    dropout: float = 0.0
    crop: float = 0.6
    jitter: float = 0.2
    flip: bool = True


RECIPES = {
    "single_frame": TrainRecipe(),
    "late_fusion": TrainRecipe(),
    "early_fusion": TrainRecipe(),
    "cnn_lstm": TrainRecipe(),
    "cnn_mamba": TrainRecipe(),
    "s3d": TrainRecipe(),
    # Fine-tuning: without --weights, transformers need more videos than most people have.
    "vivit": TrainRecipe(epochs=30, lr=1e-4, warmup=2.5, label_smoothing=0.2),
    "videomae": TrainRecipe(epochs=30, lr=5e-4 * 16 / 256, warmup=5.0, layer_decay=0.7, dropout=0.5),
}
