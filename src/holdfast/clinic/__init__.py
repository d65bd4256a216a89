"""What joins findings, treatments and runs."""

# before training
# isort: split
from holdfast.clinic.preflight import preflight as preflight

# from findings to a plan
# isort: split
from holdfast.clinic.prescribe import Choice as Choice
from holdfast.clinic.prescribe import Prescription as Prescription
from holdfast.clinic.prescribe import prescribe as prescribe

# from a plan to evidence
# isort: split
from holdfast.clinic.proof import Arm as Arm
from holdfast.clinic.proof import Comparison as Comparison
from holdfast.clinic.proof import Proof as Proof
from holdfast.clinic.proof import Shift as Shift
from holdfast.clinic.prove import prove as prove

# all of it in one call
# isort: split
from holdfast.clinic.cure import Cure as Cure
from holdfast.clinic.cure import cure as cure

# one change in one line
# isort: split
from holdfast.clinic.convert import convert as convert
