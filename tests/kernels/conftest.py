"""Hard blocks, and the compiled kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from holdfast.kernels import compiler

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INF, NAN = float("inf"), float("nan")

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "samples innermost": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "every other position": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "every other sample": lambda x: x.repeat_interleave(2, 0)[::2],
    "offset": lambda x: torch.cat([x[:1] + 7, x])[1:],
    "same for all positions": lambda x: x[:, :, :1].expand(-1, -1, 6),
    "same for all samples": lambda x: x[:1].expand(5, -1, -1),
    "same for all channels": lambda x: x[:, :1].expand(-1, 9, -1),
    "one value": lambda x: x.flatten()[0].expand(4, 3, 5),
}


def _with_odd_ones(x: Tensor) -> Tensor:
    flat = x.flatten()
    flat[::7], flat[1::11], flat[2::13], flat[3::5] = NAN, INF, -INF, 0.0
    return flat.view_as(x)


def _dead_channel(x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    x[:, -1] = NAN
    return x


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "far from zero": lambda x: x + 2000,
    "narrow and far from zero": lambda x: x * 0.01 + 100,
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
    "subnormal": lambda x: x * 2.0**-140,
    "sparse": lambda x: x.relu(),
    "negative zeros": lambda x: x.relu() * -1,
    "a trend": lambda x: x + torch.linspace(-9, 9, x.numel()).view_as(x),
    "constant": lambda x: x * 0 + 0.1,
    "one far out": lambda x: torch.where(torch.arange(x.numel()).view_as(x) == 0, 1e20, x),
    "NaN and infinities": _with_odd_ones,
    "dead and NaN channels": _dead_channel,
    "only NaN": lambda x: x * NAN,
    "only infinities": lambda x: x.sign() * INF,
}

# Around the kernel's tile of 1,024: rows shorter, longer, many to a tile, one in pieces; both orders of rows.
SHAPES = ((64, 33, 1), (7, 9, 5), (3, 4, 1500), (2, 1300, 3), (1, 1, 1), (2050, 1, 1), (5, 8, 8))


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return LAYOUTS[request.param]


@pytest.fixture(params=HARD)
def hard(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return HARD[request.param]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


@pytest.fixture(scope="session")
def kernel() -> int:
    assert compiler.wait(240.0), compiler.state()
    found = compiler.kernel()
    assert found is not None
    return found
