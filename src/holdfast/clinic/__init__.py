"""What joins findings, treatments and runs."""

# before training
# all of it in one call
# one change in one line
from holdfast.clinic.convert import convert as convert
from holdfast.clinic.cure import Cure as Cure
from holdfast.clinic.cure import cure as cure
from holdfast.clinic.preflight import preflight as preflight

# from findings to a plan
from holdfast.clinic.prescribe import Choice as Choice
from holdfast.clinic.prescribe import Prescription as Prescription
from holdfast.clinic.prescribe import prescribe as prescribe

# from a plan to evidence
from holdfast.clinic.proof import Arm as Arm
from holdfast.clinic.proof import Comparison as Comparison
from holdfast.clinic.proof import Proof as Proof
from holdfast.clinic.proof import Shift as Shift
from holdfast.clinic.prove import prove as prove
