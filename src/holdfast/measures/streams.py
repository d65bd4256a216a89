"""`take`: size, level, share of the variance and of the gradient of every stream where streams meet."""

from __future__ import annotations

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.live.fusions import Fusion, fusions
from holdfast.live.inner import inner_model
from holdfast.live.moment import Moment
from holdfast.measures.stream_gradient import stream_gradient
from holdfast.measures.stream_rms import stream_rms
from holdfast.measures.stream_share import stream_share
from holdfast.measures.stream_shift import stream_shift


def take(moment: Moment) -> list[Reading]:
    """Repeat a forward and measure the streams at its additions and concatenations.

    Args:
        moment: with batch and loss, these are evaluated, and the shares of the gradient are among the readings; without
            them the forward just trained on is repeated, without gradients.

    Returns:
        Readings by fusion and stream. The site's leaf names the stream by the layers that it comes from; its module is
        the linear layer that takes the streams, or the one in whose forward they meet.
    """
    model = inner_model(moment.model)
    if moment.has("loss"):
        call, loss_of = moment.loss_pass()
        found = fusions(model, call, loss_of=loss_of)
    else:
        found = fusions(model, moment.forward)
    return [reading for fusion in found for reading in _readings(fusion, moment)]


def _readings(fusion: Fusion, moment: Moment) -> list[Reading]:
    step = moment.step
    sites = [Site(fusion.layer, "input", moment.stream, name, fusion.call) for name in fusion.names]
    found: list[Reading | None] = []
    for k, (site, stream) in enumerate(zip(sites, fusion.streams, strict=True)):
        others = fusion.streams[:k] + fusion.streams[k + 1 :]
        found += [stream_rms(stream, site=site, step=step), stream_shift(stream, others, site=site, step=step)]
    found += stream_share(fusion.contributions, sites=sites, step=step)
    found += stream_gradient(fusion.gradients, sites=sites, step=step, n=len(fusion.contributions[0]))
    return [each for each in found if each is not None]
