"""Steps with statistics alone: fewer elements, only the outputs that are kept, channels now and then."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.site import Site

STEPS = 60


def watched(record, model, *, inputs, **options):
    """The history of a run with probes at its first step and statistics at every other one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recording = record(model, optimizer, every=1, probe_every=10**6, probe=inputs[:8], **options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(1), torch.arange(len(inputs)) % 5).backward()
        optimizer.step()
    return recording.close()


def test_statistics_alone_come_from_a_quarter_of_the_elements_and_of_the_same_sites(record):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5))
    history = watched(record, model, inputs=torch.randn(64, 64), max_elements=4096)
    every = {site: dict(history.summaries(site)) for site in history.sites()}
    first, later = ({site: steps[step] for site, steps in every.items() if step in steps} for step in (1, STEPS))
    assert set(first) == set(later) >= {Site("1", "output"), Site("2", "output"), Site("0", "grad_output")}
    inputs = Site("0", "input")
    assert (first[inputs].moments.count, later[inputs].moments.count) == (4096, 1024)
    assert sum(later[inputs].sketch.bins) == 1024
    assert (first[Site("2", "output")].moments.count, later[Site("2", "output")].moments.count) == (320, 320)


def test_exact_mode_reads_every_element_at_every_step(record):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5))
    inputs = torch.randn(64, 64)
    history = watched(record, model, inputs=inputs, mode="exact")
    for _, seen in history.summaries(Site("0", "input")):
        assert seen.moments.count == inputs.numel()
        assert seen.moments.mean == pytest.approx(inputs.double().mean().item(), abs=1e-9)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_the_part_that_is_read_changes_from_step_to_step_so_that_no_pattern_of_samples_is_missed(record, period):
    """Every `period`-th sample is 1, the others 0: over many steps its share is found, whatever the stride is."""
    model = nn.Sequential(nn.Linear(64, 5))
    inputs = torch.zeros(64, 64)
    inputs[::period] = 1.0
    history = watched(record, model, inputs=inputs, max_elements=1024)
    means = [seen.moments.mean for step, seen in history.summaries(Site("0", "input")) if step > 1]
    # Every fourth sample is read, and the first of them is drawn: a step sees what is at one of four places.
    assert np.mean(means) == pytest.approx(1 / period, abs=0.12)
    assert len(set(means)) == 2


def test_channels_are_told_with_probes_and_about_every_tenth_step(record):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5))
    recording = record(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, probe_every=25, probe=64)
    optimizer = recording.watch._optimizer
    told = []
    write = recording.watch.sink.write
    recording.watch.sink.write = lambda each: (told.append((each.step, len(each.channels))), write(each))
    for _ in range(200):
        optimizer.zero_grad()
        model(torch.randn(64, 64)).square().mean().backward()
        optimizer.step()
    recording.close()
    with_channels = [step for step, channels in told if channels]
    assert {1, 25, 50, 175, 200} <= set(with_channels)
    assert max(np.diff(with_channels)) <= 15
    assert len(with_channels) <= 200 / 5
    assert {channels for _, channels in told} == {0, 5}  # the inputs of three layers, and two outputs
