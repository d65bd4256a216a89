"""What torch's operations are called, and which of them matter to a monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def operation_name(function: Callable[..., Any]) -> str:
    """The name of an operation as a person writes it: `"relu"`, `"add"` for `+`, `""` for a look at an attribute.

    Example:
        >>> import torch
        >>> operation_name(torch.Tensor.__radd__), operation_name(torch.Tensor.sigmoid_)
        ('add', 'sigmoid_')
    """
    name: str = getattr(function, "__name__", None) or str(function)
    if name in ("__get__", "__set__"):
        return ""
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        return _OPERATORS.get(name, _OPERATORS.get(name[1:], name))
    return name


_OPERATORS = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "div": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "matmul": "matmul",
    "pow": "pow",
    "neg": "neg",
    "abs": "abs",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that move values about and compute nothing.
SHAPING = _words(
    """view view_as reshape reshape_as flatten unflatten permute transpose t adjoint swapaxes swapdims movedim moveaxis
    squeeze squeeze_ unsqueeze unsqueeze_ expand expand_as contiguous chunk split tensor_split unbind narrow select
    getitem setitem cat concat concatenate stack hstack vstack repeat repeat_interleave tile flip roll unfold as_strided
    to type type_as float double half bfloat16 cpu cuda clone detach detach_ requires_grad_ pad pixel_shuffle
    pixel_unshuffle index_select gather dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout
    feature_alpha_dropout view_as_real view_as_complex broadcast_to ravel numpy len copy_"""
)

# Operations whose inner values decide how a network trains, and which hooks on modules miss.
ACTIVATIONS = _words(
    """relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu mish softplus softsign hardtanh
    hardswish hardsigmoid sigmoid sigmoid_ tanh tanh_ logsigmoid softmax log_softmax glu erf clamp clamp_"""
)
NORMALISERS = _words("layer_norm batch_norm group_norm instance_norm rms_norm normalize rsqrt local_response_norm")
LAYERS = _words(
    """linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding
    embedding_bag einsum"""
)
FUSED = {
    "scaled_dot_product_attention": "attention scores",
    "multi_head_attention_forward": "attention scores",
    "lstm": "gates",
    "gru": "gates",
    "rnn_tanh": "hidden states between the first and the last",
    "rnn_relu": "hidden states between the first and the last",
}

# Operations that write a constant, so that an infinity among their results is meant: the mask of an attention.
FILLING = _words(
    """masked_fill masked_fill_ full full_like new_full fill_ where triu triu_ tril tril_ index_fill index_fill_ tensor
    as_tensor new_tensor scalar_tensor setitem copy_"""
)
