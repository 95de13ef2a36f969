"""Gradients at ONNX's node tests are those of JAX and of PyTorch, where they have the operator."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx_in_jax
import onnx_in_torch
import pytest
from gate_cases import Case, spread
from gradient_checks import drawn_seeds, moving
from onnx_cases import called
from test_onnx_gradients import CASES, generator, smooth

TOLERANCES = {"float64": 1e-9, "float32": 1e-5}
#: Cases where a library computes something else or refuses, and why.
UNLIKE_JAX = {
    **dict.fromkeys(("test_maxpool_2d_dilations", "test_maxpool_3d_dilations",
                     "test_maxpool_3d_dilations_use_ref_impl",
                     "test_maxpool_3d_dilations_use_ref_impl_large"),
                    "has no gradient of the largest element of dilated windows"),
    **dict.fromkeys(("test_scatter_elements_with_reduction_mul", "test_scatternd_multiply"),
                    "has no gradient of products at places that may repeat"),
}  # fmt: skip
#: Cases of Resize that PyTorch's interpolate has too; its other modes, axes and sizes differ.
INTERPOLATED = {
    f"test_resize_{each}"
    for each in (
        "downsample_scales_cubic", "downsample_scales_linear", "downsample_scales_nearest",
        "downsample_sizes_cubic", "upsample_scales_cubic", "upsample_scales_cubic_align_corners",
        "upsample_scales_linear", "upsample_scales_linear_align_corners",
        "upsample_scales_nearest", "upsample_sizes_cubic",
    )
}  # fmt: skip


def unlike_jax(name: str) -> str | None:
    return UNLIKE_JAX.get(name)


def unlike_torch(name: str) -> str | None:
    """Why PyTorch's function differs from the case, or refuses it."""
    case = called(name)
    a = case.gate.complete(case.attributes)
    match case.operator:
        case "Attention":
            more = [x for x in case.inputs[3:] if x is not None]
            mask = case.inputs[3] if len(case.inputs) > 3 else None
            short = mask is not None and mask.shape[-1] != case.inputs[1].shape[-2]
            windowed = a["left_window_size"] >= 0 or a["right_window_size"] >= 0
            if a["softcap"] or len(more) > (mask is not None) or short or windowed:
                return "has no caches, lengths, softcap, windows, or masks that end early"
            if a["is_causal"] and more:
                return "takes no mask beside is_causal"
        case "Resize" if name not in INTERPOLATED:
            return "interpolate has fewer modes, and takes sizes and scales of all spatial axes"
        case "LSTM" if len(case.inputs) == 8:
            return "has no peepholes"
        case "Pow" if any(str(x.dtype).startswith("uint") for x in case.inputs):
            return "has no arithmetic on unsigned integers"
    return None


OF_JAX = [name for name in CASES if called(name).operator in onnx_in_jax.FUNCTIONS]
OF_TORCH = [name for name in CASES if called(name).operator in onnx_in_torch.FUNCTIONS]
IN_JAX = [name for name in OF_JAX if unlike_jax(name) is None]
IN_TORCH = [name for name in OF_TORCH if unlike_torch(name) is None]


def difference(name: str, pull: Callable[..., Any]) -> float:
    """The largest difference to the gradients elsewhere, relative to the largest gradient.

    Those outputs are seeded that are computed elsewhere: the first ones.
    """
    case = smooth(name)
    seeds = drawn_seeds(case.run(), generator(name))
    outs, gradients = pull(case, seeds, moving(case))
    for out, expected in zip(case.run(), outs, strict=False):
        if np.asarray(out).dtype.kind == "f":
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    found = case.pull(tuple(seed if k < len(outs) else None for k, seed in enumerate(seeds)))
    worst = 0.0
    for slot, expected in zip(moving(case), gradients, strict=True):
        if found[slot] is None:
            continue
        assert found[slot].shape == expected.shape
        both = np.asarray(found[slot], float), np.asarray(expected, float)
        worst = max(worst, float(np.max(np.abs(both[0] - both[1]))) / spread(*both))
    return worst


def pulled_in_jax(case: Case, seeds: tuple[Any, ...], slots: list[int]) -> tuple[Any, Any]:
    function = onnx_in_jax.FUNCTIONS[case.operator]
    attributes = case.gate.complete(case.attributes)

    def outputs(*chosen: Any) -> tuple[Any, ...]:
        given = dict(zip(slots, chosen, strict=True))
        out = function(*(given.get(k, x) for k, x in enumerate(case.inputs)), **attributes)
        return out if isinstance(out, tuple) else (out,)

    def both(chosen: list[Any]) -> Any:
        outs, back = jax.vjp(outputs, *chosen)
        return outs, back(tuple(map(jax.numpy.asarray, seeds[: len(outs)])))

    with jax.enable_x64(True):
        chosen = [case.inputs[slot] for slot in slots]
        outs, gradients = jax.jit(both, compiler_options=onnx_in_jax.QUICKLY)(chosen)
    return [*map(np.asarray, outs)], [*map(np.asarray, gradients)]


def pulled_in_torch(case: Case, seeds: tuple[Any, ...], slots: list[int]) -> tuple[Any, Any]:
    import torch

    function = onnx_in_torch.FUNCTIONS[case.operator]
    given = [None if x is None else torch.tensor(np.array(x)) for x in case.inputs]
    for slot in slots:
        given[slot].requires_grad_()
    out = function(*given, **case.gate.complete(case.attributes))
    outs = out if isinstance(out, tuple) else (out,)
    pairs = [
        (each, torch.tensor(np.asarray(seed)))
        for each, seed in zip(outs, seeds, strict=False)
        if each.requires_grad
    ]
    chosen = [given[slot] for slot in slots]
    gradients = torch.autograd.grad(
        [each for each, _ in pairs], chosen, [seed for _, seed in pairs], allow_unused=True
    )
    return [each.detach().numpy() for each in outs], [
        np.zeros(x.shape) if each is None else each.numpy()
        for x, each in zip(chosen, gradients, strict=True)
    ]


def tolerance(name: str) -> float:
    kinds = {str(np.asarray(out).dtype) for out in smooth(name).run()}
    return TOLERANCES["float32" if "float32" in kinds else "float64"]


def checked_elsewhere() -> dict[str, Counter[str]]:
    """For each library, how many cases of each operator are checked."""
    names = {"JAX": IN_JAX, "PyTorch": IN_TORCH}
    return {library: Counter(called(n).operator for n in names[library]) for library in names}


def agrees(name: str, pull: Callable[..., Any]) -> bool:
    try:
        return difference(name, pull) <= tolerance(name)
    except (AssertionError, NotImplementedError, RuntimeError, ValueError):
        return False


def where_torch_is(names: list[str]) -> list[Any]:
    """The names; where PyTorch is not installed, one that is skipped."""
    if importlib.util.find_spec("torch") is not None:
        return names
    missing = pytest.mark.skip(reason="PyTorch is not installed: it is large")
    return [pytest.param("", marks=missing)]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_JAX)
def test_gradient_is_that_of_jax(name: str) -> None:
    assert difference(name, pulled_in_jax) <= tolerance(name), str(smooth(name))


@pytest.mark.parametrize("name", where_torch_is(IN_TORCH))
def test_gradient_is_that_of_pytorch(name: str) -> None:
    assert difference(name, pulled_in_torch) <= tolerance(name), str(smooth(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OF_JAX if unlike_jax(name)])
def test_only_what_jax_lacks_is_left_out(name: str) -> None:
    assert not agrees(name, pulled_in_jax), unlike_jax(name)


@pytest.mark.parametrize("name", where_torch_is([n for n in OF_TORCH if unlike_torch(n)]))
def test_only_what_pytorch_lacks_is_left_out(name: str) -> None:
    assert not agrees(name, pulled_in_torch), unlike_torch(name)
