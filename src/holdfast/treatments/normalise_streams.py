"""`normalise-streams`: streams of unequal scale brought to one scale before they meet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.merges import Merges, Operand
from holdfast.live.surgery import check_model, one_line, operate
from holdfast.norms.layer_norm import LayerNorm2d
from holdfast.norms.scale_norm import ScaleNorm
from holdfast.treatments.branches import followed
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.incoming import FEWEST
from holdfast.treatments.insert_norm import FIRST_LINES, Norm, check_kind
from holdfast.treatments.left import why_nothing
from holdfast.treatments.places import expression, named, paths_of
from holdfast.treatments.streams import Meeting, Tap, meetings, tap

_PER_SAMPLE = (nn.RNNBase, nn.MultiheadAttention, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, LayerNorm2d, ScaleNorm)


@dataclass(frozen=True, slots=True, eq=False)
class NormaliseStreams:
    """Puts a normaliser on each stream before streams of unequal scale are added or concatenated.

    What it does:
        On one batch it finds where a model adds or concatenates streams, none of which is the shortcut of another,
        and measures each stream's root mean square. Where the largest is more than `factor` times the smallest, the
        last layer of each stream becomes `nn.Sequential(layer=the layer itself, norm=…)`, so that all meet with unit
        variance and the training then weighs them by γ. A stream whose layer cannot be wrapped may stay as it is if
        its RMS is within `factor` of 1. The state_dict changes: `wide.weight` becomes `wide.layer.weight`, and
        `wide.norm.…` is new; the receipt lists every key.

    When it helps:
        When one stream drowns the other: of two streams added, the one that is r times smaller brings 1/(1 + r²) of
        the variance, 10 % at r = 3 and 1 % at r = 10, and its layers get that little of the say and of the gradient.
        Typical: raw features beside embeddings, a deep tower beside a wide one, two sensors or modalities.

    When it is wrong:
        On a trained network: it changes the function (a fresh BatchNorm little in eval mode, until it has seen training
        batches). When the unequal scale is meant: a correction added to a main signal, positions added to tokens,
        gates. A stream of noise is raised to the level of the signal. Streams that hardly vary over the batch cannot
        be lifted by a normaliser with ε = 1e-5, and are refused: their trouble lies further up. For the model's raw
        input scale the data instead (`scale-input`). Residual additions are `scale-residual`'s business.

    Example:
        >>> import torch
        >>> class Fused(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(5, 1)
        ...     def forward(self, x):
        ...         return self.head(torch.cat([self.a(x), self.b(100 * x)], dim=1))
        >>> model = Fused()
        >>> print(NormaliseStreams(batch=torch.randn(64, 4)).plan(model, None).source)
        from collections import OrderedDict
        # before the optimiser is made: it steps the new norms too
        model.a = nn.Sequential(OrderedDict(layer=model.a, norm=nn.BatchNorm1d(3)))
        model.b = nn.Sequential(OrderedDict(layer=model.b, norm=nn.BatchNorm1d(2)))

    Args:
        kind: `"batch"`; `"layer"`, which for convolutions is a GroupNorm of one group; or `"auto"`: batch statistics,
            except for sequences, below 8 samples, and in models that normalise each sample already.
        factor: the ratio of the largest RMS to the smallest up to which streams count as balanced.
        batch: what the model is called with; without it the streams are not known.

    References:
        Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
        Wang, Tran and Feiszli, What makes training multi-modal classification networks hard?, 2019, arXiv:1905.12681.
    """

    name = "normalise-streams"

    kind: Any = "auto"
    factor: float = 3.0
    batch: Batch | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that does not exist.

        Raises:
            InputError: it is unknown.
        """
        check_kind(self.kind)

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which streams are normalised, and how.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: only streams that meet in these modules, come through them or go into them together; all when none
                is named.

        Returns:
            The plan; its diff also names the streams left alone, and why.

        Raises:
            InputError: the factor is not above 1.
            SurgeryError: there is no batch, nothing is out of balance, a stream that is cannot be normalised, or the
                model cannot be operated on.
        """
        if not self.factor > 1:
            raise InputError("a factor above 1", repr(self.factor), "give factor=3.0, say")
        if self.batch is None:
            raise SurgeryError(
                "a batch, on which streams can be seen to meet", "none", "type: NormaliseStreams(batch=inputs)"
            )
        check_model(model)
        merges = followed(model, self.batch)
        paths = [path for path, _ in named(model, sites)]
        norms: dict[str, Norm] = {}
        diff: list[str] = []
        for meeting in meetings(model, merges):
            if _concerns(meeting, paths):
                found, lines = self._balance(model, merges, meeting)
                norms |= found
                diff += lines
        if not norms:
            raise SurgeryError(
                f"streams whose RMS differ by more than a factor of {self.factor:g} before they meet",
                why_nothing(diff) or "none that meet" + (" there" if paths else " on the batch"),
                "leave them as they are",
            )
        modules = dict(model.named_modules())
        by_identity = {id(modules[path]): norm for path, norm in norms.items()}

        def change() -> Change:
            surgery = operate(
                model,
                optimizer,
                lambda module, _: _wrapped(by_identity[id(module)], module) if id(module) in by_identity else None,
            )
            if len(surgery.replacements) != len(norms):
                surgery.undo()
                raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
            return Change(surgery.changes, surgery.undo, surgery.renamed)

        source = "\n".join([FIRST_LINES, *(_line(model, modules[path], norm) for path, norm in norms.items())])
        return planned(
            self.name, model, change, diff="\n".join(diff), source=source, batch=self.batch, optimizer=optimizer
        )

    def _balance(self, model: nn.Module, merges: Merges, meeting: Meeting) -> tuple[dict[str, Norm], list[str]]:
        """The norms by the path of the layer in front of them, and the lines of the diff."""
        where = f"{'added' if meeting.kind == 'add' else 'concatenated'} in {meeting.owner or 'the model'}"
        sizes = ", ".join(f"{stream.rms:.3g}" for stream in meeting.streams)
        if meeting.ratio <= self.factor:
            return {}, [f"  the streams {where} are balanced: RMS {sizes}"]
        modules = dict(model.named_modules())
        norms: dict[str, Norm] = {}
        lines = []
        for stream in meeting.streams:
            found = tap(model, merges, stream)
            norm = found if isinstance(found, str) else self._norm(model, found, stream, meeting)
            if not isinstance(norm, str) and not isinstance(found, str):
                norms[found.leaf] = norm
                module = modules[found.leaf]
                lines.append(f"- {found.leaf}: {one_line(module)}, RMS {stream.rms:.3g} where it is {where}")
                lines.append(f"+ {found.leaf}: {one_line(_wrapped(norm, module))}")
            elif 1 / self.factor <= stream.rms <= self.factor:
                lines.append(f"  a stream of RMS {stream.rms:.3g} {where}: left as it is: {norm}")
            else:
                return {}, [f"  the streams {where} (RMS {sizes}): left as they are: {norm}"]
        return norms, lines

    def _norm(self, model: nn.Module, found: Tap, stream: Operand, meeting: Meeting) -> Norm | str:
        """The norm behind a layer, or the reason why there is none."""
        eps = nn.BatchNorm1d(1).eps
        if stream.spread < eps**0.5:
            return f"what {found.leaf} gives has an SD over the batch of {stream.spread:.2g}, below √ε = {eps**0.5:.2g}"
        # positions that are added to tokens are a sequence without a batch axis
        sequence = found.features_last and any(len(each.shape) > 2 for each in meeting.streams)
        few = found.shape[0] < FEWEST or any(isinstance(module, _PER_SAMPLE) for module in model.modules())
        per_sample = self.kind == "layer" or (self.kind == "auto" and (few or sequence))
        if not per_sample:
            if sequence:
                return f"BatchNorm1d would take the sequence of {found.leaf} for the features"
            return Norm(f"BatchNorm{max(1, len(found.shape) - 2)}d", (found.width,))
        if found.features_last and found.width < 2:
            return f"what {found.leaf} gives has one feature only, of which a sample has no variance"
        return Norm("LayerNorm", (found.width,)) if found.features_last else Norm("GroupNorm", (1, found.width))


def _wrapped(norm: Norm, module: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layer=module, norm=norm.make()))


def _line(model: nn.Module, module: nn.Module, norm: Norm) -> str:
    places = [expression(model, each) for each in paths_of(model, module)]
    return f"{' = '.join(places)} = nn.Sequential(OrderedDict(layer={places[0]}, norm={norm}))"


def _concerns(meeting: Meeting, paths: Sequence[str]) -> bool:
    """Whether streams meet in one of the modules, come through one or go into one; true when none is named."""
    own = {meeting.owner, *meeting.into}
    own |= {value.leaf for stream in meeting.streams for value in stream.value.ancestors()}
    return not paths or any(not path or each == path or each.startswith(f"{path}.") for path in paths for each in own)
