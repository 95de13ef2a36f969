"""Makes the models in this folder, each with its own exporter, and what its framework computes.

NAME.onnx is the model; NAME.npz has its inputs, outputs, seeds, and the gradients of its parameters
under "input:x", "output:y", "seed:y" and "gradient:w". Needs torch, onnxscript and skl2onnx, which
are no dependencies of the tests: `python tests/models/make.py [FOLDER]`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

Arrays = dict[str, np.ndarray]


class Residual(nn.Module):
    """A ResNet block: two convolutions with batch norm, and a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(3, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Transformer(nn.Module):
    """A pre-norm decoder block with causal attention over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.places = nn.Parameter(torch.randn(6, 8) / 3)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places
        heads = self.mix(self.norm1(x)).reshape(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(2, 6, 8))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, padding=1)
        self.bottom = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.merge = nn.Conv2d(12, 4, 3, padding=1)
        self.leave = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.silu(self.enter(x))
        b = functional.silu(self.down(functional.max_pool2d(a, 2)))
        c = functional.silu(self.bottom(functional.avg_pool2d(b, 2)))
        d = functional.silu(self.merge(torch.cat([b, self.up(c)], 1)))
        d = functional.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
        return self.leave(torch.cat([a, d], 1))


class Recurrent(nn.Module):
    """A recurrent layer, and a head on its last step."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][-1])


class Mobile(nn.Module):
    """An inverted residual with a depthwise convolution and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.hardswish(self.depth(functional.hardswish(self.expand(x))))
        gate = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(out, 1)))
        return x + self.project(out * functional.hardsigmoid(self.excite(gate)))


class Mixture(nn.Module):
    """A mixture density: log-likelihood of targets, by logsumexp."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(3, 8), nn.Linear(8, 9)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        heads = self.heads(torch.tanh(self.body(x)))
        weight, mean, log_scale = heads[:, :3], heads[:, 3:6], heads[:, 6:]
        gap = (target - mean) * torch.exp(-log_scale)
        return torch.logsumexp(torch.log_softmax(weight, -1) - 0.5 * gap**2 - log_scale, dim=-1)


def torch_models() -> dict[str, tuple[nn.Module, tuple[Tensor, ...], bool]]:
    """The module, its inputs, and whether the newer exporter makes it."""
    torch.manual_seed(20261125)
    mlp = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ELU(), nn.Linear(6, 3))
    convnet = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip
    autoencoder = nn.Sequential(
        nn.Conv1d(2, 8, 4, stride=2, padding=1), nn.GroupNorm(2, 8), nn.Mish(),
        nn.InstanceNorm1d(8, affine=True), nn.ConvTranspose1d(8, 2, 4, stride=2, padding=1),
        nn.Softplus(),
    )  # fmt: skip
    return {
        "mlp": (mlp, (torch.randn(4, 5),), True),
        "convnet_batch_norm": (convnet, (torch.randn(2, 2, 12, 12),), False),
        "resnet_block": (Residual(), (torch.randn(2, 3, 8, 8),), True),
        "transformer_block": (Transformer(), (torch.randint(11, (2, 6)),), True),
        "unet": (UNet(), (torch.randn(1, 1, 8, 8),), True),
        "lstm": (Recurrent(nn.LSTM(3, 4, bidirectional=True), 8), (torch.randn(5, 2, 3),), False),
        "gru": (Recurrent(nn.GRU(3, 4, num_layers=2), 4), (torch.randn(5, 2, 3),), False),
        "autoencoder": (autoencoder, (torch.randn(2, 2, 8),), False),
        "mobile_block": (Mobile(), (torch.randn(1, 4, 6, 6),), True),
        "mixture_density": (Mixture(), (torch.randn(4, 3), torch.randn(4, 1)), True),
    }


def export_torch(path: Path, module: nn.Module, inputs: tuple[Tensor, ...], newer: bool) -> Arrays:
    for name, buffer in module.named_buffers():  # statistics as a trained network has them
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    for parameter in module.parameters():  # equal ones would become one initializer
        parameter.data += torch.randn_like(parameter) / 10
    module.eval()
    names = [f"x{slot}" for slot in range(len(inputs))]
    options: dict[str, Any] = (
        {"dynamo": True, "optimize": False, "external_data": False}  # else weights are folded
        if newer
        else {
            "dynamo": False, "do_constant_folding": False, "opset_version": 17,
            "training": torch.onnx.TrainingMode.PRESERVE,  # else batch norm is folded away
        }
    )  # fmt: skip
    torch.onnx.export(
        module, inputs, path, input_names=names, output_names=["y"], verbose=False, **options
    )
    slim = onnx.load(path)
    for node in slim.graph.node:  # paths of the machine that made it
        del node.metadata_props[:]
        node.doc_string = ""
    del slim.graph.value_info[:]
    onnx.save(slim, path)
    out = module(*inputs)
    seed = torch.randn_like(out)
    out.backward(seed)
    return {
        **{f"input:{name}": x.numpy() for name, x in zip(names, inputs, strict=True)},
        "output:y": out.detach().numpy(),
        "seed:y": seed.numpy(),
        **{
            f"gradient:{name}": each.grad.numpy()
            for name, each in module.named_parameters()
            if each.grad is not None
        },
    }


def sklearn_models() -> dict[str, tuple[Any, list[np.ndarray]]]:
    """Fitted pipelines with the arrays that are their parameters."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier

    x, target = load_iris(return_X_y=True)
    logistic = LogisticRegression().fit(x, target)
    mlp = MLPClassifier((6, 5), "tanh", random_state=1, max_iter=50).fit(x, target)
    ridge = Ridge().fit(x[:, :3], x[:, 3:])
    return {
        "sklearn_logistic_regression": (logistic, [logistic.coef_, logistic.intercept_]),
        "sklearn_mlp_classifier": (mlp, [*mlp.coefs_, *mlp.intercepts_]),
        "sklearn_ridge": (ridge, [ridge.coef_, ridge.intercept_]),
    }


def export_sklearn(path: Path, fitted: Any, parameters: list[np.ndarray]) -> Arrays:
    """The numeric part, without labels; gradients are differences of the framework's numbers."""
    from skl2onnx import to_onnx

    x = np.random.default_rng(5).uniform(0.5, 3, (4, fitted.n_features_in_))
    classifies = hasattr(fitted, "predict_proba")
    model = to_onnx(
        fitted, x[:1],
        options={"zipmap": False} if classifies else None,
        black_op={"LinearClassifier", "LinearRegressor", "Normalizer"},
    )  # fmt: skip
    output = model.graph.output[-1].name
    numeric = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], [output])
    numeric.producer_name = model.producer_name
    onnx.save(numeric, path)
    predict: Callable[..., Any] = fitted.predict_proba if classifies else fitted.predict
    out = np.asarray(predict(x))
    out = out.reshape(len(x), -1)
    seed = np.random.default_rng(6).normal(size=out.shape)
    found = {"input:X": x, f"output:{output}": out, f"seed:{output}": seed}
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in numeric.graph.initializer}
    for parameter in parameters:
        gradient = np.zeros_like(parameter)
        for place in np.ndindex(parameter.shape):
            kept, sides = parameter[place], []
            for step in (1e-5, -1e-5):
                parameter[place] = kept + step
                sides.append(np.vdot(np.asarray(predict(x)).reshape(out.shape), seed))
            parameter[place] = kept
            gradient[place] = (sides[0] - sides[1]) / 2e-5
        name, turned = _stored_as(parameter, stored)
        found[f"gradient:{name}"] = (gradient.T if turned else gradient).reshape(stored[name].shape)
    return found


def _stored_as(parameter: np.ndarray, stored: Arrays) -> tuple[str, bool]:
    """The initializer that holds a parameter, and whether it is transposed there."""
    for name, array in stored.items():
        for turned, each in ((False, parameter), (True, parameter.T)):
            flat, wanted = array.squeeze(), each.squeeze()
            if flat.shape == wanted.shape and np.allclose(flat, wanted, rtol=1e-6):
                return name, turned
    raise LookupError(f"no initializer holds the parameter of shape {parameter.shape}")


def make(folder: Path, only: str | None = None) -> None:
    """Writes all models, or those made by "torch" or "sklearn"."""
    warnings.simplefilter("ignore")
    makers: dict[str, Callable[[Path], Arrays]] = {}
    if only in (None, "torch"):
        for name, entry in torch_models().items():
            makers[name] = lambda path, entry=entry: export_torch(path, *entry)  # type: ignore[misc]
    if only in (None, "sklearn"):
        for name, fitted in sklearn_models().items():
            makers[name] = lambda path, entry=fitted: export_sklearn(path, *entry)  # type: ignore[misc]
    for name, maker in makers.items():
        np.savez_compressed(folder / f"{name}.npz", **maker(folder / f"{name}.onnx"))
        print(f"{name}: {(folder / f'{name}.onnx').stat().st_size} bytes")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
