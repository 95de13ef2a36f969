"""Gradients at ONNX's node tests are those that finite differences find, and again for theirs."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from gate_cases import Case
from gradient_checks import drawn_seeds, drawn_ways, first_order, moved, moving, second_order
from onnx_cases import called, listed

#: Step of the difference, and the errors allowed relative to it and to the largest output, by
#: order and by the outputs' narrowest data type.
FIRST = {"float64": (1e-6, 1e-6, 2e-7), "float32": (1e-2, 1e-4, 1e-4)}
SECOND = {"float64": (1e-5, 1e-5, 1e-6), "float32": (1e-2, 1e-4, 1e-4)}

KINK = "an element lies exactly at a kink, a jump or a tie, or two steps from it"
CELL = "sampled exactly between two cells, where the interpolation's slope or curvature jumps"
#: Cases whose inputs are first moved a little, at random, and why.
MOVED = {
    "test_acosh_example": "the derivative at the edge of the domain, 1, is infinite",
    "test_pow": "the edge of the domain, 0: powers of negative bases are no numbers",
    **dict.fromkeys(("test_mod_float_edge_cases_fmod_0_float32",
                     "test_mod_float_edge_cases_fmod_0_float64"), "divides by zero"),
    **dict.fromkeys(
        ("test_elu_example", "test_floor_example", "test_leakyrelu_example", "test_round",
         "test_selu_example", "test_sign", "test_softsign_example",
         "test_thresholdedrelu_example"), KINK),
    **dict.fromkeys(("test_scatternd_max", "test_scatternd_min"), KINK),
    **dict.fromkeys(
        ("test_hardmax_one_hot", "test_maxpool_3d_dilations",
         "test_maxpool_3d_dilations_use_ref_impl"), KINK),
    **dict.fromkeys(("test_onehot_with_axis", "test_onehot_with_negative_axis"), KINK),
    "test_dynamicquantizelinear_min_adjusted": KINK,
    "test_l1normalization_axis_last": KINK,
    "test_l2normalization_axis_0": "a vector of zeros has no direction",
    **dict.fromkeys(
        ("test_basic_deform_conv_with_padding", "test_basic_deform_conv_without_padding",
         "test_deform_conv_with_mask_bias", "test_deform_conv_with_multiple_offset_groups",
         "test_gridsample_aligncorners_true", "test_gridsample_bilinear",
         "test_gridsample_bilinear_align_corners_0_additional_1",
         "test_gridsample_bilinear_align_corners_1_additional_1", "test_gridsample_nearest",
         "test_gridsample_nearest_align_corners_0_additional_1",
         "test_gridsample_nearest_align_corners_1_additional_1",
         "test_gridsample_reflection_padding",
         "test_gridsample_volumetric_bilinear_align_corners_0",
         "test_gridsample_volumetric_bilinear_align_corners_1",
         "test_gridsample_volumetric_nearest_align_corners_0",
         "test_gridsample_volumetric_nearest_align_corners_1", "test_roialign_aligned_false",
         "test_roialign_mode_max"), CELL),
}  # fmt: skip
MOST_MOVED = 0.1
#: Where the first input of a moved case must stay above.
INSIDE = {"Acosh": 1.0, "Pow": 0.0}

INFINITE = "infinite numerators: the gradient graph multiplies zeros by them"
#: (case, order): why it is not held against differences at all.
EXCEPTIONS = {
    (f"test_mod_float_edge_cases_fmod_0_{dtype}", 2): INFINITE for dtype in ("float32", "float64")
}

#: (operator, input): why a floating input has no gradient.
NOT_DIFFERENTIATED = {("OneHot", "indices"): "a position, though ONNX lets it be floating"}


@cache
def wide(name: str) -> Case:
    """The case with floating inputs of float64."""
    return called(name).as_dtype("float64")


def yields_floats(name: str) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    outputs = listed()[name].model.graph.output
    return any(each.type.tensor_type.elem_type in floats for each in outputs)


#: Every case that has a floating input to differentiate, and a floating output.
CASES = sorted(name for name in listed() if yields_floats(name) and moving(called(name)))
BY_ORDER = {order: [each for each in CASES if (each, order) not in EXCEPTIONS] for order in (1, 2)}


def checked_against_differences() -> dict[int, Counter[str]]:
    """For each order, how many cases of each operator are checked."""
    return {
        order: Counter(called(name).operator for name in names) for order, names in BY_ORDER.items()
    }


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def off_its_kink(name: str) -> Case:
    case, rng = wide(name), generator(name)
    there = moved(case, drawn_ways(case, rng), MOST_MOVED)
    if case.operator in INSIDE:
        there = (np.maximum(there[0], INSIDE[case.operator] + MOST_MOVED), *there[1:])
    return Case(case.operator, there, case.attributes)


def smooth(name: str) -> Case:
    return off_its_kink(name) if name in MOVED else wide(name)


def narrowest(case: Case) -> str:
    kinds = {str(out.dtype) for out in map(np.asarray, case.run()) if out.dtype.kind == "f"}
    return min(kinds, key=lambda kind: np.dtype(kind).itemsize)


def agrees(name: str, case: Case, order: int) -> tuple[bool, tuple[float, float]]:
    """Whether gradient and difference agree, and both."""
    steps: dict[int, tuple[Callable[..., tuple[float, float, float]], dict[str, tuple[float, ...]]]]
    steps = {1: (first_order, FIRST), 2: (second_order, SECOND)}
    function, by_dtype = steps[order]
    step, relative, absolute = by_dtype[narrowest(case)]
    with np.errstate(all="ignore"):
        found, expected, scale = function(case, generator(name), step)
    close = abs(found - expected) <= relative * abs(expected) + absolute * scale
    return bool(close), (found, expected)


@pytest.mark.parametrize("name", BY_ORDER[1])
def test_gradient_is_the_finite_difference(name: str) -> None:
    close, both = agrees(name, smooth(name), 1)
    assert close, (both, str(smooth(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_ORDER[2])
def test_gradient_of_the_gradient_is_the_finite_difference(name: str) -> None:
    close, both = agrees(name, smooth(name), 2)
    assert close, (both, str(smooth(name)))


@pytest.mark.parametrize("name", MOVED)
def test_only_cases_at_a_kink_are_moved(name: str) -> None:
    assert not all(agrees(name, wide(name), order)[0] for order in (1, 2)), "no need to move it"


@pytest.mark.parametrize(("name", "order"), EXCEPTIONS)
def test_only_cases_that_fail_are_excepted(name: str, order: int) -> None:
    assert not agrees(name, off_its_kink(name), order)[0], "no need to except it"


def test_every_floating_input_is_differentiated() -> None:
    without = set()
    for name in CASES:
        case = wide(name)
        pulled = case.pull(drawn_seeds(case.run(), generator(name)))
        declared = case.gate.declared_inputs(len(case.inputs))
        without |= {
            (case.operator, declared[slot].name) for slot in moving(case) if pulled[slot] is None
        }
    assert without == set(NOT_DIFFERENTIATED)
