"""The units in which readings are given."""

from enum import StrEnum


class Unit(StrEnum):
    """The unit of a reading, as a person reads it."""

    REFERENCE_SD = "reference SD"
    """Standard deviations of the feature's activation at the reference time."""
    LOG_RATIO = "nats"
    """Natural logarithm of a ratio."""
    FRACTION = "fraction"
    """Between 0 and 1."""
    RATIO = "ratio"
    """One figure over another of the same unit."""
    PER_LAYER = "per layer"
    """Slope of a natural logarithm over depth, one layer a step."""
    NORM = "L2 norm"
    """Euclidean norm, in the tensor's own unit."""
    ACTIVATION = "activation"
    """The tensor's own unit."""
    KERNEL = "kernel value"
    """Of a kernel that is 1 between equal points and falls to 0."""
    LOSS = "loss"
    """The unit of the user's loss."""
    COUNT = "count"
    STEPS = "steps"
    SETTING = "setting"
    """A number as the user set it, without a unit."""
