"""Normalisers: `torch.nn`'s constructors and keys, with the statistics they compute handed out as telemetry."""

# by the statistics of a batch
from holdfast.norms.ghost_batch_norm import GhostBatchNorm as GhostBatchNorm

# divided by a scale, not centred
from holdfast.norms.rms_norm import RMSNorm as RMSNorm
