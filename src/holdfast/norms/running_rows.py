"""Running statistics of which there are several rows: one for each time step, or for each domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.norms.normaliser import recomputing
from holdfast.norms.running import Pool, Tracked


class TrackedRows(Tracked):
    """Mixed into a module whose running statistics have rows, each with a counter of its own.

    `running_mean` and `running_var` are `(rows, features)`, `num_batches_tracked` is `(rows,)`. A row moves as
    BatchNorm's statistics do, at every batch that has at least 2 values for it.
    """

    def _register_rows(self, rows: int, features: int, device: Any, tracks: bool) -> None:
        module: Any = self
        kept = {
            "running_mean": torch.zeros(rows, features, device=device),
            "running_var": torch.ones(rows, features, device=device),
            "num_batches_tracked": torch.zeros(rows, dtype=torch.long, device=device),
        }
        for name, buffer in kept.items():
            module.register_buffer(name, buffer if tracks else None)

    def reset_running_stats(self) -> None:
        """Mean 0 and variance 1 in every row, no batch counted."""
        for buffer, start in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.fill_(start)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """As a module's; of a checkpoint without the counter every row counts as one that was reached."""
        name = f"{prefix}num_batches_tracked"
        if self.num_batches_tracked is not None and f"{prefix}running_mean" in state_dict and name not in state_dict:
            state_dict[name] = torch.ones_like(self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]

    def _track_rows(self, rows: slice, mean: Tensor, variance: Tensor, counts: Tensor) -> None:
        """Take means and biased variances `(rows, features)` of so many values `(rows,)` into neighbouring rows."""
        if self.running_mean is None or recomputing():
            return
        mean, variance, counts = mean.detach(), variance.detach(), counts.detach().to(variance.dtype)
        if self._pool is None:
            unbiased = variance * (counts / (counts - 1).clamp(min=1)).unsqueeze(-1)
            self._move_rows(rows, mean, unbiased, counts > 1)
            return
        if not isinstance(self._pool, RowPool):
            self._pool = RowPool(self.running_mean)
        self._pool.add_rows(rows, mean, variance, counts)

    @torch.no_grad()
    def _move_rows(self, rows: slice, mean: Tensor, unbiased: Tensor, moves: Tensor) -> None:
        """Move those of the rows that are marked; new = (1 − m) · old + m · batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        counter = self.num_batches_tracked[rows]
        counter.add_(moves)
        means, variances = self.running_mean[rows], self.running_var[rows]
        share = torch.full_like(counter, self.momentum, dtype=means.dtype) if self.momentum is not None else 1 / counter
        share, moves = share.to(means.dtype).unsqueeze(-1), moves.unsqueeze(-1)
        for old, new in ((means, mean), (variances, unbiased)):
            old.copy_(torch.where(moves, torch.lerp(old, new.to(old.dtype), share), old))

    def _commit(self) -> None:
        """Move by what was pooled, if anything was."""
        pool = self._pool
        if isinstance(pool, RowPool):
            unbiased = pool.squares / (pool.counts - 1).clamp(min=1)
            self._move_rows(slice(None), pool.means, unbiased, pool.counts.squeeze(-1) > 1)
            self._pool = Pool()


class RowPool(Pool):
    """Statistics of the micro-batches of one optimiser step, row by row."""

    def __init__(self, like: Tensor | None) -> None:
        super().__init__()
        assert like is not None
        self.means = torch.zeros_like(like, dtype=torch.float64)
        self.squares = torch.zeros_like(self.means)
        self.counts = self.means.new_zeros(len(like), 1)

    def add_rows(self, rows: slice, mean: Tensor, variance: Tensor, counts: Tensor) -> None:
        """Merge a micro-batch of so many values a row; rows of fewer than 2 are left out."""
        counts = counts.double().unsqueeze(-1)
        counts = torch.where(counts > 1, counts, 0.0)
        mean, variance = (torch.where(counts > 0, each.double(), 0.0) for each in (mean, variance))
        before = self.counts[rows]
        total = (before + counts).clamp(min=1)
        delta = mean - self.means[rows]
        self.squares[rows] += variance * counts + delta.square() * (before * counts / total)
        self.means[rows] += delta * (counts / total)
        self.counts[rows] = before + counts
