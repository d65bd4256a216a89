"""The only code that touches a live model: hooks, structure, replay, random state."""

# hooks
from holdfast.live.hooks import HookSet as HookSet
from holdfast.live.hooks import on_gradient as on_gradient

# the model as it is
from holdfast.live.inner import inner_model as inner_model
from holdfast.live.leaves import is_leaf as is_leaf
from holdfast.live.leaves import is_rectifier as is_rectifier
from holdfast.live.leaves import leaf_modules as leaf_modules
from holdfast.live.leaves import observed_leaves as observed_leaves
from holdfast.live.leaves import passes_through as passes_through
from holdfast.live.leaves import saturation_threshold as saturation_threshold

# a forward pass once more
from holdfast.live.random_state import RandomState as RandomState
from holdfast.live.random_state import preserved_random_state as preserved_random_state
from holdfast.live.replay import Autocast as Autocast
from holdfast.live.replay import Call as Call
from holdfast.live.replay import record_call as record_call
from holdfast.live.replay import replay as replay
from holdfast.live.replay import untouched as untouched
