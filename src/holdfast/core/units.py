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
    PER_SQUARED_NORM = "per squared L2 norm"
    """A learning rate over the squared Euclidean norm of what it moves."""
    ANGLE = "radians"
    """Between two directions."""
    COSINE = "cosine"
    """Of the angle between two directions, from −1 to 1."""
    ACTIVATION = "activation"
    """The tensor's own unit."""
    LOSS = "loss"
    """The unit of the user's loss."""
    COUNT = "count"
    STEPS = "steps"
    SETTING = "setting"
    """A number as the user set it, without a unit."""
