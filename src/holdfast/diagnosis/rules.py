"""`RULES`: the table of contents of the rules, in the order in which they are asked."""

from __future__ import annotations

from holdfast.diagnosis.batch_noise import BatchNoise
from holdfast.diagnosis.collapsed_signal import CollapsedSignal
from holdfast.diagnosis.coupled_decay import CoupledDecay
from holdfast.diagnosis.dead_units import DeadUnits
from holdfast.diagnosis.decayed_gain import DecayedGain
from holdfast.diagnosis.degenerate_group import DegenerateGroup
from holdfast.diagnosis.drift_amplification import DriftAmplification
from holdfast.diagnosis.exploding_gradient import ExplodingGradient
from holdfast.diagnosis.loss_spike import LossSpike
from holdfast.diagnosis.nonfinite import NonFinite
from holdfast.diagnosis.normaliser_order import NormaliserOrder
from holdfast.diagnosis.poor_init import PoorInit
from holdfast.diagnosis.recurrent_batchnorm import RecurrentBatchNorm
from holdfast.diagnosis.redundant_bias import RedundantBias
from holdfast.diagnosis.rule import Rule
from holdfast.diagnosis.saturated_units import SaturatedUnits
from holdfast.diagnosis.shifting_input import ShiftingInput
from holdfast.diagnosis.stale_statistics import StaleStatistics
from holdfast.diagnosis.train_eval_gap import TrainEvalGap
from holdfast.diagnosis.unscaled_input import UnscaledInput
from holdfast.diagnosis.update_ratio import UpdateRatio
from holdfast.diagnosis.vanishing_gradient import VanishingGradient

RULES: tuple[Rule, ...] = (
    NonFinite(),
    CollapsedSignal(),
    ShiftingInput(),
    DriftAmplification(),
    SaturatedUnits(),
    DeadUnits(),
    VanishingGradient(),
    ExplodingGradient(),
    LossSpike(),
    UpdateRatio(),
    UnscaledInput(),
    PoorInit(),
    BatchNoise(),
    StaleStatistics(),
    TrainEvalGap(),
    CoupledDecay(),
    DecayedGain(),
    RedundantBias(),
    RecurrentBatchNorm(),
    DegenerateGroup(),
    NormaliserOrder(),
)
"""Each rule with its usual thresholds. A new one needs its import and its place here, and nothing elsewhere."""
