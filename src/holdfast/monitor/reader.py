"""`Reader`: reads the tensors of one site, again and again in one way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.core.site import Port, Site
from holdfast.kernels.dispatch import readable
from holdfast.kernels.lens import KINDS, Lens
from holdfast.live.layout import Layout, Sampling, block, window_of
from holdfast.stats.observation import Observation, observe

MOST_SKETCHED = 16_384
"""Elements of a tensor in its sketch, about, where all of them are read for the rest."""


class Reader:
    """How the tensors of one place are read, worked out once for those of one shape, type and strides.

    Args:
        site: the place.
        tensor: the first of its shape.
        layout: where samples and features lie.
        sampling: which part is read.
        threshold: |x| above which values are counted as beyond; `None` counts none.
        sketched: about how many of the elements are counted in the sketch; 0 for all.
        exponents: of the sketches' scales by module, port and leaf; the first tensor read sets its place's.

    Attributes:
        elements: of a tensor, of which some are read.
        samples: of a tensor.
    """

    __slots__ = (
        "_exponents",
        "_lens",
        "_like",
        "_place",
        "_sketched",
        "elements",
        "layout",
        "samples",
        "sampling",
        "site",
        "threshold",
        "window",
    )

    def __init__(
        self,
        site: Site,
        tensor: Tensor,
        layout: Layout,
        sampling: Sampling,
        threshold: float | None,
        sketched: int,
        exponents: dict[tuple[str, Port, str], int],
    ) -> None:
        self.site, self.layout, self.sampling, self.threshold = site, layout, sampling, threshold
        self._sketched, self._exponents, self._place = sketched, exponents, (site.module, site.port, site.leaf)
        self._like = type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cpu, tensor.is_neg()
        self.elements, self.samples = tensor.numel(), tensor.shape[layout.samples]
        self.window = window_of(tensor, layout, sampling) if readable(tensor) else None
        self._lens: Lens | None = None

    @property
    def exponent(self) -> int | None:
        """Of the sketch's scale: one for all calls and phases of a place, so that they merge; `None` at first."""
        return self._exponents.get(self._place)

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor lies as the one for which the reader was made, and may be read like it.

        Args:
            tensor: any; not one that a function transform is at work on.
        """
        like = type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cpu, tensor.is_neg()
        return like == self._like and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)

    def read(self, tensor: Tensor, where: float, *, features: bool) -> Observation:
        """Look at a tensor that fits: by the compiled kernel, else by plain PyTorch.

        Args:
            tensor: in memory that may be read.
            where: in [0, 1), where the strided reading of positions starts.
            features: whether the values of each sample are wanted.

        Returns:
            What was seen.
        """
        if self._lens is None and self.window is not None and self.exponent is not None:
            beyond = math.inf if self.threshold is None else self.threshold
            self._lens = Lens(KINDS[tensor.dtype], self.window, self.exponent, beyond, self._sketched)
        if self._lens is not None:
            looked = self._lens.look(tensor.data_ptr(), where, features=features)
            if looked is not None:
                return Observation(looked)
        with torch.no_grad():
            part = block(tensor, self.layout, self.sampling, where)
            seen = observe(part, exponent=self.exponent, threshold=self.threshold)
        self._exponents.setdefault(self._place, seen.exponent)
        return seen
