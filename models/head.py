"""The classifier's last layers, `head.…`: taken from other weights as a whole or not at all."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from models.formats import LEFT_OUT

HEAD = "head."
UNTOLD = "num_batches_tracked"  # some files lack it


def leave_out(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The same tensors; those of such names find no place, and are reported."""
    return {f"{LEFT_OUT}{name}" if name.startswith(prefixes) else name: state[name] for name in state}


def fit_head(
    state: dict[str, Tensor],
    ours: Mapping[str, Tensor],
    labels: Sequence[str] | None,
    wanted: Sequence[str] | None,
) -> dict[str, Tensor]:
    """The tensors, with the rows of the head's last layer in the order of our labels (`wanted`).

    Its head is left out where it is not, layer by layer, of our shapes, or something before it is not there:
    layers behind fresh ones know nothing. So is one for other `labels`; None where they are not known.
    """
    theirs, own = ({n: t.shape for n, t in side.items() if n.startswith(HEAD)} for side in (state, ours))
    if not theirs:
        return state
    if theirs != own or any(name not in state for name in ours if not name.endswith(UNTOLD)):
        return leave_out(state, HEAD)
    if labels is None or wanted is None:
        return state
    if sorted(labels) != sorted(wanted):
        return leave_out(state, HEAD)
    order = [list(labels).index(label) for label in wanted]
    last = list(own)[-1].rpartition(".")[0]
    return {name: tensor[order] if name.startswith(f"{last}.") else tensor for name, tensor in state.items()}
