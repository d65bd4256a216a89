import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.branches import followed
from holdfast.treatments.normalise_streams import NormaliseStreams
from holdfast.treatments.streams import meetings

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


class Fused(nn.Module):
    """Two ways that meet: the first as a test makes it, the second some thirty times smaller."""

    def __init__(self, how="add", first=None, between=None, small=0.03):
        super().__init__()
        torch.manual_seed(0)
        self.first = first if first is not None else nn.Linear(4, 6)
        self.second = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        with torch.no_grad():
            self.second[2].weight.mul_(small)
            self.second[2].bias.mul_(small)
        self.head = nn.Linear(6 if how == "add" else 12, 2)
        self.how = how
        self.between = between if between is not None else (lambda x: x)
        self.met = []

    def forward(self, x):
        streams = self.between(self.first(x)), self.second(x)
        self.met.append([each.square().mean().sqrt().item() for each in streams])
        return self.head(streams[0] + streams[1] if self.how == "add" else torch.cat(streams, dim=-1))


def values(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def norms(model):
    return {path.removesuffix(".norm"): str(each) for path, each in model.named_modules() if path.endswith(".norm")}


@pytest.mark.parametrize("how", ["add", "cat"])
@pytest.mark.parametrize("between", [None, F.relu, lambda x: F.relu(x).unsqueeze(1).squeeze(1)])
def test_streams_of_unequal_scale_meet_balanced(how, between):
    model = Fused(how, between=between)
    before = values(model)
    receipt = NormaliseStreams(batch=X).plan(model, None).apply()
    assert set(norms(model)) == {"first", "second.2"}
    assert all("BatchNorm1d(6" in each for each in norms(model).values())
    model.met.clear()
    model(X)
    var = model.second[2].layer(model.second[1](model.second[0](X))).var(0, correction=0)
    least = (var / (var + 1e-5)).mean().sqrt().item()  # 1 but for ε
    assert least > 0.8
    # behind a ReLU a unit normal has an RMS of 1/√2
    assert model.met[0] == pytest.approx([1.0 if between is None else 0.5**0.5, least], rel=0.1)
    assert model.met[0][1] == pytest.approx(least, rel=1e-5)
    assert receipt.renamed["first.weight"] == "first.layer.weight"
    assert receipt.error_train > 0.1
    receipt.undo()
    assert values(model) == before


def test_the_smaller_stream_then_has_its_say():
    """Share of the fused layer's gradient that reaches the smaller way: r = 30 before, 1 after."""
    model = Fused("cat")

    def share():
        model.zero_grad()
        model(X).square().mean().backward()
        ways = model.head.weight.grad.norm(dim=0).split(6)
        return (ways[1].norm() / ways[0].norm()).item()

    before = share()
    NormaliseStreams(batch=X).plan(model, None).apply()
    assert before < 0.05 < 0.3 < share()


def test_balanced_streams_are_left_with_the_figures():
    model = Fused(small=1.0)
    with pytest.raises(SurgeryError, match=r"the streams added in the model are balanced: RMS 0\.\d+, 0\.\d+"):
        NormaliseStreams(batch=X).plan(model, None)
    (meeting,) = meetings(model, followed(model, X))
    assert 1.0 < meeting.ratio < 3.0
    NormaliseStreams(factor=meeting.ratio * 0.99, batch=X).plan(model, None)
    with pytest.raises(SurgeryError, match="are balanced"):
        NormaliseStreams(factor=meeting.ratio * 1.01, batch=X).plan(model, None)


def test_three_streams_added_one_after_the_other_are_one_meeting():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.ways = nn.ModuleList([nn.Linear(4, 6) for _ in range(3)])

        def forward(self, x):
            return self.ways[0](x) + self.ways[1](10 * x) + self.ways[2](100 * x)

    torch.manual_seed(0)
    model = Three()
    (meeting,) = meetings(model, followed(model, X))
    assert len(meeting.streams) == 3
    assert meeting.ratio > 50
    NormaliseStreams(batch=X).plan(model, None).apply()
    assert set(norms(model)) == {"ways.0", "ways.1", "ways.2"}


def test_convolutions_sequences_and_few_samples_get_the_norm_that_fits():
    images, sequences = torch.randn(16, 3, 8, 8), torch.randn(16, 9, 4)

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(1))

        def forward(self, x):
            return self.a(x).flatten(1) + self.b(100 * x).flatten(1)

    for kind, expected in (("auto", "BatchNorm2d(4"), ("layer", "GroupNorm(1, 4")):
        model = Images()
        NormaliseStreams(kind, batch=images).plan(model, None).apply()
        assert set(norms(model)) == {"a.1", "b.1"}
        assert all(each.startswith(expected) for each in norms(model).values())
    model = Fused()
    NormaliseStreams(batch=sequences).plan(model, None).apply()
    assert set(norms(model)) == {"first", "second.2"}
    assert all(each.startswith("LayerNorm((6,)") for each in norms(model).values())
    with pytest.raises(SurgeryError, match=r"BatchNorm1d would take the sequence of second.2 for the features"):
        NormaliseStreams("batch", batch=sequences).plan(Fused(), None)
    model = Fused()
    NormaliseStreams(batch=X[:4]).plan(model, None).apply()
    assert all(each.startswith("LayerNorm((6,)") for each in norms(model).values())


def test_positions_added_to_tokens_are_normalised_each():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(12, 8)
            nn.init.normal_(self.positions.weight, 0.0, 0.02)

        def forward(self, ids):
            return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))

    torch.manual_seed(0)
    model = Tokens()
    NormaliseStreams(batch=torch.randint(11, (16, 12))).plan(model, None).apply()
    assert {path: each.split("(")[0] for path, each in norms(model).items()} == {
        "tokens": "LayerNorm",
        "positions": "LayerNorm",
    }


def test_residual_additions_are_no_meetings():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return x + 100 * self.fc(x)

    with pytest.raises(SurgeryError, match="none that meet on the batch"):
        NormaliseStreams(batch=X).plan(nn.Sequential(Block(), Block()), None)


def test_sites_choose_meetings():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = Fused(), Fused(), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(torch.cat([self.one(x), self.two(x)], 1))

    for site in ("one", "one.first", "one.second.0", "one.head"):
        model = Both()
        NormaliseStreams(batch=X).plan(model, None, [Site(site, "input")]).apply()
        assert set(norms(model)) == {"one.first", "one.second.2"}, site
    with pytest.raises(SurgeryError, match="the streams concatenated in the model are balanced"):
        NormaliseStreams(batch=X).plan(Both(), None, [Site("out", "input")])
    with pytest.raises(SurgeryError, match="none that meet there"):
        NormaliseStreams(batch=X).plan(nn.Sequential(Both(), nn.Linear(1, 1)), None, [Site("1", "input")])


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Fused(first=Own(4, 6)), r"first \(Own\) is not a layer that this treatment knows"),
        (Fused(between=lambda x: x * 50), "mul stands between its last layer and the merge"),
        (Fused(first=nn.Linear(4, 6), between=lambda x: x.softmax(1) * 0 + 40), "stands between its last layer"),
        (Fused(small=1e-6), r"what second.2 gives has an SD over the batch of .*, below √ε = 0.0032"),
    ],
)
def test_what_cannot_be_normalised_is_told_with_the_reason(model, reason):
    before = values(model)
    with pytest.raises(SurgeryError, match=rf"\(RMS .*\): left as they are: .*{reason}"):
        NormaliseStreams(batch=100 * X).plan(model, None)
    assert values(model) == before


def test_a_stream_that_goes_elsewhere_too_is_left():
    class Both(nn.Module):
        def __init__(self, aside):
            super().__init__()
            self.a, self.b, self.other, self.aside = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 1), aside

        def forward(self, x):
            y = self.a(x)
            return self.aside(self, y), y + self.b(100 * x)

    for aside in (lambda m, y: y, lambda m, y: m.other(y), lambda m, y: y.mean()):
        model = Both(aside)
        assert "left as it is: what a gives is used elsewhere too" in NormaliseStreams(batch=X).plan(model, None).diff
        with pytest.raises(SurgeryError, match="left as they are: what a gives is used elsewhere too"):
            NormaliseStreams(batch=100 * X).plan(model, None)
    model = Both(lambda m, y: None)
    NormaliseStreams(batch=X).plan(model, None).apply()
    assert set(norms(model)) == {"a", "b"}


def test_the_raw_input_as_a_stream_may_stay_at_unit_scale_and_not_beyond():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.deep, self.out = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)), nn.Linear(10, 1)
            with torch.no_grad():
                self.deep[2].weight.mul_(0.1)
                self.deep[2].bias.mul_(0.1)

        def forward(self, x):
            return self.out(torch.cat([x, self.deep(x)], 1))

    plan = NormaliseStreams(batch=X).plan(Wide(), None)
    assert re.search(
        r"^  a stream of RMS 0.939 .* left as it is: it is the model's input: scale the data", plan.diff, re.M
    )
    model = Wide()
    NormaliseStreams(batch=X).plan(model, None).apply()
    assert set(norms(model)) == {"deep.2"}
    with pytest.raises(SurgeryError, match="left as they are: it is the model's input"):
        NormaliseStreams(batch=1000 * X).plan(Wide(), None)


def test_a_layer_that_runs_for_both_streams_is_left():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x):
            return torch.cat([self.fc(x), self.fc(100 * x)], 1)

    with pytest.raises(SurgeryError, match="fc runs 2 times in a pass"):
        NormaliseStreams(batch=X).plan(Siamese(), None)


def test_options_are_checked():
    with pytest.raises(SurgeryError, match=r"a batch, on which streams can be seen to meet; got none; type: .*batch="):
        NormaliseStreams().plan(Fused(), None)
    for factor in (1.0, 0.0, float("nan")):
        with pytest.raises(InputError, match="a factor above 1"):
            NormaliseStreams(factor=factor, batch=X).plan(Fused(), None)
    with pytest.raises(InputError, match="a batch that the model takes"):
        NormaliseStreams(batch=torch.randn(3, 7)).plan(Fused(), None)


def test_the_optimiser_takes_the_new_parameters_and_undo_lets_them_go():
    model = Fused("cat")
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().mean().backward()
    optimizer.step()
    before, held = values(model), [id(each) for each in optimizer.param_groups[0]["params"]]
    receipt = NormaliseStreams(batch=X).plan(model, optimizer).apply()
    assert len(optimizer.param_groups[0]["params"]) == len(held) + 4
    receipt.undo()
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == held
    assert values(model) == before


def test_the_lines_to_paste_do_the_same():
    model = Fused()
    pasted = copy.deepcopy(model)
    plan = NormaliseStreams(batch=X).plan(model, None)
    exec(plan.source, {"nn": nn, "model": pasted})
    plan.apply()
    assert repr(pasted) == repr(model)
    assert list(pasted.state_dict()) == list(model.state_dict())


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"expected kind= one of 'auto', 'batch', 'layer'; got 'foo'"):
        NormaliseStreams(kind="foo")
