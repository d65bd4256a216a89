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

# drift: what moved, and whether the parameters moved it
from holdfast.measures.drift_amplification import QUANTITY as _drift_amplification
from holdfast.measures.drift_amplification import amplification as amplification
from holdfast.measures.drift_gain import QUANTITY as _drift_gain
from holdfast.measures.drift_gain import drift_gain as drift_gain

# distances between two states of a site: from moments, samples or sketches; floors for any of them
from holdfast.measures.gaussian import Gaussian as Gaussian
from holdfast.measures.gaussian_kl import QUANTITY as _gaussian_kl
from holdfast.measures.gaussian_kl import gaussian_kl as gaussian_kl
from holdfast.measures.gaussian_w2 import QUANTITY as _gaussian_w2
from holdfast.measures.gaussian_w2 import gaussian_w2 as gaussian_w2
from holdfast.measures.gradient_norm import QUANTITY as _gradient_norm
from holdfast.measures.gradient_norm import gradient_norm as gradient_norm
from holdfast.measures.gradient_slope import QUANTITY as _gradient_slope
from holdfast.measures.gradient_slope import gradient_slope as gradient_slope
from holdfast.measures.jensen_shannon import QUANTITY as _jensen_shannon
from holdfast.measures.jensen_shannon import jensen_shannon as jensen_shannon
from holdfast.measures.kolmogorov_smirnov import QUANTITY as _kolmogorov_smirnov
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov as kolmogorov_smirnov
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov_error as kolmogorov_smirnov_error
from holdfast.measures.log_scale_ratio import QUANTITY as _log_scale_ratio
from holdfast.measures.log_scale_ratio import log_scale_ratio as log_scale_ratio
from holdfast.measures.mmd import QUANTITY as _mmd
from holdfast.measures.mmd import mmd as mmd
from holdfast.measures.mmd import mmd_shift as mmd_shift
from holdfast.measures.mmd import mmd_test as mmd_test
from holdfast.measures.multiplicity import within_noise as within_noise
from holdfast.measures.observed_drift import QUANTITY as _observed_drift
from holdfast.measures.observed_drift import observed_drift as observed_drift
from holdfast.measures.parameter_drift import QUANTITY as _parameter_drift
from holdfast.measures.parameter_drift import parameter_drift as parameter_drift
from holdfast.measures.parameter_share import QUANTITY as _parameter_share
from holdfast.measures.parameter_share import parameter_share as parameter_share
from holdfast.measures.path_length import QUANTITY as _path_length
from holdfast.measures.path_length import path_length as path_length
from holdfast.measures.permutation_test import permutation_test as permutation_test
from holdfast.measures.permutation_test import split_half_floor as split_half_floor
from holdfast.measures.running_lag import QUANTITY as _running_lag
from holdfast.measures.running_lag import running_lag as running_lag
from holdfast.measures.sampling_drift import QUANTITY as _sampling_drift
from holdfast.measures.sampling_drift import sampling_drift as sampling_drift
from holdfast.measures.saturated_fraction import QUANTITY as _saturated_fraction
from holdfast.measures.saturated_fraction import saturated_fraction as saturated_fraction
from holdfast.measures.scale_shift import QUANTITY as _scale_shift
from holdfast.measures.scale_shift import scale_shift as scale_shift
from holdfast.measures.scale_shift_p95 import QUANTITY as _scale_shift_p95
from holdfast.measures.scale_shift_p95 import scale_shift_p95 as scale_shift_p95
from holdfast.measures.shape_shift import QUANTITY as _shape_shift
from holdfast.measures.shape_shift import shape_shift as shape_shift
from holdfast.measures.signal_spread import QUANTITY as _signal_spread
from holdfast.measures.signal_spread import signal_spread as signal_spread
from holdfast.measures.sliced_wasserstein import QUANTITY as _sliced_wasserstein
from holdfast.measures.sliced_wasserstein import sliced_wasserstein as sliced_wasserstein
from holdfast.measures.sliced_wasserstein import sliced_wasserstein_shift as sliced_wasserstein_shift
from holdfast.measures.standardised_mean_shift import QUANTITY as _standardised_mean_shift
from holdfast.measures.standardised_mean_shift import standardised_mean_shift as standardised_mean_shift
from holdfast.measures.stored_distances import OVER as _stored_distances
from holdfast.measures.straightness import QUANTITY as _straightness
from holdfast.measures.straightness import journeys as journeys
from holdfast.measures.straightness import over as _straightness_over
from holdfast.measures.straightness import path_over as _path_length_over
from holdfast.measures.straightness import straightness as straightness
from holdfast.measures.train_eval_gap import QUANTITY as _train_eval_gap
from holdfast.measures.train_eval_gap import train_eval_gap as train_eval_gap
from holdfast.measures.update_ratio import QUANTITY as _update_ratio
from holdfast.measures.update_ratio import update_ratio as update_ratio
from holdfast.measures.wasserstein1 import QUANTITY as _wasserstein1
from holdfast.measures.wasserstein1 import wasserstein1 as wasserstein1
from holdfast.measures.wasserstein1 import wasserstein1_error as wasserstein1_error
from holdfast.measures.weight_norm import QUANTITY as _weight_norm
from holdfast.measures.weight_norm import weight_norm as weight_norm

QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
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
        _standardised_mean_shift,
        _log_scale_ratio,
        _gaussian_w2,
        _gaussian_kl,
        _wasserstein1,
        _sliced_wasserstein,
        _jensen_shannon,
        _kolmogorov_smirnov,
        _mmd,
        _collapsed_features,
        _signal_spread,
        _saturated_fraction,
        _dead_units,
        _backward_gain,
        _gradient_norm,
        _gradient_slope,
        _weight_norm,
        _update_ratio,
        _batch_noise,
        _train_eval_gap,
        _running_lag,
    )
}

WATCHABLE: dict[str, Watchable] = {}
"""Measures that need the model: a watch takes those that it is asked for, `hf.watch(…, measures=[…])`."""

OFFLINE: dict[str, Callable[[History], Sequence[Reading | Table]]] = {
    "path-length": _path_length_over,
    "straightness": _straightness_over,
    **_stored_distances,
}
"""Measures that a stored run is enough for: `run.measure(name)`."""
