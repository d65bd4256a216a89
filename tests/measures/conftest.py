from __future__ import annotations

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor

from holdfast.core.site import Site
from holdfast.stats.features import Features
from holdfast.stats.observation import observe


@pytest.fixture
def site() -> Site:
    return Site("fc", "input")


@pytest.fixture
def features_of() -> Callable[[Tensor], Features]:
    """Features of a tensor `(samples, channels)` or `(samples, channels, positions)`."""

    def build(values: Tensor) -> Features:
        block = values.float()
        return observe(block.unsqueeze(2) if block.ndim == 2 else block).features

    return build


@pytest.fixture
def in_unit() -> Callable[[Tensor], Features]:
    """Features whose reference SD is exactly 1, so that a shift of the values is a shift in reference SD."""

    def build(values: Tensor) -> Features:
        channels = values.shape[1]
        return Features(values.float(), torch.ones(channels).double(), torch.zeros(channels).double(), 1.0)

    return build


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """For loops over thousands of readings: the shape checks, made everywhere else, would take most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
