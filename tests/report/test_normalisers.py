from __future__ import annotations

import pytest
import torch
from torch import nn

import holdfast.norms as norms
from holdfast.core.finding import Diagnosis
from holdfast.live.structure import extract
from holdfast.report.normalisers import normaliser_rows
from holdfast.report.write import render
from holdfast.store.memory import MemoryRun


class GroupNorm(nn.Module):
    """Not torch's."""

    def forward(self, x):
        return x


def rows(*layers):
    return [(each.name, each.count, each.spec.formula) for each in normaliser_rows(extract(nn.Sequential(*layers)))]


def test_each_kind_once_as_it_was_built():
    found = rows(
        nn.BatchNorm2d(8), nn.ReLU(), norms.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.GroupNorm(1, 8),
        nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(8, elementwise_affine=False), norms.RMSNorm(8),
    )  # fmt: skip
    assert found == [
        ("BatchNorm2d", 2, "y = γ_c · (x − μ_c) / √(σ²_c + ε) + β_c"),
        ("GroupNorm, 4 groups", 1, "y = γ_c · (x − μ_ng) / √(σ²_ng + ε) + β_c"),
        ("GroupNorm, 1 group", 1, "y = γ_c · (x − μ_n) / √(σ²_n + ε) + β_c"),
        ("InstanceNorm2d", 1, "y = γ_c · (x − μ_nc) / √(σ²_nc + ε) + β_c"),
        ("LayerNorm", 1, "y = (x − μ_ns) / √(σ²_ns + ε)"),
        ("RMSNorm", 1, "y = γ_c · x / √(m_ns + ε)"),
    ]


def test_a_class_of_the_same_name_is_not_taken_for_torchs():
    assert rows(GroupNorm(), nn.Linear(2, 2)) == []


@pytest.mark.parametrize(("layer", "shown"), [(nn.GroupNorm(2, 4), True), (nn.Identity(), False)])
def test_the_page_has_a_section_where_the_model_has_one(layer, shown):
    torch.manual_seed(0)
    run = MemoryRun("a")
    run.describe(extract(nn.Sequential(nn.Linear(4, 4), layer)))
    page = render(run, Diagnosis("a", 0, "Nothing.", (), (), ()))
    assert ("Normalisers in this model" in page) is shown
    assert ("1 × GroupNorm, 2 groups" in page) is shown
    assert ("√(σ²_ng + ε)" in page) is shown
    assert ("GroupNorm, 2 groups: 18 of 144 cells" in page) is shown
