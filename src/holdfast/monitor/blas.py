"""NumPy's products on one thread, for measures that are worked out between the passes of a training.

NumPy's BLAS has threads of its own, which go on turning for work after each product. PyTorch's do the same: the two
sets take the cores from each other, and a probe lasts twice as long, for products that one thread does in 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _libraries() -> Any:
    """Those loaded now; looking for them takes milliseconds."""
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController().select(internal_api=["openblas", "blis"])


def on_one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Let NumPy's products within a function take one thread, and give it back its own afterwards.

    OpenBLAS and BLIS only: MKL's threads are PyTorch's.

    Args:
        function: any.

    Returns:
        One that does the same.
    """

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with _libraries().limit(limits=1):
            return function(*args, **kwargs)

    return limited
