"""The `holdfast` command: one file per command; each parses, calls and prints.

Nothing here imports PyTorch before a command needs it, so that `--help` answers at once.
"""

from holdfast.cli.app import app as app
from holdfast.cli.app import main as main
