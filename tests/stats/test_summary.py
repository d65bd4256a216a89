import torch

from holdfast.stats.observation import observe
from holdfast.stats.summary import Summary


def test_columns_name_every_entry():
    summary = observe(torch.tensor([0.0, 1.0, 5.0])[:, None, None], exponent=0, threshold=2.0).summary
    row = dict(zip(Summary.COLUMNS, summary.pack().tolist(), strict=True))
    assert len(row) == 78
    assert (row["count"], row["mean"], row["m2"], row["low"], row["high"]) == (3, 2, 14, 0, 5)
    assert (row["total"], row["zeros"], row["beyond"], row["exponent"], row["bin32"]) == (3, 1, 1, 0, 1)


def test_merging_merges_every_part():
    a = observe(torch.tensor([0.0, 2.0])[:, None, None], exponent=0).summary
    merged = a + a
    assert merged.moments == a.moments + a.moments
    assert merged.extremes == a.extremes
    assert merged.counts.total == 4
    assert merged.sketch.count == 4
