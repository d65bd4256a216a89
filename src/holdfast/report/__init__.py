"""One self-contained HTML page from a run."""

# rows
from holdfast.report.layers import LayerRow as LayerRow
from holdfast.report.layers import layer_rows as layer_rows

# the page
from holdfast.report.write import render as render
from holdfast.report.write import write as write
