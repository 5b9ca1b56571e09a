"""Other people's transformers by our keys: VideoMAE's own checkpoints, Hugging Face's, OpenMMLab's, timm's."""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from models.formats import Format
from models.head import leave_out
from models.normalisation import HALF, IMAGENET_MEAN, IMAGENET_STD
from models.videomae import sincos_table

State = dict[str, Tensor]

# Hugging Face's names, of version 4 and of version 5, to timm's
HUGGING_FACE = (
    (r"^(videomae|vivit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.([qv])_bias$", r".attn.\1.bias"),
    (r"\.attention\.attention\.([qkv])[a-z]+\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
MMACTION = (
    (r"^backbone\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
    (r"^cls_head\.fc_cls\.", "head."),
)


def rename(state: State, rules: Iterable[tuple[str, str]]) -> State:
    """The same tensors, each name changed by all the rules in turn."""
    renamed = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    return renamed


def fuse(state: State) -> State:
    """`attn.{q,k,v}` joined: to `attn.qkv`, or to q_bias and v_bias where the key has no bias."""
    fused = {name: tensor for name, tensor in state.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name, query in state.items():
        prefix, found, kind = name.partition(".attn.q.")
        if not found:
            continue
        parts = [state.get(f"{prefix}.attn.{letter}.{kind}") for letter in "qkv"]
        whole = [part for part in parts if part is not None]
        if len(whole) == 3:
            fused[f"{prefix}.attn.qkv.{kind}"] = torch.cat(whole)
        else:
            fused |= {f"{prefix}.attn.q_bias": query, f"{prefix}.attn.v_bias": whole[-1]}
    return fused


def from_hugging_face(state: State) -> State:
    """ViViT and VideoMAE, of version 4 or 5, classifiers and pre-trained."""
    return fuse(rename(state, HUGGING_FACE))


def from_mmaction(state: State) -> State:
    """VideoMAE of OpenMMLab. It stores its table of positions; what is no such table is left to be reported."""
    renamed = rename(state, MMACTION)
    positions = renamed.get("pos_embed")
    if positions is not None and torch.allclose(positions, sincos_table(*positions.shape[1:]), atol=1e-4):
        del renamed["pos_embed"]
    return renamed


def to_classifier(state: State) -> State:
    """VideoMAE's encoder by the classifier's names; those of the decoder, and of the norm before it, it has not.

    A fine-tuned model without fc_norm reads its first token rather than the mean (a common slip: the base model's
    `use_mean_pooling=False` kept). Its head would read noise here and is left out.
    """
    state = {re.sub(r"^encoder\.", "", name): tensor for name, tensor in state.items()}
    return state if "fc_norm.weight" in state else leave_out(state, "head.")


def to_pretraining(state: State) -> State:
    """VideoMAE's encoder by the names of the pre-training model."""
    return {
        re.sub(r"^(patch_embed|blocks|norm)\.", r"encoder.\1.", name): tensor for name, tensor in state.items()
    }


def timm_to_vivit(state: State) -> State:
    """timm's ViT without its head. Its positions get an axis of one time step: [1, 1, N, D].

    A ViViT of our own has the same names, and kernels for tubelets. It stays as it is.
    """
    if state["patch_embed.proj.weight"].ndim == 5:
        return state
    state = leave_out(state, "head.", "fc_norm.")
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][None]
    return state


def timm_to_videomae(state: State) -> State:
    """timm's ViT without head, [class] token and positions; the key's bias changes no softmax and goes, too."""
    converted: State = {}
    for name, tensor in state.items():
        prefix, found, _ = name.partition(".attn.qkv.bias")
        if found:
            query, _, value = tensor.chunk(3)
            converted |= {f"{prefix}.attn.q_bias": query, f"{prefix}.attn.v_bias": value}
        else:
            converted[name] = tensor
    return leave_out(converted, "head.", "fc_norm.")


def _has(*patterns: str, without: str = "") -> Callable[[set[str]], bool]:
    """Recognises keys where each of the patterns is all of a name, and no name ends in `without`."""

    def recognises(keys: set[str]) -> bool:
        found = all(any(re.fullmatch(pattern, key) for key in keys) for pattern in patterns)
        return found and not (without and any(key.endswith(without) for key in keys))

    return recognises


_HF_EMBEDDINGS = r"((videomae|vivit)\.)?embeddings\."
_HF_PATCHES = _HF_EMBEDDINGS + r"patch_embeddings\.projection\.weight"
_HF_QUERY = r"(videomae\.)?encoder\.layer\.0\.attention\.attention\.query\.weight"
_HF_VIDEOMAE = _has(_HF_PATCHES, _HF_QUERY, without="cls_token")
_HF_VIVIT = _has(_HF_PATCHES, _HF_EMBEDDINGS + "cls_token", _HF_EMBEDDINGS + "position_embeddings")
_VIDEOMAE = _has(
    r"(encoder\.)?patch_embed\.proj\.weight", r"(encoder\.)?blocks\.0\.attn\.q_bias", without="cls_token"
)
_MMACTION = _has(r"backbone\.patch_embed\.projection\.weight", r"backbone\.blocks\.0\.attn\.q_bias")
_TIMM = _has(r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.bias")

CLASSIFIER, PRETRAINING = ("videomae",), ("videomae_pretraining",)


def _hugging_face_to_classifier(state: State) -> State:
    return to_classifier(from_hugging_face(state))


def _hugging_face_to_pretraining(state: State) -> State:
    return to_pretraining(from_hugging_face(state))


# The first that recognises a checkpoint, among those of the wanted family
VIT_FORMATS: tuple[Format, ...] = (
    Format("VideoMAE", _VIDEOMAE, to_classifier, CLASSIFIER, IMAGENET_MEAN, IMAGENET_STD),
    Format("VideoMAE", _VIDEOMAE, to_pretraining, PRETRAINING, IMAGENET_MEAN, IMAGENET_STD),
    Format(
        "Hugging Face VideoMAE", _HF_VIDEOMAE, _hugging_face_to_classifier, CLASSIFIER, IMAGENET_MEAN, IMAGENET_STD
    ),
    Format(
        "Hugging Face VideoMAE",
        _HF_VIDEOMAE,
        _hugging_face_to_pretraining,
        PRETRAINING,
        IMAGENET_MEAN,
        IMAGENET_STD,
    ),
    Format("MMAction2 VideoMAE", _MMACTION, from_mmaction, CLASSIFIER, IMAGENET_MEAN, IMAGENET_STD),
    Format("Hugging Face ViViT", _HF_VIVIT, from_hugging_face, ("vivit",), HALF, HALF),
    Format("timm ViT", _TIMM, timm_to_vivit, ("vivit",), HALF, HALF),
    Format("timm ViT", _TIMM, timm_to_videomae, CLASSIFIER, HALF, HALF),
)

# Our own runs, from one family to another: (of the file, of the model)
VIT_CROSSINGS: dict[tuple[str, str], Callable[[State], State]] = {
    (PRETRAINING[0], CLASSIFIER[0]): to_classifier,
    (CLASSIFIER[0], PRETRAINING[0]): to_pretraining,
}
