"""What a person reads who prints a reading or a table: everything that belongs to the figure."""

import math

import pytest

from holdfast.core.errors import InputError
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site

FC = Site("fc", "input")


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (
            Reading("parameter-drift", FC, 9, 0.3, "reference SD", 64, 0.04, (0.2, 0.4), lag=1),
            "parameter-drift, input of 'fc', step 9: 0.3 reference SD over 1 step "
            "(95 % interval 0.2 to 0.4, noise floor 0.04, n = 64)",
        ),
        (
            Reading("parameter-drift", FC, 9, 0.03, "reference SD", 64, 0.04, lag=10),
            "parameter-drift, input of 'fc', step 9: 0.03 reference SD over 10 steps (within noise floor 0.04, n = 64)",
        ),
        (
            Reading("update-alignment", Site("fc", "weight"), 9, -0.9, "cosine", 64, 0.24),  # chance is two-sided
            "update-alignment, weight of 'fc', step 9: -0.9 cosine (noise floor 0.24, n = 64)",
        ),
        (
            Reading("gradient-norm", Site("fc", "grad_output", call=1, phase="eval"), 9, 2480.6, "L2 norm", 64),
            "gradient-norm, grad output of 'fc (call 1)' (eval), step 9: 2480 L2 norm (n = 64)",
        ),
        (
            Reading("weight-norm", Site("", "weight", leaf="scale"), 9, math.nan, "L2 norm", 1, 0.5),
            "weight-norm, weight of '(model).scale', step 9: nan L2 norm (noise floor 0.5, n = 1)",
        ),
    ],
    ids=["all", "within noise", "negative", "nothing but n", "not finite"],
)
def test_a_reading_prints_as_one_line_with_interval_floor_and_n(reading, line):
    assert str(reading) == line


def test_a_table_prints_aligned_with_a_dash_where_there_is_no_figure():
    table = Table(
        "gradient-ics",
        9,
        "each column its own",
        ("first", "fc"),
        ("raw", "debiased relative"),
        ((0.0, math.nan), (123.456, -1e-7)),
        64,
    )
    assert str(table).splitlines() == [
        "gradient-ics, step 9, each column its own, n = 64",
        "            debiased",
        "       raw  relative",
        "first    0         –",
        "fc     123    -1e-07",
    ]


def test_a_table_without_columns_prints_its_rows():
    assert str(Table("streams", 1, "fraction", ("a",), (), ((),), 8)) == "streams, step 1, fraction, n = 8\na"


def test_a_table_without_rows_prints_its_head():
    assert str(Table("streams", 1, "fraction", (), ("a",), (), 8)) == "streams, step 1, fraction, n = 8\n  a"


def test_a_column_by_its_name():
    table = Table("gradient-ics", 9, "L2 norm", ("a", "b"), ("raw", "cosine"), ((1.0, 2.0), (3.0, 4.0)), 8)
    assert table.column("cosine") == (2.0, 4.0)
    with pytest.raises(InputError, match=r"a column of gradient-ics: 'raw', 'cosine'"):
        table.column("cosin")
