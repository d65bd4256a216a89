"""Shapes in annotations are checked while tests run: jaxtyping's import hook, before anything of ours is imported."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from beartype._check.code import codemain
from jaxtyping import install_import_hook

# Beartype picks the element of a list that it checks by Python's global generator, which tests of ours ask about.
codemain.getrandbits = random.Random(0).getrandbits

_PACKAGE = Path(__file__).parents[1] / "src" / "holdfast"

# Numba compiles `*_cpu` functions, Dynamo traces hooks: not with a type-checking wrapper around them.
install_import_hook(
    [
        "holdfast." + ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)
        for path in _PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and not path.stem.endswith("_cpu") and path.stem not in ("hooks", "traced")
    ],
    "beartype.beartype",
)


collect_ignore = ["scripts"]  # scripts that tests run, as users run theirs


def pytest_runtest_setup() -> None:
    """Each test starts from the same random numbers, whichever ran before it in its process."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """For loops over thousands of readings, where checks would take most of the time, and for a user's own types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def record() -> Iterator[Callable[..., Any]]:
    """`record(model, optimizer, …)`: a watch that records into memory; whatever a test leaves open is closed."""
    from holdfast.monitor.watch import Watch
    from holdfast.store.memory import MemoryRun

    class Recording:
        def __init__(self, model: Any, optimizer: Any, **options: Any) -> None:
            self.run = MemoryRun()
            options = {"every": 1, "strict": True, **options}
            self.watch = Watch(model, optimizer, lambda: self.run, name="test", **options)

        def close(self) -> MemoryRun:
            self.watch.close()
            return self.run

    opened: list[Recording] = []

    def start(model: Any, optimizer: Any, **options: Any) -> Recording:
        opened.append(Recording(model, optimizer, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.watch.close()
