"""Against torch's own outputs: to 1e-5 in float32, 1e-12 in float64."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from holdfast.live.recurrent import GATES, unrolled

KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}


def hidden(rnn, samples):
    directions = rnn.num_layers * (2 if rnn.bidirectional else 1)
    h = torch.randn(directions, samples, rnn.proj_size or rnn.hidden_size, dtype=rnn.weight_ih_l0.dtype)
    if rnn.mode != "LSTM":
        return h
    return h, torch.randn(directions, samples, rnn.hidden_size, dtype=h.dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "both", "batch_first"), [(1, False, False), (2, True, True), (3, False, True)])
def test_layers_and_directions(kind, layers, both, batch_first):
    rnn = KINDS[kind](3, 4, layers, bidirectional=both, batch_first=batch_first)
    x = torch.randn(6, 5, 3)
    for hx in (None, hidden(rnn, 6 if batch_first else 5)):
        want = rnn(x, hx)[0]
        again = unrolled(rnn, (x, hx), {})
        got = again.output.view(*((5, 6) if batch_first else (6, 5)), -1)
        torch.testing.assert_close(got.transpose(0, 1) if batch_first else got, want, rtol=0, atol=1e-5)
        assert again.samples == (6 if batch_first else 5)
        assert all(len(each) == 30 and each.shape[1] == 4 for each in again.inner.values())


@pytest.mark.parametrize("options", [{"bias": False}, {"proj_size": 2}, {"proj_size": 2, "bidirectional": True}])
def test_without_bias_and_with_projection(options):
    rnn = nn.LSTM(3, 4, 2, **options, dtype=torch.float64)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    hx = hidden(rnn, 5)
    again = unrolled(rnn, (x,), {"hx": hx})
    torch.testing.assert_close(again.output.view(6, 5, -1), rnn(x, hx)[0], rtol=0, atol=1e-12)
    assert {each.shape[1] for each in again.inner.values()} == {4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_packed_sequences(kind, both):
    rnn = KINDS[kind](3, 4, 2, bidirectional=both)
    sequences = [torch.randn(length, 3) for length in (2, 7, 4)]
    hx = hidden(rnn, 3)
    for packed in (
        pack_sequence(sequences, enforce_sorted=False),
        pack_padded_sequence(torch.randn(7, 3, 3), torch.tensor([7, 7, 1]), enforce_sorted=True),
    ):
        want = rnn(packed, hx)[0]
        again = unrolled(rnn, (packed, hx), {})
        torch.testing.assert_close(again.output, want.data, rtol=0, atol=1e-5)
        assert again.samples == 3


def test_one_sequence_without_a_batch():
    rnn = nn.GRU(3, 4)
    x, hx = torch.randn(6, 3), torch.randn(1, 4)
    torch.testing.assert_close(unrolled(rnn, (x, hx), {}).output, rnn(x, hx)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_between_layers_is_drawn_again(packed):
    rnn = nn.LSTM(3, 4, 3, dropout=0.5)
    x = pack_sequence([torch.randn(5, 3), torch.randn(2, 3)]) if packed else torch.randn(6, 5, 3)
    state = torch.get_rng_state()
    want = rnn(x)[0]
    torch.set_rng_state(state)
    again = unrolled(rnn, (x,), {})
    torch.testing.assert_close(again.output, want.data if packed else want.flatten(0, 1), rtol=0, atol=1e-5)
    rnn.eval()
    want = rnn(x)[0]
    again = unrolled(rnn, (x,), {})
    torch.testing.assert_close(again.output, want.data if packed else want.flatten(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(cell, bias):
    cell = nn.RNNCell(3, 4, bias, "relu") if cell == "relu" else cell(3, 4, bias)
    x, h = torch.randn(5, 3), torch.randn(5, 4)
    for hx in (None, (h, torch.randn(5, 4)) if isinstance(cell, nn.LSTMCell) else h):
        want = cell(x, hx)
        want = want[0] if isinstance(want, tuple) else want
        torch.testing.assert_close(unrolled(cell, (x, hx), {}).output, want, rtol=0, atol=1e-5)
    assert unrolled(cell, (x[0],), {}).output.shape == (1, 4)


def test_gates_of_a_lstm_by_a_bias_that_opens_them():
    """With zero weights a gate takes its biases' sum: 5 opens the forget gate for good, the others see 0."""
    rnn = nn.LSTM(3, 4)
    for parameter in rnn.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        rnn.bias_ih_l0[4:8] = 5.0
    inner = unrolled(rnn, (torch.randn(6, 2, 3), (torch.ones(1, 2, 4), torch.ones(1, 2, 4))), {}).inner
    assert torch.equal(inner["l0.forget"], torch.full((12, 4), 5.0))
    assert not inner["l0.input"].any()
    assert not inner["l0.candidate"].any()
    assert torch.allclose(inner["l0.cell"][-1], torch.sigmoid(torch.tensor(5.0)) ** 6)
    assert {name.partition(".")[2] for name in inner} - GATES == {"candidate", "cell"}
