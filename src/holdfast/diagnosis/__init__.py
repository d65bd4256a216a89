"""Diagnosis: from a run's readings to findings, ranked, with a verdict. One rule a file; `rules.py` lists them."""

# the whole
from holdfast.diagnosis.diagnose import diagnose as diagnose

# the rules
from holdfast.diagnosis.rule import Rule as Rule
from holdfast.diagnosis.rules import RULES as RULES

# what others ask of the diagnosis
from holdfast.diagnosis.spread import dead_modules as dead_modules
