"""`DomainBatchNorm`: BatchNorm with statistics of its own for each domain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.normaliser import HALVES, Normaliser, in_type
from holdfast.norms.running import check_momentum
from holdfast.norms.running_rows import TrackedRows
from holdfast.norms.spec import NormSpec, affine_of


class DomainBatchNorm(Normaliser, TrackedRows, nn.Module):
    r"""BatchNorm in which a sample meets only samples of its own domain.

    In training y = γ · (x − μ_d) / √(σ²_d + ε) + β, with the mean and the biased variance of a channel over the
    samples of domain d in the batch and all positions; in evaluation with the running ones of d, as BatchNorm's.

    What it does:
        Keeps `domains` sets of running statistics, and normalises every sample by those of its own. γ and β are
        shared, so that all domains meet in the same units; or each domain has its own.

    Why it matters:
        In a batch of photographs and sketches, BatchNorm's moments are those of a mixture that no sample comes from.
        A trained network is carried to a new domain by its statistics alone: forward its unlabelled data, and no
        weight moves.

    When it is wrong:
        Where the domain of a sample is not known in evaluation. With few samples of a domain in a batch the
        statistics are noise. Where the classes differ in number between domains, equal moments pull unlike things
        together. γ and β of each domain (`own_affine`) need labels, or a loss, in each.

    Example:
        >>> norm = DomainBatchNorm(1, domains=2, affine=False)
        >>> x = torch.tensor([[0.0], [2.0], [100.0], [300.0]])
        >>> norm(x, torch.tensor([0, 0, 1, 1])).round(decimals=3).flatten()
        tensor([-1.,  1., -1.,  1.])
        >>> (norm.running_mean / norm.momentum).flatten()
        tensor([  1., 200.])

    What to do:
        `norm(x, domain=1)` for a batch of one domain, `norm(x, labels)` for a mixed one. Where a model's forward does
        not pass the label on: `with in_domain(model, 1): model(x)`, which sets all its layers (`norm.domain(1)` sets
        one). With activation checkpointing the backward belongs inside too.

    Args:
        num_features: channels, on axis 1 of the input.
        domains: how many there are; their labels are 0 to `domains` − 1.
        eps: ε, added to the variance.
        momentum: m, of the running statistics; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: without it, evaluation uses the statistics of its batch.
        own_affine: whether each domain has a γ and a β of its own.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: fewer than 1 channel or domain, m outside [0, 1], or ε below 0.

    References:
        Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, 2016, arXiv:1603.04779.
        Chang et al., Domain-Specific Batch Normalization for Unsupervised Domain Adaptation, 2019, arXiv:1906.03950
        (`own_affine`).
    """

    _domain: int | Tensor | None = None

    def __init__(
        self,
        num_features: int,
        domains: int = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        own_affine: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum, eps)
        if num_features < 1 or domains < 1:
            raise InputError("1 channel and 1 domain or more", f"{num_features} and {domains}", "type: domains=2")
        self.num_features, self.domains, self.eps, self.momentum = num_features, domains, eps, momentum
        self.track_running_stats = track_running_stats
        kind = {"device": device, "dtype": dtype}
        shape = (domains, num_features) if own_affine else (num_features,)
        self.weight = nn.Parameter(torch.ones(shape, **kind)) if affine else None
        self.bias = nn.Parameter(torch.zeros(shape, **kind)) if affine else None
        self._register_rows(domains, num_features, device, track_running_stats)

    def reset_parameters(self) -> None:
        """As the constructor left it."""
        for each, start in ((self.weight, 1.0), (self.bias, 0.0)):
            if each is not None:
                nn.init.constant_(each, start)
        self.reset_running_stats()

    @property
    def spec(self) -> NormSpec:
        """What is computed, of the samples of one domain."""
        return NormSpec("domain-batch", ("samples", "positions"), affine=affine_of(self.weight), state="running")

    def domain(self, label: Any) -> AbstractContextManager[None]:
        """Within it, inputs that come without a label are of this domain.

        Args:
            label: as in `forward`.

        Returns:
            A context manager.

        Raises:
            InputError: a domain that there is not.
        """
        return in_domain(self, label)

    def forward(self, x: Shaped[Tensor, "*shape"], domain: Any = None) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.
            domain: the label of the batch, or labels `(batch,)`; `None` within `in_domain`.

        Returns:
            The same shape, type and layout; halves are computed in float32.

        Raises:
            InputError: no domain or one that there is not, other axes or channels, no floating type, or (by the
                statistics of the batch) one value a channel in a domain.
        """
        if x.dim() < 2:
            raise InputError("at least 2 axes", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
        check_channels(x, self.num_features, "DomainBatchNorm")
        label = self._label(self._domain if domain is None else domain, x)
        if x.numel() == 0:
            return self._scaled(x, label)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            wide = x.float() if x.dtype in HALVES else x
            mean, variance = (self._of(each, label, wide) for each in (self.running_mean, self.running_var))
            return self._scaled((wide - mean) * (variance + self.eps).rsqrt(), label).to(x.dtype)
        return self._one(x, label) if isinstance(label, int) else self._mixed(x, label)

    def _one(self, x: Tensor, label: int) -> Tensor:
        """A batch of one domain is a batch of BatchNorm."""
        count = x.numel() // x.shape[1]
        if count < 2:
            raise _lone(x)
        weight, bias = (each if each is None or each.dim() == 1 else each[label] for each in (self.weight, self.bias))
        y, kept = self._over_channels(x, weight, bias, self.eps, Channels(x.shape[1], (0, len(x))))
        if self.training and self.track_running_stats:
            mean, variance = kept.moments()
            self._track_rows(slice(label, label + 1), mean, variance, mean.new_full((1,), count))
        return y

    def _mixed(self, x: Tensor, labels: Int[Tensor, " batch"]) -> Tensor:
        wide = x.float() if x.dtype in HALVES else x
        samples = torch.zeros(self.domains, dtype=wide.dtype, device=x.device)
        counts = samples.index_add(0, labels, samples.new_ones(len(x))) * x[0, 0].numel()
        if not torch.compiler.is_compiling() and bool((counts == 1).any()):
            raise _lone(x)
        mean = self._averaged(wide, labels, counts)
        away = wide - self._of(mean, labels, wide)
        variance = self._averaged(away.square(), labels, counts)
        if self.training:
            self._note(self._keeping(), mean, variance)
            self._track_rows(slice(None), mean, variance, counts)
        return self._scaled(away * (self._of(variance, labels, wide) + self.eps).rsqrt(), labels).to(x.dtype)

    def _averaged(self, values: Tensor, labels: Tensor, counts: Tensor) -> Float[Tensor, "domains channels"]:
        """The mean of each channel over the samples of each domain; 0 where there are none."""
        sums = values.flatten(2).sum(2) if values.dim() > 2 else values
        joined = torch.zeros(self.domains, self.num_features, dtype=values.dtype, device=values.device)
        return joined.index_add(0, labels, sums) / counts.clamp(min=1).unsqueeze(1)

    def _of(self, rows: Tensor, label: int | Tensor, x: Tensor) -> Tensor:
        """The row of each sample, where it meets x."""
        return rows[label].to(x.dtype).view((-1, self.num_features) + (1,) * (x.dim() - 2))

    def _scaled(self, y: Tensor, label: int | Tensor) -> Tensor:
        weight, bias = in_type(self.weight, y), in_type(self.bias, y)
        shape = (1, -1) + (1,) * (y.dim() - 2)
        if weight is not None:
            y = y * (weight.view(shape) if weight.dim() == 1 else self._of(weight, label, y))
        if bias is not None:
            y = y + (bias.view(shape) if bias.dim() == 1 else self._of(bias, label, y))
        return y

    def _label(self, domain: Any, x: Tensor) -> int | Tensor:
        if domain is None:
            raise InputError("the domain of the batch", "none", "type: norm(x, domain=0), or with norm.domain(0)")
        if isinstance(domain, Tensor) and domain.dim() == 1 and len(domain) != len(x):
            raise InputError(f"{len(x)} labels, one a sample", f"{len(domain)}", "type: norm(x, labels)")
        return self._known(domain)

    def _known(self, domain: Any) -> int | Tensor:
        """A domain that there is: an int, or labels of int64."""
        labels = f"0 to {self.domains - 1}"
        if isinstance(domain, Tensor) and domain.dim() == 1 and domain.dtype in (torch.int64, torch.int32):
            if not torch.compiler.is_compiling() and not domain.is_meta and len(domain):
                low, high = int(domain.min()), int(domain.max())
                if low < 0 or high >= self.domains:
                    got = f"labels from {low} to {high}"
                    raise InputError(f"domains of {labels}", got, f"type: DomainBatchNorm({self.num_features}, 8)")
            return domain.long()
        if isinstance(domain, (Tensor, bool)) or not isinstance(domain, (int, torch.SymInt)):
            got = f"{domain.dtype} of shape {tuple(domain.shape)}" if isinstance(domain, Tensor) else repr(domain)
            raise InputError("an int, or a LongTensor (batch,) of labels", got, "type: norm(x, domain=0)")
        if not 0 <= domain < self.domains:
            fix = f"type: DomainBatchNorm({self.num_features}, {max(domain + 1, 1)})"
            raise InputError(f"domains of {labels}", f"domain={domain}", fix)
        return int(domain)

    def __getstate__(self) -> dict[str, Any]:
        return {name: each for name, each in super().__getstate__().items() if name != "_domain"}

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, domains={self.domains}, eps={self.eps}, momentum={self.momentum}"


@contextmanager
def in_domain(model: nn.Module, label: Any) -> Iterator[None]:
    """Within it, inputs of a model's DomainBatchNorms that come without a label are of this domain.

    Args:
        model: with such layers; or one of them.
        label: an int, or labels `(batch,)`.

    Raises:
        InputError: the model has no such layer, or a layer does not have the domain.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), DomainBatchNorm(3, domains=4))
        >>> with in_domain(model, 3):
        ...     model(torch.randn(8, 2)).shape
        torch.Size([8, 3])
        >>> model[1].num_batches_tracked
        tensor([0, 0, 0, 1])
    """
    layers = [each for each in model.modules() if isinstance(each, DomainBatchNorm)]
    if not layers:
        got = f"a {type(model).__name__} without"
        raise InputError("a model with a DomainBatchNorm", got, "type: from holdfast.norms import DomainBatchNorm")
    before = [layer._domain for layer in layers]
    given = [layer._known(label) for layer in layers]
    try:
        for layer, each in zip(layers, given, strict=True):
            layer._domain = each
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._domain = old


def _lone(x: Tensor) -> InputError:
    return InputError(
        "more than 1 value per channel in each domain when training",
        f"an input of shape {tuple(x.shape)}",
        "take batches with 2 samples of a domain or none",
    )
