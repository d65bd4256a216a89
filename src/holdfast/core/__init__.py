"""The nouns: Site → Statistic → Reading → Finding → Treatment → Receipt, and what the floors promise each other."""

# errors
from holdfast.core.errors import HoldfastError as HoldfastError
from holdfast.core.errors import InputError as InputError
from holdfast.core.errors import RunError as RunError
from holdfast.core.errors import StatisticError as StatisticError
from holdfast.core.errors import SurgeryError as SurgeryError
from holdfast.core.errors import WatchError as WatchError

# nouns
from holdfast.core.event import Event as Event
from holdfast.core.event import EventKind as EventKind
from holdfast.core.finding import SEVERITIES as SEVERITIES
from holdfast.core.finding import Diagnosis as Diagnosis
from holdfast.core.finding import Finding as Finding
from holdfast.core.finding import Inconclusive as Inconclusive
from holdfast.core.finding import Severity as Severity

# protocols
from holdfast.core.protocols import History as History
from holdfast.core.protocols import Sink as Sink
from holdfast.core.protocols import Telemetry as Telemetry
from holdfast.core.quantity import Quantity as Quantity
from holdfast.core.reading import Reading as Reading
from holdfast.core.reading import Table as Table
from holdfast.core.record import StepRecord as StepRecord
from holdfast.core.site import Phase as Phase
from holdfast.core.site import Port as Port
from holdfast.core.site import Site as Site
from holdfast.core.statistic import Statistic as Statistic
from holdfast.core.structure import FunctionalCall as FunctionalCall
from holdfast.core.structure import Group as Group
from holdfast.core.structure import ModuleNode as ModuleNode
from holdfast.core.structure import ParameterNode as ParameterNode
from holdfast.core.structure import Structure as Structure
from holdfast.core.study import Study as Study
from holdfast.core.treatment import Plan as Plan
from holdfast.core.treatment import Receipt as Receipt
from holdfast.core.treatment import Treatment as Treatment
from holdfast.core.units import Unit as Unit
