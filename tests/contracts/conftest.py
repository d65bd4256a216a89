"""The family of normalisers, member by member: what each needs to be called, and what torch or a paper says of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.make import MAKERS, make
from holdfast.norms.running import Tracked

CHANNELS = 6
POSITIONS = {0: (), 1: (7,), 2: (5, 3), 3: (2, 3, 5)}
WIDE = {0: (), 1: (641,), 2: (31, 23), 3: (11, 7, 9)}  # with 13 samples above 32768 elements
BATCH = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
REFERENCE = torch.randn(7, CHANNELS, 3, generator=torch.Generator().manual_seed(1)) * 1.3 - 0.2
INSTANCE = (None, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def reference(layer: nn.Module, x: Tensor, running: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The formula of the layer's specification, with its parameters, in the type of x."""
    named = {name: each.to(x.dtype) for name, each in layer.named_parameters()}
    buffers = None if running is None else tuple(each.to(x.dtype) for each in running)
    eps = getattr(layer, "eps", 1e-5)
    return layer.spec.reference(x, named, torch.finfo(torch.float32).eps if eps is None else eps, buffers)


def gated(layer: nn.Module, x: Tensor, running: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The same of BatchLayerNorm, whose share follows the batch."""
    named = {name: each.to(x.dtype) for name, each in layer.named_parameters()}
    buffers = None if running is None else tuple(each.to(x.dtype) for each in running)
    named["gate"] = torch.tensor(layer.share(len(x)), dtype=x.dtype)
    return layer.spec.reference(x, named, eps=layer.eps, running=buffers)


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel."""
    cells = x.transpose(0, 1).flatten(1)
    return cells.mean(1), cells.var(1)


def moved(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same of a layer whose channels are the last axis."""
    return lambda layer, x, *more: call(layer, x.movedim(1, -1), *more).movedim(-1, 1)


def called(layer: nn.Module, x: Tensor) -> Tensor:
    """What most members need."""
    return layer(x)


def stepped(layer: nn.Module, x: Tensor, running: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The same of `(batch, time, channels)`, whose later steps share the last running statistics."""
    if running is not None and x.dim() == 3:
        rows = torch.arange(x.shape[1]).clamp(max=len(running[0]) - 1)
        running = (running[0][rows], running[1][rows])
    return reference(layer, x, running)


def referred(layer: nn.Module, x: Tensor) -> Tensor:
    """After a reference of its own, whatever x is."""
    if not torch.compiler.is_compiling() and x.numel() and not x.is_meta and not layer.reference_count:
        with torch.no_grad():
            layer.refer(REFERENCE.to(layer.reference_mean))
    return layer(x)


def among(layer: nn.Module, x: Tensor, running: object = None) -> Tensor:
    """Each sample by the statistics of the reference's cells and its own, laid side by side."""
    given = {name: each.to(x.dtype).view(-1, *[1] * (x.dim() - 2)) for name, each in layer.named_parameters()}
    cells = REFERENCE.to(x).transpose(0, 1).flatten(1).expand(len(x), CHANNELS, -1)
    cells = torch.cat([cells, x.reshape(len(x), CHANNELS, -1)], 2)
    shape = (len(x), CHANNELS, *[1] * (x.dim() - 2))
    rate = (cells.var(2, correction=0) + layer.eps).rsqrt()
    y = (x - cells.mean(2).view(shape)) * rate.view(shape)
    return y * given["weight"] + given["bias"] if given else y


def halved(layer: nn.Module, x: Tensor) -> Tensor:
    """Some samples as queries and the others as keys, which without γ are normalised alike."""
    return torch.cat(layer(x[: len(x) // 2], x[len(x) // 2 :]))


@dataclass(frozen=True)
class Tailored:
    """What a member needs that the defaults do not give. Each field says what it is for; leave out what fits."""

    dims: tuple[int, ...] = (0, 1, 2, 3)
    """Axes of positions it is made for; `make` or the call refuses the others."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the constructor, besides channels and dims."""
    call: Callable[[nn.Module, Tensor], Tensor] = called
    """How it is called with `(batch, channels, *positions)`, if it takes more; returns one tensor of x's shape."""
    reference: Callable[..., Tensor] = reference
    """The paper's formula in x's type: (layer, x, running or None)."""
    twin: Callable[..., nn.Module | None] = lambda dims, **settings: None
    """Torch's layer of the same settings, where it has one."""
    differs: tuple[str, ...] = ()
    """Settings whose defaults are meant to differ from the twin's."""
    statistics: Callable[[Tensor], tuple[Tensor, Tensor]] = pooled
    """Mean and unbiased variance that a batch x has for the running ones, as `seen` shows them."""
    seen: Callable[[Tensor, Tensor], Tensor] = lambda buffer, x: buffer
    """The part of a running buffer that an input x meets and moves."""
    untracked: bool = True
    """Whether `track_running_stats=False` is offered, of members that track."""
    summed: bool = False
    """Whether parameter gradients are torch's sums, whose last bits follow the number of threads."""
    shared: bool = False
    """Whether a statistic is shared by samples, so that one sample's output depends on the others."""
    invariant: str | None = None
    """To what it is blind: of "matrix", "vector", "shift" and "sample"; see test_norm_invariances."""
    statistics_kept: bool = True
    """Whether it has statistics to tell as telemetry."""
    lone: type[Exception] | None = None
    """What it raises in training where there is one value a channel, as torch's."""


def _batch(dims: int, **settings: Any) -> nn.Module:
    return BATCH[dims](CHANNELS, **settings)


_STANDARD = {"twin": _batch, "shared": True, "invariant": "matrix vector shift", "lone": ValueError}

TAILORED: dict[str, Tailored] = {
    "filter-response": Tailored(invariant="matrix vector sample"),
    "evo-b0": Tailored(shared=True, invariant="matrix vector"),
    "evo-s0": Tailored(settings={"groups": 2}, invariant=""),
    "dynamic-tanh": Tailored(statistics_kept=False, invariant=""),
    "batch": Tailored(**_STANDARD),
    "sync": Tailored(**_STANDARD),
    "ghost": Tailored(**_STANDARD),
    "renorm": Tailored(**_STANDARD, differs=("momentum",), untracked=False),
    "batch-layer": Tailored(reference=gated, summed=True, shared=True, invariant="matrix", untracked=False),
    "switchable": Tailored(summed=True, dims=(1, 2, 3), shared=True, invariant="matrix"),
    "instance": Tailored(
        dims=(1, 2, 3),
        twin=lambda dims, **settings: INSTANCE[dims](CHANNELS, **settings),
        statistics=lambda x: (pooled(x)[0], x.flatten(2).var(2).mean(0)),  # the average over samples
        invariant="matrix vector shift sample",
        lone=ValueError,
    ),
    "group": Tailored(
        settings={"groups": 2},
        twin=lambda dims, **settings: nn.GroupNorm(settings.pop("groups", 2), CHANNELS, **settings),
        invariant="matrix sample",
    ),
    "layer": Tailored(
        twin=lambda dims, **settings: None if dims else nn.LayerNorm(CHANNELS, **settings),
        invariant="matrix sample",
    ),
    "rms": Tailored(
        twin=lambda dims, **settings: None if dims else nn.RMSNorm(CHANNELS, **settings),
        invariant="matrix sample",
    ),
    "scale": Tailored(invariant="matrix sample"),
    "recurrent-batch": Tailored(
        dims=(0, 1),
        call=moved(called),
        reference=moved(stepped),
        statistics=lambda x: (x.mean(0).movedim(0, -1), x.var(0).movedim(0, -1)),  # of each time step
        settings={"max_steps": 641},
        seen=lambda buffer, x: buffer[: x.shape[2]] if x.dim() == 3 else buffer[0],
        shared=True,
        invariant="matrix vector shift",
    ),
    "domain-batch": Tailored(
        call=lambda layer, x: layer(x, 1),
        seen=lambda buffer, x: buffer[1],
        shared=True,
        invariant="matrix vector shift",
    ),
    "virtual-batch": Tailored(call=referred, reference=among, summed=True, invariant=""),
    "qk": Tailored(
        dims=(2,), settings={"affine": False}, call=moved(halved), reference=moved(reference), invariant="matrix sample"
    ),
}


@dataclass(frozen=True)
class Case:
    """One member at one number of position axes."""

    kind: str
    dims: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.dims}"

    @property
    def own(self) -> Tailored:
        """What is said of the member."""
        return TAILORED.get(self.kind, Tailored())

    def make(self, **settings: Any) -> nn.Module:
        """A fresh layer, its parameters away from ones and zeros."""
        layer = self.plain(**settings)
        for name, each in layer.named_parameters():
            if not each.is_meta:
                seed = sum(name.encode())
                noise = torch.randn(each.shape, generator=torch.Generator().manual_seed(seed))
                each.data += (0.3 * noise).to(each.dtype)
        return layer

    def plain(self, **settings: Any) -> nn.Module:
        """A fresh layer as its constructor leaves it."""
        try:
            return make(self.kind, CHANNELS, self.dims, **{**self.own.settings, **settings})
        except (TypeError, IndexError, InputError) as error:
            if self.kind in TAILORED and isinstance(error, InputError):
                raise
            text = f"make({self.kind!r}, {CHANNELS}, {self.dims}): {error}; add what it needs to TAILORED in {__file__}"
            pytest.fail(text)

    def twin(self, **settings: Any) -> nn.Module:
        """Torch's layer of the same settings."""
        found = self.own.twin(self.dims, **settings)
        assert found is not None
        return found

    def x(self, samples: int = 5, wide: bool = False, seed: int = 0) -> Tensor:
        """An input of odd sizes; wide ones have enough for several threads."""
        positions = (WIDE if wide else POSITIONS)[self.dims]
        if wide:
            samples = 13 if self.dims else 13 * 640
        draw = torch.randn(samples, CHANNELS, *positions, generator=torch.Generator().manual_seed(seed))
        return draw * 1.7 + 0.4

    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The output."""
        return self.own.call(layer, x)

    def reference(self, layer: nn.Module, x: Tensor, running: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What the formula says, in the type of x."""
        return self.own.reference(layer, x, running)

    def running(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Copies of the running statistics that an input meets, if there are any."""
        if getattr(layer, "running_mean", None) is None:
            return None
        mean, variance = (self.own.seen(each, x).clone() for each in (layer.running_mean, layer.running_var))
        return mean, variance

    def batches(self, layer: nn.Module, x: Tensor) -> Tensor:
        """How many batches like x have been counted."""
        return self.own.seen(layer.num_batches_tracked, x)

    @property
    def tracks(self) -> bool:
        """Whether it has running statistics, at least if it is asked for them."""
        return isinstance(self.plain(), Tracked) and bool(self.tracking)

    @property
    def tracking(self) -> dict[str, Any]:
        """The settings by which it does, `{}` where it never does."""
        layer = self.plain()
        if getattr(layer, "running_mean", None) is not None:
            return {"momentum": 0.1}
        takes = inspect.signature(type(layer)).parameters
        return {"momentum": 0.1, "track_running_stats": True} if "track_running_stats" in takes else {}

    def offers(self, setting: str) -> bool:
        """Whether the constructor has a setting."""
        return setting in inspect.signature(type(self.plain())).parameters


CASES = [Case(kind, dims) for kind in MAKERS for dims in TAILORED.get(kind, Tailored()).dims]

SELECTIONS: dict[str, Callable[[Case], bool]] = {
    "case": lambda case: True,
    "tracked": lambda case: case.tracks,
    "twinned": lambda case: case.own.twin(case.dims) is not None,
    "alone": lambda case: not case.own.shared,
}
"""By the name of a test's argument: the members it is for."""


def wanted_by(case: Case, name: str) -> bool:
    """Whether a member is selected; one that cannot be made is left to the tests of every case, which say so."""
    try:
        return SELECTIONS[name](case)
    except pytest.fail.Exception:
        return False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that has such an argument over the members it is for."""
    for name in SELECTIONS:
        if name in metafunc.fixturenames:
            cases = [case for case in CASES if wanted_by(case, name)]
            metafunc.parametrize(name, [hurried(case, name) for case in cases], ids=[str(case) for case in cases])


def hurried(case: Case, name: str) -> Any:
    """One and three axes of positions run the code of two: they are for the slow part, except against torch's layers.

    The whole grid has 5,000 tests, two minutes on one core; without these half of them.
    """
    slow = name != "twinned" and case.dims in (1, 3) and Case(case.kind, 2) in CASES
    return pytest.param(case, marks=pytest.mark.slow) if slow else case


@pytest.fixture(params=[False, True], ids=["small", "kernel"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Small tensors by whoever serves them; or wide ones, which the compiled kernels then take at any size."""
    if request.param:
        monkeypatch.setenv("HOLDFAST_KERNELS", "compiled")
    return request.param


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels, at any size."""
    monkeypatch.setenv("HOLDFAST_KERNELS", "compiled")


@pytest.fixture(scope="session")
def family() -> list[Case]:
    """Every member at every number of axes it is for."""
    return CASES
