"""The run's database: one file per rank and attempt; and a run in memory."""

# writing
from holdfast.store.ledger import Limits as Limits

# in memory
from holdfast.store.memory import MemoryRun as MemoryRun

# reading
from holdfast.store.ranks import MergedRun as MergedRun
from holdfast.store.ranks import open_run as open_run
from holdfast.store.reader import Envelope as Envelope
from holdfast.store.reader import RunReader as RunReader
from holdfast.store.shared import SharedWriter as SharedWriter
from holdfast.store.shared import StreamSink as StreamSink
from holdfast.store.writer import RunWriter as RunWriter
