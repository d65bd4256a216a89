"""`z-loss`: a recipe that keeps the logits of a softmax from drifting away together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.treatments.change import Batch


@dataclass(frozen=True, slots=True, eq=False)
class ZLoss:
    """Lines that add to the cross-entropy a small penalty on the softmax's normaliser.

    What it does:
        A recipe: it gives the lines for your script. With Z = Σ exp(logit) over the classes, the loss becomes

            cross-entropy + weight · mean((log Z)²).

        The cross-entropy does not feel a constant added to all logits of a sample; the penalty does, and draws
        log Z to 0.

    When it helps:
        When the logits of a language model or of a classifier with many classes drift up or down together over a
        long run, until half precision rounds their differences away or the loss spikes. For routers of mixtures of
        experts, with weight 1e-3 on the router's logits.

    When it is wrong:
        With any loss but a softmax cross-entropy: of a sigmoid or a regression it shrinks the answer itself. When
        the loss is compared with that of other runs: report the cross-entropy alone. With `ignore_index` or weights
        of samples: the penalty's mean still counts every position; mask it in the same way. It acts on the last
        layer: growth of the logits inside an attention is not its business.

    Example:
        >>> print(ZLoss().plan(nn.Linear(1, 1), None).source)
        logits = model(inputs).float()
        log_z = torch.logsumexp(logits, dim=1)  # the classes' axis, as cross_entropy takes it
        loss = nn.functional.cross_entropy(logits, targets) + 0.0001 * log_z.square().mean()

    Args:
        weight: of the penalty.
        batch: not needed.

    References:
        Zoph et al., ST-MoE: designing stable and transferable sparse expert models, 2022, arXiv:2202.08906.
        Chowdhery et al., PaLM: scaling language modeling with pathways, 2022, arXiv:2204.02311, section 5.
    """

    name = "z-loss"

    weight: float = 1e-4
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Give the lines.

        Args:
            model: the model.
            optimizer: not needed.
            sites: not needed: the penalty is on the model's output.

        Returns:
            A plan that only your script can follow.

        Raises:
            InputError: the weight is not positive and finite.
        """
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError("a positive weight", repr(self.weight), "give weight=1e-4, say")
        return Plan(
            self.name,
            "- loss: cross-entropy\n"
            f"+ loss: cross-entropy + {self.weight!r} · mean((log Z)²), log Z = logsumexp of the logits",
            "logits = model(inputs).float()\n"
            "log_z = torch.logsumexp(logits, dim=1)  # the classes' axis, as cross_entropy takes it\n"
            f"loss = nn.functional.cross_entropy(logits, targets) + {self.weight!r} * log_z.square().mean()",
        )
