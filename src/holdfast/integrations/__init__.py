"""Hosts that Holdfast is put into: one file per host.

Nothing here imports PyTorch before the host does: a script may set what PyTorch reads when it is loaded.
"""

# a script of the user's own
from holdfast.integrations.options import Options as Options
from holdfast.integrations.script import Script as Script
