"""One figure a file: from a run's readings to a Plotly figure, without its database and without its model."""

# movement
from holdfast.figures.attribution import attribution as attribution
from holdfast.figures.drift_by_depth import drift_by_depth as drift_by_depth
from holdfast.figures.drift_heatmap import drift_heatmap as drift_heatmap

# gradients
from holdfast.figures.gain_by_depth import gain_by_depth as gain_by_depth

# training
from holdfast.figures.loss import loss as loss

# what a normaliser takes together
from holdfast.figures.norm_axes import norm_axes as norm_axes

# evidence for a treatment
from holdfast.figures.proof_curves import proof_curves as proof_curves

# one site
from holdfast.figures.ridgeline import ridgeline as ridgeline

# look
from holdfast.figures.theme import THEMES as THEMES
from holdfast.figures.theme import Theme as Theme
from holdfast.figures.theme import template as template
