"""`scale-input`: a recipe that centres and scales the data before the first layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.treatments.change import Batch


@dataclass(frozen=True, slots=True, eq=False)
class ScaleInput:
    """Lines that centre each input feature and scale it to unit standard deviation.

    What it does:
        A recipe: it gives the lines for your script. Mean and standard deviation come from the training data once
        (of each feature for vectors, of each channel for images), and every batch, in evaluation too, is shifted and
        scaled by these same figures.

    When it helps:
        When inputs are far from zero mean and unit variance (pixels in 0 … 255, mixed physical units): the first
        layer's initialisation assumes unit variance, and features of unequal scale make the loss ill-conditioned.

    When it is wrong:
        On sparse inputs (bags of words), whose zeros carry meaning: scale without centring. On constant features:
        the lines leave those at zero. With figures taken from the test data: they leak. In front of a BatchNorm,
        which does it already.

    Example:
        >>> import torch
        >>> plan = ScaleInput(batch=torch.tensor([[0.0, 100.0], [2.0, 300.0]])).plan(nn.Linear(2, 1), None)
        >>> print(plan.diff)
        - input: mean 100.5, SD 122.1 over 2 samples
        + input: mean 0, SD 1 of each feature

    Args:
        batch: what the model is called with; then the diff states its present scale.

    References:
        LeCun, Bottou, Orr and Müller, Efficient BackProp, 1998, section 4.3.
    """

    name = "scale-input"

    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Give the lines.

        Args:
            model: the model.
            optimizer: not needed.
            sites: not needed: the model's input is scaled.

        Returns:
            A plan that only your script can follow.
        """
        values = _first_floating(self.batch)
        axes = [0] if values is None or values.ndim <= 2 else [0, *range(2, values.ndim)]
        unit = "feature" if axes == [0] else "channel"
        before = "input: as it is in the data"
        if values is not None and values.numel():
            wide = values.double()
            sd = wide.std(correction=0).item()
            before = f"input: mean {wide.mean().item():.4g}, SD {sd:.4g} over {len(values)} samples"
        return Plan(
            self.name,
            f"- {before}\n+ input: mean 0, SD 1 of each {unit}",
            f"mean = train_inputs.mean(dim={axes}, keepdim=True)\n"
            f"sd = train_inputs.std(dim={axes}, keepdim=True).clamp_min(1e-6)\n"
            "inputs = (inputs - mean) / sd  # each batch, in training and in evaluation",
        )


def _first_floating(batch: Batch | None) -> Tensor | None:
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)
