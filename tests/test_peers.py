"""The heavy gates have PyTorch's numbers: values, and gradients of a random seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gate_cases import Case

torch = pytest.importorskip("torch", reason="PyTorch is large, and only compared with here")
functional = torch.nn.functional
RANDOM = np.random.default_rng(8)


def drawn(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(RANDOM.normal(0, 1, shape) for shape in shapes)


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], Callable[..., Any]]] = [
    (
        "Conv", drawn((2, 4, 9, 8), (6, 2, 3, 2), (6,)),
        {"group": 2, "strides": (2, 1), "pads": (1, 2, 1, 2), "dilations": (1, 2)},
        lambda x, w, b: functional.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), 2),
    ),
    (
        "Conv", drawn((2, 3, 4, 5, 4), (2, 3, 2, 2, 3)), {"kernel_shape": (2, 2, 3)},
        functional.conv3d,
    ),
    (
        "ConvTranspose", drawn((2, 4, 5, 4), (4, 3, 3, 2), (6,)),
        {"group": 2, "strides": (2, 3), "pads": (1, 0, 1, 0), "output_padding": (1, 2)},
        lambda x, w, b: functional.conv_transpose2d(x, w, b, (2, 3), (1, 0), (1, 2), 2),
    ),
    (
        "MaxPool", drawn((2, 3, 8, 7)),
        {"kernel_shape": (3, 2), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1},
        lambda x: functional.max_pool2d(x, (3, 2), (2, 2), 1, ceil_mode=True),
    ),
    (
        "MaxPool", drawn((2, 3, 9)), {"kernel_shape": (2,), "dilations": (3,)},
        lambda x: functional.max_pool1d(x, 2, 1, dilation=3),
    ),
    (
        "AveragePool", drawn((2, 3, 8, 7)),
        {"kernel_shape": (3, 2), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        lambda x: functional.avg_pool2d(x, (3, 2), (2, 2), 1, count_include_pad=False),
    ),
    (
        "AveragePool", drawn((2, 3, 8, 8)),
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1,
         "count_include_pad": 1},
        lambda x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    (
        "LpPool", (np.abs(drawn((2, 3, 8, 8))[0]),),
        {"kernel_shape": (2, 2), "strides": (2, 2), "p": 3},
        lambda x: functional.lp_pool2d(x, 3.0, 2, 2),
    ),
    (
        "LayerNormalization", drawn((2, 3, 4, 5), (4, 5), (4, 5)), {"axis": 2},
        lambda x, w, b: functional.layer_norm(x, (4, 5), w, b),
    ),
    (
        "RMSNormalization", drawn((2, 3, 5), (5,)), {},
        lambda x, w: functional.rms_norm(x, (5,), w, 1e-5),
    ),
    (
        "GroupNormalization", drawn((2, 6, 3, 2), (6,), (6,)), {"num_groups": 3},
        lambda x, w, b: functional.group_norm(x, 3, w, b),
    ),
    (
        "InstanceNormalization", drawn((2, 3, 4, 2), (3,), (3,)), {},
        lambda x, w, b: functional.instance_norm(x, weight=w, bias=b),
    ),
    (
        "BatchNormalization", (*drawn((4, 3, 2, 2), (3,), (3,), (3,)), np.array([0.5, 1.0, 2.0])),
        {"training_mode": 1},
        lambda x, w, b, _m, _v: functional.batch_norm(x, None, None, w, b, True),
    ),
    (
        "BatchNormalization", (*drawn((4, 3, 2, 2), (3,), (3,), (3,)), np.array([0.5, 1.0, 2.0])),
        {},
        lambda x, w, b, m, v: functional.batch_norm(x, m.detach(), v.detach(), w, b),
    ),
    (
        "LRN", drawn((2, 5, 3)), {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5},
        lambda x: functional.local_response_norm(x, 3, 0.3, 0.6, 1.5),
    ),
    (
        "Attention", drawn((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 2)), {"is_causal": 1},
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    (
        "Attention", drawn((2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 5), (3, 6)), {"scale": 0.3},
        lambda q, k, v, mask: functional.scaled_dot_product_attention(
            q, k, v, mask, scale=0.3, enable_gqa=True
        ),
    ),
    (
        "NegativeLogLikelihoodLoss", (*drawn((4, 3)), np.array([0, 2, 1, 2]), np.ones(3) * 1.5),
        {"ignore_index": 1},
        lambda x, t, w: functional.nll_loss(x, t, w.detach(), ignore_index=1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "peer"), CALLS, ids=[call[0] for call in CALLS]
)
def test_values_and_gradients_are_those_of_pytorch(
    operator: str, inputs: tuple[Any, ...], attributes: dict[str, Any], peer: Callable[..., Any]
) -> None:
    case = Case(operator, inputs, attributes)
    out, *more = case.run()
    grad = RANDOM.normal(0, 1, out.shape)
    given = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
    expected = peer(*given)
    differentiated = [x for x in given if x.requires_grad]
    pulled = torch.autograd.grad(expected, differentiated, torch.tensor(grad), allow_unused=True)
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    own = case.pull((grad, *(None for _ in more)))
    gradients = [each for each, x in zip(own, given, strict=True) if x.requires_grad]
    for found, theirs in zip(gradients, pulled, strict=True):
        if theirs is not None:
            np.testing.assert_allclose(found, theirs.numpy(), rtol=1e-9, atol=1e-11)


#: Where ONNX has the gates that PyTorch has in another order.
ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("operator", ORDERS)
def test_recurrent_networks_are_those_of_pytorch(operator: str, direction: str) -> None:
    steps, batch, size, hidden = 5, 3, 4, 6
    sides = 2 if direction == "bidirectional" else 1
    network = getattr(torch.nn, operator)(size, hidden, bidirectional=sides == 2).double()
    x, h, c = drawn((steps, batch, size), *((sides, batch, hidden),) * 2)
    given = [torch.tensor(each, requires_grad=True) for each in (x, h, c)]
    out, last = network(given[0], tuple(given[1:]) if operator == "LSTM" else given[1])

    def ordered(parts: list[Any]) -> Any:
        """PyTorch's tensors of each direction as ONNX's: the gates in its order, then stacked."""
        count = len(ORDERS[operator])
        rows = [part.detach().numpy().reshape(count, hidden, -1) for part in parts]
        return np.stack([each[list(ORDERS[operator])].reshape(count * hidden, -1) for each in rows])

    def named(kind: str) -> list[Any]:
        ends = ("_l0", "_l0_reverse")[:sides]
        return [getattr(network, f"{kind}{end}") for end in ends]

    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, r, *biases = (ordered(named(kind)) for kind in kinds)
    b = np.concatenate(biases, axis=1)[..., 0]
    attributes: dict[str, Any] = {"direction": direction}
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    cells = (c,) if operator == "LSTM" else ()
    case = Case(operator, (x, w, r, b, None, h, *cells), attributes)
    whole, own_last, *_ = case.run()
    to_out = RANDOM.normal(0, 1, whole.shape)
    expected = out.reshape(steps, batch, sides, hidden).permute(0, 2, 1, 3)
    np.testing.assert_allclose(whole, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    hidden_last = last[0] if operator == "LSTM" else last
    np.testing.assert_allclose(own_last, hidden_last.detach().numpy(), rtol=1e-10, atol=1e-12)
    weights = [weight for kind in kinds for weight in named(kind)]
    pulled = torch.autograd.grad((expected * torch.tensor(to_out)).sum(), [given[0], *weights])
    to_x, to_w, to_r, to_b, *_ = case.pull((to_out, *(None for _ in range(1 + len(cells)))))
    np.testing.assert_allclose(to_x, pulled[0].numpy(), rtol=1e-9, atol=1e-11)
    parts = [list(pulled[1 + kind * sides : 1 + (kind + 1) * sides]) for kind in range(4)]
    for found, part in ((to_w, parts[0]), (to_r, parts[1])):
        np.testing.assert_allclose(found, ordered(part), rtol=1e-9, atol=1e-11)
    both = np.concatenate([ordered(parts[2]), ordered(parts[3])], axis=1)[..., 0]
    np.testing.assert_allclose(to_b, both, rtol=1e-9, atol=1e-11)
