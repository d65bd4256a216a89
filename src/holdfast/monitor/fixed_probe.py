"""`FixedProbe`: one batch kept out of training, seen again at lags of 1, 10, 100 and 1,000 steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdfast.core.reading import Reading, lag_decade
from holdfast.core.site import Site
from holdfast.monitor.drift import paired_drift
from holdfast.stats.features import Features

LAGS = (1, 10, 100, 1000)

Forward = Callable[[], Mapping[Site, Features]]


class FixedProbe:
    """Holds how a fixed batch looked at earlier steps, and reads how far it has moved since.

    For each lag one earlier state is held. When a state is at least as old as its lag, the drift since is read
    under its true age, and the present takes its place. Nothing is extrapolated from one lag to another.

    Args:
        forward: runs the probe without side effects and gives the features by site.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._held: dict[int, tuple[int, Mapping[Site, Features]]] = {}

    def hold(self, step: int) -> None:
        """See the probe as it is after `step`, as the reference of what follows."""
        seen = self._forward()
        self._held[1] = (step, seen)
        for lag in LAGS[1:]:
            self._held.setdefault(lag, (step, seen))

    def forget(self) -> None:
        """Drop every state held: the model became another one."""
        self._held.clear()

    def holds(self, step: int) -> bool:
        """Whether the state after `step` is held for lag 1."""
        return 1 in self._held and self._held[1][0] == step

    def read(self, step: int) -> list[Reading]:
        """See the probe as it is after `step`, and read the drift since the states held.

        Args:
            step: the optimiser step just done.

        Returns:
            Readings at `@probe` sites, at every lag that has come due.
        """
        now = self._forward()
        readings: list[Reading] = []
        for lag in LAGS:
            since, then = self._held.get(lag, (step, now))
            age = step - since
            if age >= lag:
                if lag_decade(age) == lag:
                    readings += paired_drift(then, now, step=step, lag=age)
                self._held[lag] = (step, now)
            else:
                self._held.setdefault(lag, (step, now))
        return readings
