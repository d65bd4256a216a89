"""Holdfast: watches a PyTorch network in training, measures covariate shift with its noise, and says what to do."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # families, to pick from
    from holdfast import measures as measures
    from holdfast import norms as norms

    # the loop
    from holdfast.api import LiveRun as LiveRun
    from holdfast.api import Run as Run
    from holdfast.api import diagnose as diagnose
    from holdfast.api import explain as explain
    from holdfast.api import prescribe as prescribe
    from holdfast.api import watch as watch
    from holdfast.clinic.convert import convert as convert
    from holdfast.clinic.cure import cure as cure
    from holdfast.clinic.preflight import preflight as preflight
    from holdfast.clinic.prove import prove as prove

    # errors
    from holdfast.core.errors import HoldfastError as HoldfastError

__all__ = [
    "HoldfastError",
    "LiveRun",
    "Run",
    "convert",
    "cure",
    "diagnose",
    "explain",
    "preflight",
    "prescribe",
    "prove",
    "watch",
]
__version__ = "0.1.0"

_FAMILIES = ("measures", "norms")
_ELSEWHERE = {
    "HoldfastError": "core.errors",
    "convert": "clinic.convert",
    "cure": "clinic.cure",
    "preflight": "clinic.preflight",
    "prove": "clinic.prove",
}
"""Public names that are not the facade's, and where they are."""


def __getattr__(name: str) -> Any:
    """Load the facade, and PyTorch with it, when somebody first asks for a part of it (`holdfast --help` does not)."""
    if name in _FAMILIES:
        return import_module(f"holdfast.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(f"holdfast.{_ELSEWHERE.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_FAMILIES]
