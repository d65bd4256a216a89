"""Measures: from what a site held, before and now, to a reading with its noise. One measure a file."""

from collections.abc import Callable, Sequence

from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading, Table
from holdfast.live.moment import Watchable

# gradient flow and updates
from holdfast.measures.backward_gain import QUANTITY as _backward_gain
from holdfast.measures.backward_gain import backward_gain as backward_gain

# batch normalisers: the noise of their batches, and how their running averages stand to these
from holdfast.measures.batch_noise import QUANTITY as _batch_noise
from holdfast.measures.batch_noise import batch_noise as batch_noise

# signal: what carries no information
from holdfast.measures.collapsed_features import QUANTITY as _collapsed_features
from holdfast.measures.collapsed_features import collapsed_features as collapsed_features
from holdfast.measures.dead_units import QUANTITY as _dead_units
from holdfast.measures.dead_units import dead_units as dead_units

# distances between moments
from holdfast.measures.distance import gaussian_w2 as gaussian_w2
from holdfast.measures.distance import log_scale_ratio as log_scale_ratio
from holdfast.measures.distance import standardised_mean_shift as standardised_mean_shift

# drift: what moved, and whether the parameters moved it
from holdfast.measures.drift_amplification import QUANTITY as _drift_amplification
from holdfast.measures.drift_amplification import amplification as amplification
from holdfast.measures.drift_gain import QUANTITY as _drift_gain
from holdfast.measures.drift_gain import drift_gain as drift_gain
from holdfast.measures.effective_rate import QUANTITY as _effective_rate
from holdfast.measures.effective_rate import effective_rate as effective_rate
from holdfast.measures.effective_rate import over as _effective_rate_over
from holdfast.measures.effective_rate import take as _effective_rate_take
from holdfast.measures.gradient_norm import QUANTITY as _gradient_norm
from holdfast.measures.gradient_norm import gradient_norm as gradient_norm
from holdfast.measures.gradient_ratio import QUANTITY as _gradient_ratio
from holdfast.measures.gradient_ratio import gradient_ratio as gradient_ratio
from holdfast.measures.gradient_ratio import over as _gradient_ratio_over
from holdfast.measures.gradient_slope import QUANTITY as _gradient_slope
from holdfast.measures.gradient_slope import gradient_slope as gradient_slope
from holdfast.measures.gradient_snr import QUANTITY as _gradient_snr
from holdfast.measures.gradient_snr import gradient_snr as gradient_snr
from holdfast.measures.gradient_snr import gradient_snrs as gradient_snrs
from holdfast.measures.gradient_snr import take as _gradient_snr_take
from holdfast.measures.observed_drift import QUANTITY as _observed_drift
from holdfast.measures.observed_drift import observed_drift as observed_drift
from holdfast.measures.parameter_drift import QUANTITY as _parameter_drift
from holdfast.measures.parameter_drift import parameter_drift as parameter_drift
from holdfast.measures.parameter_share import QUANTITY as _parameter_share
from holdfast.measures.parameter_share import parameter_share as parameter_share
from holdfast.measures.radial_gradient import QUANTITY as _radial_gradient
from holdfast.measures.radial_gradient import radial_gradient as radial_gradient
from holdfast.measures.radial_gradient import take as _radial_gradient_take
from holdfast.measures.rotation import QUANTITY as _rotation
from holdfast.measures.rotation import equilibrium_rotation as equilibrium_rotation
from holdfast.measures.rotation import rotation as rotation
from holdfast.measures.rotation import take as _rotation_take
from holdfast.measures.running_lag import QUANTITY as _running_lag
from holdfast.measures.running_lag import running_lag as running_lag
from holdfast.measures.sampling_drift import QUANTITY as _sampling_drift
from holdfast.measures.sampling_drift import sampling_drift as sampling_drift
from holdfast.measures.saturated_fraction import QUANTITY as _saturated_fraction
from holdfast.measures.saturated_fraction import saturated_fraction as saturated_fraction
from holdfast.measures.scale_invariance import scale_invariant as scale_invariant
from holdfast.measures.scale_shift import QUANTITY as _scale_shift
from holdfast.measures.scale_shift import scale_shift as scale_shift
from holdfast.measures.signal_spread import QUANTITY as _signal_spread
from holdfast.measures.signal_spread import signal_spread as signal_spread

# spikes: steps that stand out, and what they came from
from holdfast.measures.spike_cause import Cause as Cause
from holdfast.measures.spike_cause import Precursor as Precursor
from holdfast.measures.spike_cause import spike_cause as spike_cause
from holdfast.measures.spike_replay import Replayed as Replayed
from holdfast.measures.spike_replay import replay_spike as replay_spike
from holdfast.measures.spikes import QUANTITY as _spikes
from holdfast.measures.spikes import Spike as Spike
from holdfast.measures.spikes import SpikeDetector as SpikeDetector
from holdfast.measures.spikes import over as _spikes_over
from holdfast.measures.spikes import spikes as spikes
from holdfast.measures.train_eval_gap import QUANTITY as _train_eval_gap
from holdfast.measures.train_eval_gap import train_eval_gap as train_eval_gap
from holdfast.measures.update_alignment import QUANTITY as _update_alignment
from holdfast.measures.update_alignment import take as _update_alignment_take
from holdfast.measures.update_alignment import update_alignment as update_alignment
from holdfast.measures.update_ratio import QUANTITY as _update_ratio
from holdfast.measures.update_ratio import update_ratio as update_ratio
from holdfast.measures.weight_norm import QUANTITY as _weight_norm
from holdfast.measures.weight_norm import weight_norm as weight_norm

QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        _parameter_drift,
        _scale_shift,
        _observed_drift,
        _sampling_drift,
        _parameter_share,
        _drift_gain,
        _drift_amplification,
        _collapsed_features,
        _signal_spread,
        _saturated_fraction,
        _dead_units,
        _backward_gain,
        _gradient_norm,
        _gradient_slope,
        _weight_norm,
        _update_ratio,
        _gradient_ratio,
        _gradient_snr,
        _update_alignment,
        _radial_gradient,
        _rotation,
        _effective_rate,
        _spikes,
        _batch_noise,
        _train_eval_gap,
        _running_lag,
    )
}

WATCHABLE: dict[str, Watchable] = {
    "effective-rate": Watchable(lambda: _effective_rate_take, frozenset({"optimizer"})),
    "gradient-snr": Watchable(lambda: _gradient_snr_take, frozenset({"loss"})),
    "radial-gradient": Watchable(lambda: _radial_gradient_take, frozenset({"before"})),
    "rotation": Watchable(lambda: _rotation_take, frozenset({"before"})),
    "update-alignment": Watchable(lambda: _update_alignment_take, frozenset({"before"})),
}
"""Measures that need the model: a watch takes those that it is asked for, `hf.watch(…, measures=[…])`."""

OFFLINE: dict[str, Callable[[History], Sequence[Reading | Table]]] = {
    "effective-rate": _effective_rate_over,
    "gradient-ratio": _gradient_ratio_over,
    "spikes": _spikes_over,
}
"""Measures that a stored run is enough for: `run.measure(name)`."""
