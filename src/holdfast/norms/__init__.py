"""Normalisers: `torch.nn`'s constructors and keys, with the statistics they compute handed out as telemetry."""

# divided by a scale, not centred
from holdfast.norms.rms_norm import RMSNorm as RMSNorm
