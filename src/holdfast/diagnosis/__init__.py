"""Diagnosis: from a run's readings to findings, ranked, with a verdict. One rule a file."""

# the whole
# signal
from holdfast.diagnosis.collapsed_signal import CollapsedSignal as CollapsedSignal
from holdfast.diagnosis.dead_units import DeadUnits as DeadUnits
from holdfast.diagnosis.diagnose import RULES as RULES
from holdfast.diagnosis.diagnose import diagnose as diagnose

# shift
from holdfast.diagnosis.drift_amplification import DriftAmplification as DriftAmplification
from holdfast.diagnosis.exploding_gradient import ExplodingGradient as ExplodingGradient
from holdfast.diagnosis.nonfinite import NonFinite as NonFinite
from holdfast.diagnosis.poor_init import PoorInit as PoorInit
from holdfast.diagnosis.rule import Rule as Rule
from holdfast.diagnosis.saturated_units import SaturatedUnits as SaturatedUnits
from holdfast.diagnosis.shifting_input import ShiftingInput as ShiftingInput
from holdfast.diagnosis.spread import dead_modules as dead_modules
from holdfast.diagnosis.unscaled_input import UnscaledInput as UnscaledInput

# optimiser
from holdfast.diagnosis.update_ratio import UpdateRatio as UpdateRatio
from holdfast.diagnosis.vanishing_gradient import VanishingGradient as VanishingGradient
