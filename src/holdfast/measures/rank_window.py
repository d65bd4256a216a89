"""`RankWindow`: the features of a window of steps, and the measures of their rank."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.live.inputs import read_inputs
from holdfast.live.layout import Layout
from holdfast.live.moment import Moment
from holdfast.measures.effective_rank import effective_rank
from holdfast.measures.participation_ratio import participation_ratio
from holdfast.measures.spectrum import SAMPLES_PER_DIMENSION, parts_of, projected
from holdfast.measures.variance_rank import variance_rank

_LEAST = 256
"""Samples that a narrow site's window holds; others hold twice what the figures need."""

_MEASURES = (effective_rank, participation_ratio, variance_rank)


class RankWindow:
    """Effective rank, participation ratio and variance rank of every layer's input, over the last samples trained on.

    Each call repeats the forward just trained on, adds its samples to those of the calls before, and gives readings
    of the sites that have 10 samples a dimension by then: with a batch of 64 and 64 dimensions from the tenth call on.
    A site keeps at most 20 samples a dimension and a batch more, after the projection to at most 64: 330 KB at the
    most beside the last batch.

    Example:
        >>> from torch import nn
        >>> from holdfast.live.replay import record_call
        >>> net, rank = nn.Sequential(nn.Linear(4, 8)), RankWindow()
        >>> call = record_call((torch.randn(80, 4),), {})
        >>> [(reading.measure, str(reading.site)) for reading in rank(Moment(net, 1, call=call))][:1]
        [('effective-rank', 'net/0:input#0@train')]
    """

    def __init__(self) -> None:
        self._rows: dict[Site, list[Tensor]] = {}

    def __call__(self, moment: Moment) -> list[Reading]:
        """Take in one step and measure.

        Args:
            moment: needs the call.

        Returns:
            Readings of the sites that have samples enough, three a site.
        """
        self._seen: dict[Site, None] = {}
        read_inputs(moment.model, moment.forward, self._keep, stream=moment.stream, structure=moment.structure)
        readings: list[Reading | None] = []
        for site in self._seen:
            rows = torch.cat(self._rows[site])
            if len(rows) < SAMPLES_PER_DIMENSION * rows.shape[1]:
                continue
            parts = parts_of(rows)
            readings += [measure(parts, site=site, step=moment.step) for measure in _MEASURES]
        return [reading for reading in readings if reading is not None]

    def _keep(self, site: Site, tensor: Tensor, layout: Layout) -> None:
        if layout.channels is None or tensor.shape[layout.channels] < 2:
            return
        positions = [axis for axis in range(tensor.ndim) if axis not in (layout.samples, layout.channels)]
        kind = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        values = tensor.mean(positions, dtype=kind) if positions else tensor.to(kind)
        rows = projected(values if layout.samples < layout.channels else values.T).cpu()
        batches = self._rows.setdefault(site, [])
        if batches and batches[-1].shape[1:] != rows.shape[1:]:
            batches.clear()  # the layer was replaced by one of another width
        batches.append(rows)
        most = max(2 * SAMPLES_PER_DIMENSION * rows.shape[1], _LEAST)
        while sum(map(len, batches[1:])) >= most:
            batches.pop(0)
        self._seen[site] = None
