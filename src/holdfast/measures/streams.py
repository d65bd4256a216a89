"""`take`, `take_gradients`: size, level and shares of every stream where streams meet."""

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
    """Repeat the forward just trained on and measure the streams at its additions and concatenations.

    Args:
        moment: needs the call.

    Returns:
        Size, level and share of the variance, by fusion. The site's leaf names the stream by the layers that it comes
        from; its module is the linear layer that takes the streams, or the one in whose forward they meet.
    """
    found: list[Reading | None] = []
    for fusion in fusions(inner_model(moment.model), moment.forward):
        sites = _sites(fusion, moment)
        for k, (site, stream) in enumerate(zip(sites, fusion.streams, strict=True)):
            others = fusion.streams[:k] + fusion.streams[k + 1 :]
            found.append(stream_rms(stream, site=site, step=moment.step))
            found.append(stream_shift(stream, others, site=site, step=moment.step))
        found += stream_share(fusion.contributions, sites=sites, step=moment.step)
    return [each for each in found if each is not None]


def take_gradients(moment: Moment) -> list[Reading]:
    """Evaluate the loss and measure what each stream brings to the gradient of the layer that takes it.

    Args:
        moment: needs batch and loss.

    Returns:
        Shares of the gradient, by fusion, at the same sites.
    """
    batch = moment.labelled
    found: list[Reading] = []
    for fusion in fusions(inner_model(moment.model), batch.call(), loss_of=batch.traced_loss):
        samples = len(fusion.contributions[0])
        found += stream_gradient(fusion.gradients, sites=_sites(fusion, moment), step=moment.step, n=samples)
    return found


def _sites(fusion: Fusion, moment: Moment) -> list[Site]:
    return [Site(fusion.layer, "input", moment.stream, name, fusion.call) for name in fusion.names]
