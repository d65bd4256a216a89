"""`ActivationWindow`: what every activation of a model says, modules, functions and recurrent layers' insides alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.live.activations import Activated, Activations
from holdfast.live.inner import inner_model
from holdfast.live.moment import Moment
from holdfast.measures.dead_units import dead_units
from holdfast.measures.gate_saturation import QUANTITY as GATES
from holdfast.measures.gate_saturation import gate_saturation
from holdfast.measures.saturated_fraction import saturated_fraction
from holdfast.stats.channels import ChannelMoments

_WINDOW = 8
"""Calls on all of which a unit must have been silent to be called dead."""


class ActivationWindow:
    """Saturated fraction, dead units and gate saturation of every activation, from the forward just trained on.

    Beside what hooks on layers see: functions that take what another function made, dynamic tanhs, and what is inside
    `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells. Dead units are those silent on this call and the seven before it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from holdfast.live.replay import record_call
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return torch.tanh(x + 1)
        >>> net, x = Net(), torch.tensor([[0.0], [9.0]])
        >>> [(str(each.site), each.value) for each in ActivationWindow()(Moment(net, 1, call=record_call((x,), {})))]
        [('net/:input[tanh]#0@train', 0.5)]
    """

    def __init__(self) -> None:
        self._past: dict[Site, list[tuple[ChannelMoments, int]]] = {}
        self.not_seen: list[str] = []

    def __call__(self, moment: Moment) -> list[Reading | Table]:
        """Repeat the forward of a step and measure.

        Args:
            moment: needs the call.

        Returns:
            Readings in the order of execution, and a table of the gates; afterwards `not_seen` has a sentence for each
            recurrent layer that could not be computed again.
        """
        model = inner_model(moment.model)
        activations = Activations(model, moment.stream)
        activations.follow(model, moment.forward)
        self.not_seen = activations.not_seen
        readings = [self._reading(each, moment.step) for each in activations.found]
        gates = [each for each in activations.found if each.role == "gate"]
        return [*(each for each in readings if each is not None), *_table(gates, moment.step)]

    def _reading(self, activated: Activated, step: int) -> Reading | None:
        site, seen, samples = activated.site, activated.seen, activated.samples
        if activated.role == "gate":
            return gate_saturation(seen.summary, site=site, step=step, samples=samples)
        if activated.role == "saturating":
            return saturated_fraction(seen.summary, site=site, step=step, samples=samples)
        window = self._past.setdefault(site, [])
        if window and window[-1][0].channels != seen.channels.channels:
            window.clear()  # the layer was replaced by one of another width
        window[:] = [*window[1 - _WINDOW :], (seen.channels, samples)]
        merged = sum((channels for channels, _ in window), ChannelMoments.empty())
        return dead_units(merged, site=site, step=step, samples=sum(n for _, n in window))


def _table(gates: Sequence[Activated], step: int) -> Iterator[Table]:
    """Shares of closed and of open, a row a gate."""
    counts = [(each, each.seen.summary.counts) for each in gates]
    counts = [(each, count) for each, count in counts if count.finite]
    if counts:
        yield Table(
            GATES.name,
            step,
            GATES.unit,
            tuple(str(each.site) for each, _ in counts),
            ("closed", "open"),
            tuple((each.low / count.finite, (count.beyond - each.low) / count.finite) for each, count in counts),
            min(each.samples for each, _ in counts),
        )
