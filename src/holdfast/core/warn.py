"""`warn_user`: a warning that never raises."""

import sys
import warnings


def warn_user(message: str) -> None:
    """Warn, and print to stderr where the user made errors of warnings: training must go on.

    Args:
        message: one sentence.
    """
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        print(message, file=sys.stderr)
