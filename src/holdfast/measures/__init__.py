"""Measures: from what a site held, before and now, to a reading with its noise. One measure a file.

Imports stand in the order of the alphabet; `QUANTITIES` is the table of contents.
"""

from collections.abc import Callable, Sequence
from functools import partial as _partial

from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading, Table
from holdfast.live.moment import Watchable
from holdfast.measures.activation_window import ActivationWindow as ActivationWindow
from holdfast.measures.attention_entropy import QUANTITY as _attention_entropy
from holdfast.measures.attention_entropy import attention_entropy as attention_entropy
from holdfast.measures.attention_rows import take as _take_attention
from holdfast.measures.attention_saturation import QUANTITY as _attention_saturation
from holdfast.measures.attention_saturation import attention_saturation as attention_saturation
from holdfast.measures.attribution import QUANTITY as _attribution
from holdfast.measures.attribution import Attribution as Attribution
from holdfast.measures.attribution import attribution as attribution
from holdfast.measures.attribution import attributions as attributions
from holdfast.measures.attribution import take as _take_attribution
from holdfast.measures.backward_gain import QUANTITY as _backward_gain
from holdfast.measures.backward_gain import backward_gain as backward_gain
from holdfast.measures.batch_noise import QUANTITY as _batch_noise
from holdfast.measures.batch_noise import batch_noise as batch_noise
from holdfast.measures.collapsed_features import QUANTITY as _collapsed_features
from holdfast.measures.collapsed_features import collapsed_features as collapsed_features
from holdfast.measures.curvature_spread import QUANTITY as _curvature_spread
from holdfast.measures.curvature_spread import curvature_spread as curvature_spread
from holdfast.measures.dead_units import QUANTITY as _dead_units
from holdfast.measures.dead_units import dead_units as dead_units
from holdfast.measures.drift_amplification import QUANTITY as _drift_amplification
from holdfast.measures.drift_amplification import amplification as amplification
from holdfast.measures.drift_gain import QUANTITY as _drift_gain
from holdfast.measures.drift_gain import drift_gain as drift_gain
from holdfast.measures.effective_rank import QUANTITY as _effective_rank
from holdfast.measures.effective_rank import effective_rank as effective_rank
from holdfast.measures.effective_rate import QUANTITY as _effective_rate
from holdfast.measures.effective_rate import effective_rate as effective_rate
from holdfast.measures.effective_rate import over as _over_effective_rate
from holdfast.measures.effective_rate import take as _take_effective_rate
from holdfast.measures.effective_smoothness import QUANTITY as _effective_smoothness
from holdfast.measures.effective_smoothness import effective_smoothness as effective_smoothness
from holdfast.measures.gate_saturation import QUANTITY as _gate_saturation
from holdfast.measures.gate_saturation import gate_saturation as gate_saturation
from holdfast.measures.gauss_newton_condition import QUANTITY as _gauss_newton_condition
from holdfast.measures.gauss_newton_condition import gauss_newton_condition as gauss_newton_condition
from holdfast.measures.gaussian import Gaussian as Gaussian
from holdfast.measures.gaussian_kl import QUANTITY as _gaussian_kl
from holdfast.measures.gaussian_kl import gaussian_kl as gaussian_kl
from holdfast.measures.gaussian_w2 import QUANTITY as _gaussian_w2
from holdfast.measures.gaussian_w2 import gaussian_w2 as gaussian_w2
from holdfast.measures.gradient_ics import QUANTITY as _gradient_ics
from holdfast.measures.gradient_ics import gradient_ics as gradient_ics
from holdfast.measures.gradient_ics import take as _take_gradient_ics
from holdfast.measures.gradient_norm import QUANTITY as _gradient_norm
from holdfast.measures.gradient_norm import gradient_norm as gradient_norm
from holdfast.measures.gradient_predictiveness import QUANTITY as _gradient_predictiveness
from holdfast.measures.gradient_predictiveness import gradient_predictiveness as gradient_predictiveness
from holdfast.measures.gradient_ratio import QUANTITY as _gradient_ratio
from holdfast.measures.gradient_ratio import gradient_ratio as gradient_ratio
from holdfast.measures.gradient_ratio import over as _over_gradient_ratio
from holdfast.measures.gradient_slope import QUANTITY as _gradient_slope
from holdfast.measures.gradient_slope import gradient_slope as gradient_slope
from holdfast.measures.gradient_snr import QUANTITY as _gradient_snr
from holdfast.measures.gradient_snr import gradient_snr as gradient_snr
from holdfast.measures.gradient_snr import gradient_snrs as gradient_snrs
from holdfast.measures.gradient_snr import take as _take_gradient_snr
from holdfast.measures.hessian_trace import QUANTITY as _hessian_trace
from holdfast.measures.hessian_trace import hessian_trace as hessian_trace
from holdfast.measures.jensen_shannon import QUANTITY as _jensen_shannon
from holdfast.measures.jensen_shannon import jensen_shannon as jensen_shannon
from holdfast.measures.kolmogorov_smirnov import QUANTITY as _kolmogorov_smirnov
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov as kolmogorov_smirnov
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov_error as kolmogorov_smirnov_error
from holdfast.measures.landscape import landscape as landscape
from holdfast.measures.landscape import take as _take_landscape
from holdfast.measures.landscape_comparison import compare_landscapes as compare_landscapes
from holdfast.measures.learning_rate_sensitivity import QUANTITY as _learning_rate_sensitivity
from holdfast.measures.learning_rate_sensitivity import learning_rate_sensitivity as learning_rate_sensitivity
from holdfast.measures.learning_rate_sweep import sweep_learning_rates as sweep_learning_rates
from holdfast.measures.log_scale_ratio import QUANTITY as _log_scale_ratio
from holdfast.measures.log_scale_ratio import log_scale_ratio as log_scale_ratio
from holdfast.measures.loss_variation import QUANTITY as _loss_variation
from holdfast.measures.loss_variation import loss_variation as loss_variation
from holdfast.measures.maximum_learning_rate import QUANTITY as _maximum_learning_rate
from holdfast.measures.maximum_learning_rate import maximum_learning_rate as maximum_learning_rate
from holdfast.measures.mmd import QUANTITY as _mmd
from holdfast.measures.mmd import mmd as mmd
from holdfast.measures.mmd import mmd_shift as mmd_shift
from holdfast.measures.mmd import mmd_test as mmd_test
from holdfast.measures.multiplicity import within_noise as within_noise
from holdfast.measures.observed_drift import QUANTITY as _observed_drift
from holdfast.measures.observed_drift import observed_drift as observed_drift
from holdfast.measures.one_loss import spread_of as _spread_of
from holdfast.measures.one_loss import watchable as _of_loss
from holdfast.measures.parameter_drift import QUANTITY as _parameter_drift
from holdfast.measures.parameter_drift import parameter_drift as parameter_drift
from holdfast.measures.parameter_share import QUANTITY as _parameter_share
from holdfast.measures.parameter_share import parameter_share as parameter_share
from holdfast.measures.participation_ratio import QUANTITY as _participation_ratio
from holdfast.measures.participation_ratio import participation_ratio as participation_ratio
from holdfast.measures.path_length import QUANTITY as _path_length
from holdfast.measures.path_length import path_length as path_length
from holdfast.measures.permutation_test import permutation_test as permutation_test
from holdfast.measures.permutation_test import split_half_floor as split_half_floor
from holdfast.measures.radial_gradient import QUANTITY as _radial_gradient
from holdfast.measures.radial_gradient import radial_gradient as radial_gradient
from holdfast.measures.radial_gradient import take as _take_radial_gradient
from holdfast.measures.rank_window import RankWindow as RankWindow
from holdfast.measures.relative_gradient_change import QUANTITY as _relative_gradient_change
from holdfast.measures.relative_gradient_change import relative_gradient_change as relative_gradient_change
from holdfast.measures.rotation import QUANTITY as _rotation
from holdfast.measures.rotation import equilibrium_rotation as equilibrium_rotation
from holdfast.measures.rotation import rotation as rotation
from holdfast.measures.rotation import take as _take_rotation
from holdfast.measures.running_lag import QUANTITY as _running_lag
from holdfast.measures.running_lag import running_lag as running_lag
from holdfast.measures.sampling_drift import QUANTITY as _sampling_drift
from holdfast.measures.sampling_drift import sampling_drift as sampling_drift
from holdfast.measures.saturated_fraction import QUANTITY as _saturated_fraction
from holdfast.measures.saturated_fraction import saturated_fraction as saturated_fraction
from holdfast.measures.scale_invariance import scale_invariant as scale_invariant
from holdfast.measures.scale_shift import QUANTITY as _scale_shift
from holdfast.measures.scale_shift import scale_shift as scale_shift
from holdfast.measures.scale_shift_p95 import QUANTITY as _scale_shift_p95
from holdfast.measures.scale_shift_p95 import scale_shift_p95 as scale_shift_p95
from holdfast.measures.shape_shift import QUANTITY as _shape_shift
from holdfast.measures.shape_shift import shape_shift as shape_shift
from holdfast.measures.sharpness import QUANTITY as _sharpness
from holdfast.measures.sharpness import WATCHED_PRODUCTS as _WATCHED_PRODUCTS
from holdfast.measures.sharpness import sharpness as sharpness
from holdfast.measures.signal_spread import QUANTITY as _signal_spread
from holdfast.measures.signal_spread import signal_spread as signal_spread
from holdfast.measures.sliced_wasserstein import QUANTITY as _sliced_wasserstein
from holdfast.measures.sliced_wasserstein import sliced_wasserstein as sliced_wasserstein
from holdfast.measures.sliced_wasserstein import sliced_wasserstein_shift as sliced_wasserstein_shift
from holdfast.measures.spectral_density import spectral_density as spectral_density
from holdfast.measures.spectrum import parts_of as parts_of
from holdfast.measures.spike_cause import Cause as Cause
from holdfast.measures.spike_cause import Precursor as Precursor
from holdfast.measures.spike_cause import spike_cause as spike_cause
from holdfast.measures.spike_replay import Replayed as Replayed
from holdfast.measures.spike_replay import replay_spike as replay_spike
from holdfast.measures.spikes import QUANTITY as _spikes
from holdfast.measures.spikes import Spike as Spike
from holdfast.measures.spikes import SpikeDetector as SpikeDetector
from holdfast.measures.spikes import over as _over_spikes
from holdfast.measures.spikes import spikes as spikes
from holdfast.measures.stability import stability as stability
from holdfast.measures.stability import take as _take_stability
from holdfast.measures.stability_ratio import QUANTITY as _stability_ratio
from holdfast.measures.stability_ratio import stability_ratio as stability_ratio
from holdfast.measures.standardised_mean_shift import QUANTITY as _standardised_mean_shift
from holdfast.measures.standardised_mean_shift import standardised_mean_shift as standardised_mean_shift
from holdfast.measures.stored_distances import OVER as _over_stored_distances
from holdfast.measures.straightness import QUANTITY as _straightness
from holdfast.measures.straightness import journeys as journeys
from holdfast.measures.straightness import over as _over_straightness
from holdfast.measures.straightness import path_over as _over_path_length
from holdfast.measures.straightness import straightness as straightness
from holdfast.measures.stream_gradient import QUANTITY as _stream_gradient
from holdfast.measures.stream_gradient import stream_gradient as stream_gradient
from holdfast.measures.stream_rms import QUANTITY as _stream_rms
from holdfast.measures.stream_rms import stream_rms as stream_rms
from holdfast.measures.stream_share import QUANTITY as _stream_share
from holdfast.measures.stream_share import stream_share as stream_share
from holdfast.measures.stream_shift import QUANTITY as _stream_shift
from holdfast.measures.stream_shift import stream_shift as stream_shift
from holdfast.measures.streams import take as _take_streams
from holdfast.measures.streams import take_gradients as _take_stream_gradients
from holdfast.measures.train_eval_gap import QUANTITY as _train_eval_gap
from holdfast.measures.train_eval_gap import train_eval_gap as train_eval_gap
from holdfast.measures.two_states import watchable as _between_states
from holdfast.measures.update_alignment import QUANTITY as _update_alignment
from holdfast.measures.update_alignment import take as _take_update_alignment
from holdfast.measures.update_alignment import update_alignment as update_alignment
from holdfast.measures.update_ratio import QUANTITY as _update_ratio
from holdfast.measures.update_ratio import update_ratio as update_ratio
from holdfast.measures.variance_rank import QUANTITY as _variance_rank
from holdfast.measures.variance_rank import variance_rank as variance_rank
from holdfast.measures.wasserstein1 import QUANTITY as _wasserstein1
from holdfast.measures.wasserstein1 import wasserstein1 as wasserstein1
from holdfast.measures.wasserstein1 import wasserstein1_error as wasserstein1_error
from holdfast.measures.weight_norm import QUANTITY as _weight_norm
from holdfast.measures.weight_norm import weight_norm as weight_norm

QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        # drift: the same inputs, or others, under moved parameters
        _parameter_drift,
        _scale_shift,
        _scale_shift_p95,
        _shape_shift,
        _path_length,
        _straightness,
        _observed_drift,
        _sampling_drift,
        _parameter_share,
        _drift_gain,
        _drift_amplification,
        # distances between two states of a site
        _standardised_mean_shift,
        _log_scale_ratio,
        _gaussian_w2,
        _gaussian_kl,
        _wasserstein1,
        _sliced_wasserstein,
        _jensen_shannon,
        _kolmogorov_smirnov,
        _mmd,
        # upstream attribution: whose update moved it
        _attribution,
        # gradient ICS: what the updates before a layer did to its gradient
        _gradient_ics,
        # gradient flow
        _backward_gain,
        _gradient_norm,
        _gradient_slope,
        _gradient_ratio,
        _gradient_snr,
        # weights in motion
        _weight_norm,
        _update_ratio,
        _update_alignment,
        _radial_gradient,
        _rotation,
        _effective_rate,
        # signal, saturation and death: where nothing comes through
        _signal_spread,
        _collapsed_features,
        _saturated_fraction,
        _dead_units,
        _gate_saturation,
        _attention_saturation,
        _attention_entropy,
        # rank: over how many directions features spread
        _effective_rank,
        _participation_ratio,
        _variance_rank,
        # streams where they meet
        _stream_rms,
        _stream_shift,
        _stream_share,
        _stream_gradient,
        # spikes: steps that stand out
        _spikes,
        # landscape: the loss around the parameters
        _loss_variation,
        _gradient_predictiveness,
        _relative_gradient_change,
        _effective_smoothness,
        _sharpness,
        _stability_ratio,
        _hessian_trace,
        _curvature_spread,
        _gauss_newton_condition,
        _maximum_learning_rate,
        _learning_rate_sensitivity,
        # batch normalisers: their batches, and their running averages
        _batch_noise,
        _train_eval_gap,
        _running_lag,
    )
}

_attention = Watchable(lambda: _take_attention, frozenset({"call"}))
_activations = Watchable(ActivationWindow, frozenset({"call"}))
_rank = Watchable(RankWindow, frozenset({"call"}))
_streams = Watchable(lambda: _take_streams, frozenset({"call"}))
_landscape = Watchable(lambda: _take_landscape, frozenset({"before", "loss"}))

WATCHABLE: dict[str, Watchable] = {
    # drift and distances
    "shape-shift": _between_states(shape_shift),
    "scale-shift-p95": _between_states(scale_shift_p95),
    "sliced-wasserstein": _between_states(sliced_wasserstein_shift),
    "mmd": _between_states(mmd_shift),
    # what updates do to other layers
    "attribution": Watchable(lambda: _take_attribution, frozenset({"before", "call"})),
    "gradient-ics": Watchable(lambda: _take_gradient_ics, frozenset({"before", "loss"})),
    # gradient flow and weights in motion
    "gradient-snr": Watchable(lambda: _take_gradient_snr, frozenset({"loss"})),
    "update-alignment": Watchable(lambda: _take_update_alignment, frozenset({"before"})),
    "radial-gradient": Watchable(lambda: _take_radial_gradient, frozenset({"before"})),
    "rotation": Watchable(lambda: _take_rotation, frozenset({"before"})),
    "effective-rate": Watchable(lambda: _take_effective_rate, frozenset({"optimizer"})),
    # saturation and death
    "saturated-fraction": _activations,
    "dead-units": _activations,
    "gate-saturation": _activations,
    "attention-saturation": _attention,
    "attention-entropy": _attention,
    # rank
    "effective-rank": _rank,
    "participation-ratio": _rank,
    "variance-rank": _rank,
    # streams
    "stream-rms": _streams,
    "stream-shift": _streams,
    "stream-share": _streams,
    "stream-gradient": Watchable(lambda: _take_stream_gradients, frozenset({"loss"})),
    # landscape: figures of one walk along the gradient, and its tables
    "landscape": _landscape,
    "loss-variation": _landscape,
    "gradient-predictiveness": _landscape,
    "relative-gradient-change": _landscape,
    "effective-smoothness": _landscape,
    "sharpness": _of_loss(_partial(sharpness, products=_WATCHED_PRODUCTS)),
    "hessian-trace": _of_loss(hessian_trace),
    "curvature-spread": _of_loss(_spread_of),
    "gauss-newton-condition": _of_loss(gauss_newton_condition),
    "stability-ratio": Watchable(lambda: _take_stability, frozenset({"loss", "optimizer"})),
}
"""Measures that need the model: a watch takes those that it is asked for, `hf.watch(…, measures=[…])`."""

OFFLINE: dict[str, Callable[[History], Sequence[Reading | Table]]] = {
    "effective-rate": _over_effective_rate,
    "gradient-ratio": _over_gradient_ratio,
    "spikes": _over_spikes,
    "path-length": _over_path_length,
    "straightness": _over_straightness,
    **_over_stored_distances,
}
"""Measures that a stored run is enough for: `run.measure(name)`."""
