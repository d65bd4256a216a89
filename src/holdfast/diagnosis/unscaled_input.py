"""Rule `unscaled-input`: the model's own input is far from mean 0 and SD 1, or its features from one another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import number, plural
from holdfast.stats.channels import ChannelMoments

_SEQUENCE = ("", "0", "0.0", "1.input")
"""Paths of a recurrent layer's first argument: alone, before a state, before a state given by name, by name itself."""


@dataclass(frozen=True, slots=True)
class UnscaledInput:
    """The model's own input is far from mean 0 and SD 1, or its features are on very different scales.

    What it sees:
        The channels at the sites that the model's input feeds (the first observed one where no structure was recorded),
        merged over at most 20 observed steps; constant channels left out. Three questions:
        1. Size: RMS of all values above 10 (a remark), 30 (a warning) or 3,000 (critical), or below 1/100. Usual
           initialisations keep the RMS, so the first layer's outputs have it too. Pixels 0 to 255 have an RMS of 80 to
           150, pixels 0 to 1 of 0.3 to 0.6, standardised input of 1.
        2. Offset: more than half of the channels with |mean| above 10 SD (years, temperatures in kelvin).
        3. Features on different scales: the widest channel's SD is more than 100 times (a remark), 1,000 (a warning),
           100,000 (critical) the median channel's (of an even number of channels the lower of the middle two), among
           channels that are not zero in at least 5 % of the values. The median, because pixels at an image's border
           hardly vary and are not badly scaled: narrow channels slow nothing down, a few wide ones set the rate that
           all others can stand.

        Noise: with n values an SD has a relative error of about 1/√(2n); from 30 values on it is below 13 %, far from
        the factors asked for.

    Why it matters:
        One learning rate cannot suit features whose gradients differ by the square of their scales; a large offset
        makes the first layer's gradient almost the same for every sample.

    When it is wrong:
        A network whose first layer is a normaliser or an embedding does not mind (such a site is left out). Networks
        built for raw values (spectra, counts in a logarithm layer) scale by themselves. The state that a recurrent
        layer is handed is not taken for data. Counts and sparse features are
        judged by the SD of what varies. A minority of features far
        narrower than the others goes unseen.

    Example:
        The input has an RMS of 123 (mean 78, SD 95): pixels 0 to 255?

    What to do:
        scale-input: subtract each feature's mean and divide by its SD, both from the training data; or insert-norm as
        the first layer.

    References:
        LeCun et al. 1998, "Efficient backprop", section 4.3.
    """

    name: str = "unscaled-input"
    subject: str = "the scale of the input"
    treatments: tuple[str, ...] = ("scale-input", "insert-norm")
    static: bool = False
    large: tuple[float, float, float] = (10.0, 30.0, 3000.0)
    small: float = 0.01
    offset: float = 10.0
    ratio: tuple[float, float, float] = (1e2, 1e3, 1e5)
    seldom: float = 0.05
    values_needed: int = 30
    window: int = 20

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the channels of the model's input.

        Args:
            history: of a run.

        Returns:
            One finding for each input and question, or why it could not be decided.
        """
        findings = []
        judged = False
        most = 0
        for stream in history.streams():
            sites, known = self._sites(history, stream)
            judged |= known and not sites
            for site in sites:
                kept = [each for _, each in history.channels(site) if isinstance(each, ChannelMoments)]
                if not kept:
                    continue
                step = history.channels(site)[min(len(kept), self.window) - 1][0]
                moments = reduce(add, kept[: self.window])
                values = int(moments.count.max(initial=0))
                most = max(most, values)
                if values >= self.values_needed:
                    judged = True
                    findings += self._judge(site, step, moments)
        if judged:
            return findings
        return Inconclusive(
            self.name,
            f"the model's input was seen with {plural(most, 'value')} a channel; it needs {self.values_needed}",
        )

    def _sites(self, history: History, stream: str) -> tuple[list[Site], bool]:
        """Sites that the model's input feeds, and whether a structure named them."""
        observed = [site for site in history.sites(port="input", phase="train", stream=stream) if site.call == 0]
        structure = history.structure(stream)
        fed = {} if structure is None else {target: None for source, target in structure.edges if source == ""}
        if structure is None or not fed:
            return observed[:1], False
        tolerant = {
            node.path
            for node in structure.modules
            if any("Norm" in kind or kind.startswith("Embedding") for kind in (node.kind, *node.bases))
        }
        # What a recurrent layer is handed beside its sequence is a state that the model made, not data.
        recurrent = {node.path for node in structure.modules if {"RNNBase", "RNNCellBase"} & {node.kind, *node.bases}}
        return [
            site
            for site in observed
            if site.module in fed
            and site.module not in tolerant
            and (site.module not in recurrent or site.leaf in _SEQUENCE)
        ], True

    def _judge(self, site: Site, step: int, moments: ChannelMoments) -> list[Finding]:
        sd = moments.sd
        varies = (moments.count > 0) & (sd > 0) & np.isfinite(sd)
        if not varies.any():
            return []
        found = [self._size(site, step, moments), self._scales(site, step, moments, varies)]
        if found[0] is None:
            found.append(self._offset(site, step, moments, varies))
        return [each for each in found if each is not None]

    def _size(self, site: Site, step: int, moments: ChannelMoments) -> Finding | None:
        n = moments.count.sum()
        square = float((moments.m2 + moments.count * moments.mean**2).sum() / n)
        mean = float((moments.count * moments.mean).sum() / n)
        rms, sd = square**0.5, max(0.0, square - mean * mean) ** 0.5
        severity = graded(rms, self.large) or ("warning" if 0 < rms < self.small else None)
        if severity is None:
            return None
        large = rms >= self.large[0]
        message = (
            f"the model's input at '{site.label}' has an RMS of {number(rms)} (mean {number(mean)}, SD {number(sd)}, "
            f"n = {int(n):,} values of {plural(moments.channels, 'channel')}); about 1 is what initialisations assume"
        )
        strength = rms / self.large[0] if large else self.small / rms
        evidence = (Reading("input-rms", site, step, rms, Unit.ACTIVATION, int(n)),)
        return Finding(self.name, severity, (site,), message, evidence, self.treatments, strength=strength)

    def _offset(
        self, site: Site, step: int, moments: ChannelMoments, varies: Bool[ndarray, channels]
    ) -> Finding | None:
        offsets: Float64[ndarray, varying] = np.abs(moments.mean[varies]) / moments.sd[varies]
        far = offsets > self.offset
        if 2 * far.sum() <= len(offsets):
            return None
        worst = float(np.median(offsets))
        message = (
            f"{int(far.sum())} of {plural(len(offsets), 'channel')} of the model's input at '{site.label}' lie more "
            f"than {number(self.offset)} SD from zero (median {number(worst)} SD, "
            f"n = {int(moments.count.max()):,} values)"
        )
        evidence = (Reading("input-offset", site, step, worst, Unit.RATIO, int(moments.count.max())),)
        return Finding(self.name, "warning", (site,), message, evidence, self.treatments, strength=worst / self.offset)

    def _scales(
        self, site: Site, step: int, moments: ChannelMoments, varies: Bool[ndarray, channels]
    ) -> Finding | None:
        often = varies & (moments.count - moments.zeros >= self.seldom * moments.count)
        often &= moments.count >= self.values_needed
        if often.sum() < 2:
            return None
        kept = np.flatnonzero(often)
        order = kept[np.argsort(moments.sd[kept])]
        widest, middle = int(order[-1]), int(order[(len(order) - 1) // 2])
        wide, typical = float(moments.sd[widest]), float(moments.sd[middle])
        ratio = wide / typical
        severity = graded(ratio, self.ratio)
        if severity is None:
            return None
        message = (
            f"features of the model's input at '{site.label}' are on different scales: channel {widest} has an SD of "
            f"{number(wide)}, the median of {plural(len(order), 'channel')} (channel {middle}) one of "
            f"{number(typical)}, a ratio of {number(ratio)} (n = {int(moments.count.max()):,} values a channel)"
        )
        evidence = (Reading("input-scale-ratio", site, step, ratio, Unit.RATIO, int(moments.count.max())),)
        return Finding(self.name, severity, (site,), message, evidence, self.treatments, strength=ratio / self.ratio[0])
