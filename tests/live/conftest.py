"""Networks that have what makes a replay hard."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Residual(nn.Module):
    """A ResNet block with functional ReLU and an in-place residual add."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Residual(4), Residual(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Stateful(nn.Module):
    """State of every kind that a forward can write: buffers in place and by assignment, shared, overlapping, plain."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("memory", torch.zeros(4, 8))
        self.register_buffer("memory_tail", self.memory[2:])  # shares memory's storage
        self.register_buffer("nothing", None)
        self.plain = torch.zeros(8)
        self.calls = 0
        self.history: list[float] = []
        self.cache: dict[str, Any] = {"last": None}
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
        self.count += 1
        self.memory.add_(y.detach().mean())
        self.plain.mul_(0.5).add_(1)
        self.calls += 1
        self.history.append(float(y.detach().mean()))
        self.cache["last"] = y
        self.modes.add(self.training)
        self.fresh = y
        return y + self.memory_tail.sum() + self.average


class Hard(nn.Module):
    """BatchNorm, Dropout, in-place ReLU, spectral norm, and every kind of state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            spectral_norm(nn.Linear(6, 8)),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
        )
        self.state = Stateful()
        self.norm = nn.BatchNorm1d(8, momentum=None)
        self.norm.running_mean = self.body[1].running_mean  # one buffer, two owners
        self.head = nn.Linear(8, 3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.state(self.body(x)))
        x = x + torch.rand_like(x)
        if self.fail:
            raise RuntimeError("planted")
        return self.frozen(self.head(x))


@pytest.fixture
def hard() -> nn.Module:
    return Hard()


@pytest.fixture
def small_resnet() -> nn.Module:
    return SmallResNet()


@pytest.fixture
def everything() -> Callable[[nn.Module], dict[str, Any]]:
    """All that a replay must leave as it is, bit for bit and object for object."""

    def collect(model: nn.Module) -> dict[str, Any]:
        found: dict[str, Any] = {
            "random": torch.get_rng_state().tolist(),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
            "autocast cache": torch.is_autocast_cache_enabled(),
            "grad mode": torch.is_grad_enabled(),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
        }
        for name, parameter in model.named_parameters():
            gradient = None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
            found[f"parameter {name}"] = (id(parameter), parameter._version, parameter.tolist(), gradient)
        for name, module in model.named_modules():
            found[f"buffers {name}"] = [
                (key, None) if value is None else (key, id(value), value._version, value.tolist())
                for key, value in module._buffers.items()
            ]
            found[f"persistence {name}"] = set(module._non_persistent_buffers_set)
            for key, value in module.__dict__.items():
                if isinstance(value, Tensor):
                    found[f"{name}.{key}"] = (id(value), value._version, value.tolist())
                elif isinstance(value, list | dict | set) and not key.startswith("_"):
                    found[f"{name}.{key}"] = (id(value), str(value))
                elif isinstance(value, bool | int | float | str | None):
                    found[f"{name}.{key}"] = value
            found[f"keys {name}"] = list(module.__dict__)
        return found

    return collect
