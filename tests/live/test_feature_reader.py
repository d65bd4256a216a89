import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.site import Site
from holdfast.live.feature_reader import FeatureReader
from holdfast.live.replay import record_call, replay
from holdfast.live.structure import extract


def read(model, *args, **options):
    call = record_call(args, {})
    with FeatureReader(model, extract(model, call=call), **options) as reader:
        replay(model, call)
    return reader.found


def test_features_are_means_over_positions_of_what_each_leaf_takes_and_gives():
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(24, 2)).eval()
    x = torch.randn(7, 3, 8)
    found = read(net, x, stream="mine")
    places = [("0", "input"), ("0", "output"), ("1", "input"), ("1", "output"), ("4", "input"), ("4", "output")]
    assert list(found) == [Site(module, port, "mine", phase="eval") for module, port in places]
    conv = net[0](x).detach()
    for site, value in zip(found, (x, conv, conv, conv.relu(), conv.relu().flatten(1), net(x).detach()), strict=True):
        torch.testing.assert_close(found[site].values, value.mean(2) if value.ndim == 3 else value)
        assert found[site].positions == (value.shape[2] if value.ndim == 3 else 1)
    relu = found[Site("1", "output", "mine", phase="eval")]
    torch.testing.assert_close(relu.sd, conv.relu().double().std((0, 2), correction=0))


def test_two_passes_are_equal_to_the_last_bit_and_a_tensor_at_two_sites_is_read_once():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    call = record_call((torch.randn(8, 3),), {})
    with FeatureReader(net, extract(net, call=call)) as reader:
        replay(net, call)
        first = reader.found
        replay(net, call)
    second = reader.found
    assert first is not second
    assert first.keys() == second.keys()
    assert all(torch.equal(first[site].values, second[site].values) for site in first)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    found = read(plain, torch.randn(8, 3))
    assert found[Site("0", "output")] is found[Site("1", "input")]


def test_what_is_changed_in_place_is_read_as_it_is_at_each_site():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    found = read(net, torch.randn(8, 3))
    before, after = found[Site("1", "input")].values, found[Site("1", "output")].values
    assert before.min() < 0
    assert torch.equal(after, before.relu())


def test_an_activation_behind_functions_lies_like_the_layer_that_feeds_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv1d(3, 4, 3), nn.Tanh()

        def forward(self, x):
            return self.act(F.relu(self.conv(x)))

    found = read(Net(), torch.randn(7, 3, 8))
    assert found[Site("act", "output")].values.shape == (7, 4)


def test_calls_are_numbered_and_time_first_sequences_have_their_samples_on_axis_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = nn.GRU(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.head(self.recurrent(x)[0]))

    found = read(Net(), torch.randn(5, 7, 3))
    assert found[Site("head", "output", call=1)].values.shape == (7, 4)
    assert found[Site("recurrent", "output", leaf="1")].values.shape == (7, 4)


def test_large_tensors_are_sampled_all_samples_first_and_integers_left_out():
    net = nn.Sequential(nn.Embedding(10, 64))
    found = read(net, torch.randint(10, (16, 100)), max_elements=1024)
    (site,) = found
    assert site == Site("0", "output")
    assert found[site].values.shape == (16, 64)
    assert found[site].positions == 1
    assert read(net, torch.randint(10, (16, 100)), max_elements=None)[site].positions == 100


def test_a_tensor_is_read_as_each_layer_that_takes_it_says():
    net = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Linear(8, 2))
    found = read(net, torch.randn(7, 3, 8))
    assert found[Site("0", "output")].values.shape == (7, 4)
    assert found[Site("1", "input")].values.shape == (7, 8)
