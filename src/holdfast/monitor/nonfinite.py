"""What broke the loss: the event that names it, and the batch kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from holdfast.core.event import Event
from holdfast.live.locate import first_nonfinite
from holdfast.live.replay import Call


def nonfinite_event(model: nn.Module, call: Call | None, loss: float, *, step: int, kept: Path | None = None) -> Event:
    """Replay a call whose loss is not finite, and say which operation broke first.

    Args:
        model: with the weights that it had at the call.
        call: what the model was given, `None` when that is not known any more.
        loss: as it came out.
        step: at which it broke.
        kept: file that holds the batch.

    Returns:
        An event of kind `"nonfinite"`.
    """
    culprit = None if call is None else first_nonfinite(model, call, loss)
    detail = "the batch could not be replayed" if culprit is None else culprit.detail
    data: dict[str, Any] = {"loss": str(loss), "kept": None if kept is None else kept.name, "detail": detail}
    if culprit is not None:
        data |= {"where": culprit.where, "operation": culprit.operation, "kind": culprit.kind}
    return Event(step, "nonfinite", f"the loss became {loss} at step {step}: {detail}", data=data)


def keep_batch(folder: Path, step: int, call: Call, *, rank: int = 0) -> Path:
    """Save the tensors that a model was given, as plain arrays.

    Args:
        folder: of the run.
        step: at which the loss broke.
        call: the model's call.
        rank: of this process; the file's name tells it where it is not 0.

    Returns:
        The file `batch-<step>.npz`, or `batch-<step>.rank-<rank>.npz`, with one array `input<k>` for each tensor in the
        order in which the call holds them. It is read with `numpy.load(path)` and holds no Python objects.
    """
    path = folder / f"batch-{step}{f'.rank-{rank:03d}' if rank else ''}.npz"
    tensors = [leaf for leaf in tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, Tensor)]
    arrays = {f"input{place}": _array(tensor) for place, tensor in enumerate(tensors)}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; float32 holds every value of it.
    return tensor.float().numpy() if tensor.dtype.itemsize < 4 and tensor.is_floating_point() else tensor.numpy()
