"""What joins findings, treatments and runs."""

# before training
from holdfast.clinic.preflight import preflight as preflight
