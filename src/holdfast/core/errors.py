"""What Holdfast raises: each error says what was expected, what came, and what to type."""


class HoldfastError(Exception):
    """A mistake that the user can mend.

    Args:
        expected: what the call needs, as a noun phrase.
        got: what it received.
        fix: the line to type, or the one thing to do.

    Example:
        >>> str(HoldfastError("a run folder", "'runs/x', which does not exist", "type: holdfast demo"))
        "expected a run folder; got 'runs/x', which does not exist; type: holdfast demo"
    """

    def __init__(self, expected: str, got: str, fix: str) -> None:
        super().__init__(expected, got, fix)
        self.expected = expected
        self.got = got
        self.fix = fix

    def __str__(self) -> str:
        return f"expected {self.expected}; got {self.got}; {self.fix}"


class InputError(HoldfastError, ValueError):
    """An argument, a file of data or a shape is not what the call can use."""


class RunError(HoldfastError):
    """A run folder cannot be written or read: missing, empty, of another schema, damaged."""


class WatchError(HoldfastError):
    """A model cannot be watched as asked: watched already, or not the optimiser's."""


class StatisticError(HoldfastError, ValueError):
    """Two statistics cannot be merged, or too little data was given for one."""


class SurgeryError(HoldfastError):
    """A change to a live model was refused; nothing was changed."""
