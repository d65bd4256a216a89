"""The only code that touches a live model: hooks, structure, replay, surgery."""

# what is inside activations, attention and recurrent layers
from holdfast.live.activations import Activated as Activated
from holdfast.live.activations import Activations as Activations
from holdfast.live.attention import Attended as Attended
from holdfast.live.attention import Attentions as Attentions

# models found by their optimiser
from holdfast.live.discover import Registry as Registry
from holdfast.live.discover import models_of as models_of

# what every layer takes and gives
from holdfast.live.feature_reader import FeatureReader as FeatureReader

# which layer feeds which
from holdfast.live.flow import Flow as Flow

# where streams meet
from holdfast.live.fusions import Fusion as Fusion
from holdfast.live.fusions import fusions as fusions

# hooks
from holdfast.live.hooks import HookSet as HookSet
from holdfast.live.hooks import all_detached as all_detached
from holdfast.live.hooks import on_gradient as on_gradient

# which modules are observed, and how their tensors lie
from holdfast.live.inner import inner_model as inner_model
from holdfast.live.inputs import read_inputs as read_inputs
from holdfast.live.layout import Layout as Layout
from holdfast.live.layout import Sampling as Sampling
from holdfast.live.layout import block as block
from holdfast.live.layout import layout_of as layout_of
from holdfast.live.leaves import is_leaf as is_leaf
from holdfast.live.leaves import is_rectifier as is_rectifier
from holdfast.live.leaves import leaf_modules as leaf_modules
from holdfast.live.leaves import observed_leaves as observed_leaves
from holdfast.live.leaves import passes_through as passes_through
from holdfast.live.leaves import saturation_threshold as saturation_threshold
from holdfast.live.leaves import zero_up_to as zero_up_to

# where a NaN came from
from holdfast.live.locate import Culprit as Culprit
from holdfast.live.locate import first_nonfinite as first_nonfinite

# what has no statistics
from holdfast.live.measurable import transforming as transforming
from holdfast.live.measurable import unmeasured as unmeasured

# what the calls of a forward pass gave
from holdfast.live.memo import Memo as Memo

# where streams meet
from holdfast.live.merges import Merge as Merge
from holdfast.live.merges import Merges as Merges
from holdfast.live.merges import Operand as Operand
from holdfast.live.merges import Value as Value

# a forward pass once more, and followed operation by operation
from holdfast.live.operations import operation_name as operation_name
from holdfast.live.passage import Passage as Passage
from holdfast.live.random_state import RandomState as RandomState
from holdfast.live.random_state import preserved_random_state as preserved_random_state

# the processes that train together
from holdfast.live.ranks import averaged_over as averaged_over
from holdfast.live.ranks import copies as copies
from holdfast.live.ranks import talks as talks
from holdfast.live.ranks import this_rank as this_rank
from holdfast.live.ranks import world_size as world_size
from holdfast.live.recurrent import unrolled as unrolled
from holdfast.live.repeated import Repeated as Repeated
from holdfast.live.repeated import repeated as repeated
from holdfast.live.replay import Autocast as Autocast
from holdfast.live.replay import Call as Call
from holdfast.live.replay import record_call as record_call
from holdfast.live.replay import replay as replay
from holdfast.live.replay import untouched as untouched

# a state to come back to
from holdfast.live.snapshot import Snapshot as Snapshot

# the model as a graph
from holdfast.live.structure import extract as extract
from holdfast.live.structure import kind_of as kind_of
from holdfast.live.tensors import tensors_in as tensors_in

# what compiled code tells
from holdfast.live.traced import Outlet as Outlet

# what hooks cannot see
from holdfast.live.unseen import unseen as unseen
