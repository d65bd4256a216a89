import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.norms import GroupNorm, NormSpec, make

PLACES = ("samples", "positions")


def test_specs_are_values():
    assert NormSpec("a", PLACES) == NormSpec("a", PLACES)
    assert len({NormSpec("a", PLACES), NormSpec("a", PLACES), NormSpec("a", PLACES, groups=1)}) == 1
    with pytest.raises(AttributeError):
        NormSpec("a", PLACES).groups = 2


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("batch", "y = γ_c · (x − μ_c) / √(σ²_c + ε) + β_c"),
        ("ghost", "y = γ_c · (x − μ_kc) / √(σ²_kc + ε) + β_c"),
        ("instance", "y = (x − μ_nc) / √(σ²_nc + ε)"),
        ("group", "y = γ_c · (x − μ_ng) / √(σ²_ng + ε) + β_c"),
        ("layer", "y = γ_c · (x − μ_ns) / √(σ²_ns + ε) + β_c"),
        ("rms", "y = γ_c · x / √(m_ns + ε)"),
        (
            "switchable",
            "y = γ_c · (x − μ) / √(σ² + ε) + β_c, μ = w_instance·μ_nc + w_layer·μ_n + w_batch·μ_c, "
            "σ² = v_instance·σ²_nc + v_layer·σ²_n + v_batch·σ²_c",
        ),
        (
            "batch-layer",
            "y = γ_c · (w_batch·(x − μ_c) / √(σ²_c + ε) + w_layer·(x − μ_n) / √(σ²_n + ε)) + β_c",
        ),
    ],
)
def test_the_formula_of_a_member(kind, formula):
    assert make(kind, 64).spec.formula == formula


@pytest.mark.parametrize("kind", ["batch", "instance", "group", "layer", "ghost"])
def test_the_picture_shows_the_cells_that_move_the_first_output(kind):
    """A cell shares a statistic with the first one exactly when the first output depends on it."""
    settings = {"groups": 2} if kind == "group" else {"chunk_size": 2} if kind == "ghost" else {}
    norm = make(kind, 4, 1, **settings).double()
    x = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    (norm(x)[0, 0, 0]).backward()
    assert torch.equal(x.grad != 0, norm.spec.cells(6, 4, 3))


def test_the_picture_of_a_mix_and_of_no_statistic():
    switchable = make("switchable", 4).spec.cells(2, 4, 3)
    assert switchable[0].all()
    assert switchable[1, 0].all()
    assert not switchable[1, 1:].any()
    assert NormSpec("tanh", (), scale="none", then="tanh").cells(2, 2, 2).sum() == 1


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2)])
def test_statistics_against_their_definition(shape):
    x = torch.randn(shape, dtype=torch.float64)
    mean, variance = NormSpec("g", ("channels", "positions"), groups=2).statistics(x)
    for sample, first in ((0, 0), (5, 2)):
        cells = x[sample, first : first + 2]
        torch.testing.assert_close(mean[sample, first].flatten()[0], cells.mean())
        torch.testing.assert_close(variance[sample, first + 1].flatten()[-1], cells.var(correction=0))
    assert mean.shape == x.shape


def test_chunks_that_are_not_alike_have_no_reference():
    with pytest.raises(InputError, match=r"expected a batch of a multiple of 3; got 7 samples"):
        NormSpec("ghost", PLACES, chunk=2).statistics(torch.randn(7, 2, 2))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"over": ("positions",), "groups": 2},
            "got groups=2 over positions; type: over=",
        ),
        ({"over": ("channels",), "chunk": 2}, "got chunk=2 over channels"),
        ({"over": ("channels",), "groups": 0}, "got groups=0 over channels"),
    ],
)
def test_specs_that_say_nothing_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        NormSpec("mine", **settings)


def test_the_reference_of_a_layer_is_the_layer():
    norm = GroupNorm(3, 6).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(norm.spec.reference(x, dict(norm.named_parameters())), norm(x))
