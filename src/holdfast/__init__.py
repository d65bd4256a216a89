"""Holdfast: watches a PyTorch network in training, measures covariate shift with its noise, says what to do about it."""

# the loop
from holdfast.api import LiveRun as LiveRun
from holdfast.api import Run as Run
from holdfast.api import diagnose as diagnose
from holdfast.api import explain as explain
from holdfast.api import preflight as preflight
from holdfast.api import watch as watch

# errors
from holdfast.core.errors import HoldfastError as HoldfastError

__version__ = "0.1.0"
