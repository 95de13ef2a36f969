"""Derivatives where formulas divide by what is 0: at zeros, negative numbers, singular matrices.

Where a derivative exists, it is neither left out nor taken as 0. Where none does, at a kink, a tie
or the edge of a domain, the differences to both sides say so, and nothing is asked.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
from gate_cases import Case, cases_of, is_floating
from gradient_checks import Runs, drawn_seeds, moved, moving, one_node, run, weighted

from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.errors import Refusal
from gradwire_server.gates import GATES
from gradwire_server.limits import Limits

STEP = 2e-4
LARGEST = 1e3  # beyond, a step is lost
STEEP = 1e6  # a derivative that is no number, or changes within a step
TOLERANCE = 1e-4
#: Cases of each gate in the fast test and in the slow one.
FEW, MANY = 2, 6
#: Up to so many inputs each is also changed alone.
MOST_ALONE = 3


def cases(operator: str) -> Iterator[Case]:
    """Those whose numbers are floating and not large, in float64."""
    for case in cases_of(GATES[operator]):
        case = case.as_dtype("float64")
        outs = case.run()
        if (
            moving(case)
            and any(is_floating(out) and np.size(out) for out in outs)
            and all(np.abs(case.inputs[slot]).max() < LARGEST for slot in moving(case))
        ):
            yield case


def special_points(case: Case, all_points: bool) -> Iterator[tuple[str, Case]]:
    """The same call at other numbers: a few, or all, in all inputs and in each of a few."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))

    def first_zero(x: Any) -> Any:
        return np.where(np.arange(x.size).reshape(x.shape) == 0, 0.0, x)

    def one_row(x: Any) -> Any:
        return x[..., :1] * x[..., :1, :] if x.ndim > 1 else x

    def zero_row(x: Any) -> Any:
        return x * (np.arange(x.shape[-2]) > 0)[:, None] if x.ndim > 1 else x

    changes: dict[str, Callable[[Any], Any]] = {
        "as it is": lambda x: x,
        "zeros": np.zeros_like,
        "a zero": first_zero,
        "negative": np.negative,
        "ones": np.ones_like,
        "whole": lambda x: rng.integers(-2, 3, x.shape).astype(float),
        "rank 1": one_row,
        "a row of zeros": zero_row,
    }
    slots = moving(case)
    alone = [[slot] for slot in slots if 1 < len(slots) <= MOST_ALONE and all_points]
    for name in changes if all_points else ("a zero", "rank 1"):
        change = changes[name]
        for chosen in [slots, *alone]:
            inputs = tuple(
                np.asarray(change(x)) if slot in chosen else x for slot, x in enumerate(case.inputs)
            )
            yield f"{name} in {chosen}", Case(case.operator, inputs, case.attributes)


def fault(function: Callable[[float], float], here: float, found: float) -> str | None:
    """How a derivative is wrong, where the differences to both sides say that there is one."""
    known = {0.0: here}

    def there(step: float) -> float:
        """The smaller steps come by places of the larger ones."""
        if step not in known:
            known[step] = function(step)
        return known[step]

    # Most derivatives are the difference of the nearest two, with ten times the digits asked for
    # below, and the number here lies between them: no other difference can find a fault then.
    before, after = there(-STEP), there(STEP)
    if not all(abs(each) < STEEP for each in (before, here, after)):  # nor where one is no number
        return None
    middle, sag = (after - before) / (2 * STEP), here - (before + after) / 2
    size = max(1.0, abs(middle))
    if abs(found - middle) < TOLERANCE / 10 * size and abs(sag) < TOLERANCE * size:
        return None
    slopes, apart = [], []  # what is around, where the number here is another
    for step in (STEP, STEP / 2):
        at = [there(place * step) for place in range(-2, 3)]
        if not all(abs(each) < STEEP for each in at):
            return None
        slopes.append((3 * at[2] - 4 * at[1] + at[0]) / (2 * step))
        slopes.append((4 * at[3] - 3 * at[2] - at[4]) / (2 * step))
        middle = (at[3] - at[1]) / (2 * step)
        slopes.append(middle)
        neighbours = (at[1] + at[3]) / 2
        size = max(1.0, abs(neighbours))
        if abs(at[3] - at[1]) < TOLERANCE * 10 * size < abs(at[2] - neighbours) / 10:
            apart.append(neighbours)
        steepest = max(1.0, *map(abs, slopes))
        if not apart and max(slopes) - min(slopes) > 2 * TOLERANCE * steepest:
            return None  # a kink, whatever the smaller step says
    if len(apart) == 2 and abs(apart[1] - apart[0]) < TOLERANCE * 10 * size:
        return f"is {at[2]} here alone, and {neighbours} around"
    if max(slopes) - min(slopes) > TOLERANCE * steepest:
        return None
    if not abs(found - middle) <= TOLERANCE * steepest:
        return f"has the derivative {middle}, but it is said to be {found}"
    return None


def faults(operator: str, all_points: bool) -> list[str]:
    """Derivatives of first and second order that are wrong."""
    wrong = []
    for case in islice(cases(operator), MANY if all_points else FEW):
        backward = cache(partial(backward_of, case))  # it is the same at all points
        for point, there in special_points(case, all_points):
            try:
                found = [*faults_at(there, 7, backward)]
                # along one way both sides of a kink may happen to agree
                confirmed = found and [*faults_at(there, 8, backward)]
            except Refusal:
                continue
            wrong += [f"{there}, {point}: {each}" for each in found if confirmed]
    return wrong


def backward_of(case: Case) -> Runs:
    return Runs(gradient_graph(one_node(case), (), {}, Limits()))


def faults_at(case: Case, seed: int, backward: Callable[[], Runs]) -> Iterator[str]:
    """What is wrong along a random way."""
    rng = np.random.default_rng(seed)
    outs = case.run()
    if not all(np.isfinite(out).all() for out in outs if is_floating(out)):
        return  # outside the domain
    seeds = drawn_seeds(outs, rng)
    pulled = case.pull(seeds)
    slots = [slot for slot in moving(case) if pulled[slot] is not None]
    ways = {slot: rng.standard_normal(case.inputs[slot].shape) for slot in slots}
    weights = [rng.standard_normal(case.inputs[slot].shape) for slot in slots]

    def there(step: float) -> Case:
        return Case(case.operator, moved(case, ways, step), case.attributes)

    def slope(gradients: list[Any]) -> float:
        return weighted(weights, [gradients[slot] for slot in slots])

    along = weighted(ways.values(), [pulled[slot] for slot in slots])
    first = fault(lambda step: weighted(seeds, there(step).run()), weighted(seeds, outs), along)
    if first:
        yield f"the output {first}"
    bound = {f"x{slot}": case.inputs[slot] for slot in moving(case)}
    bound |= {f"grad/out{slot}": seed for slot, seed in enumerate(seeds) if seed is not None}
    made = {output.name for output in backward().graph.outputs}
    asked = {
        f"grad/x{slot}": weight
        for slot, weight in zip(slots, weights, strict=True)
        if f"grad/x{slot}" in made
    }
    if not asked:
        return
    _, curved = backward()(bound, asked)
    curve = weighted(
        [ways[slot] for slot in slots if f"x{slot}" in curved],
        [curved[f"x{slot}"] for slot in slots if f"x{slot}" in curved],
    )
    second = fault(lambda step: slope(there(step).pull(seeds)), slope(pulled), curve)
    if second:
        yield f"the gradient {second}"


@pytest.mark.parametrize("operator", GATES)
def test_derivatives_at_special_points(operator: str) -> None:
    assert not faults(operator, all_points=False)


@pytest.mark.slow
@pytest.mark.parametrize("operator", GATES)
def test_derivatives_at_all_special_points(operator: str) -> None:
    assert not faults(operator, all_points=True)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_cofactors_are_derived_at_matrices_of_every_rank(rows: int, order: int) -> None:
    """One batch of all ranks; the differences are those of a polynomial, of enough points."""
    rng = np.random.default_rng(rows)
    factors = [rng.standard_normal((2, rows, rank)) for rank in range(rows + 1)]
    x = np.stack([left @ np.swapaxes(right, 0, 1) for left, right in factors])
    *rest, direction = (rng.standard_normal(x.shape) for _ in range(order))

    def moved_by(step: float) -> Any:
        return Case("Cofactor", (x + step * direction, *rest), {}).run()[0]

    found = Case("Cofactor", (x, *rest, direction), {}).run()[0]
    odd = [(moved_by(0.01 * place) - moved_by(-0.01 * place)) / 0.02 for place in (1, 2, 3)]
    expected = (45 * odd[0] - 9 * odd[1] + odd[2]) / 30
    np.testing.assert_allclose(found, expected, atol=1e-10 * max(1, np.abs(found).max()))


def test_a_derivative_of_det_that_is_not_computed_is_refused() -> None:
    big = np.eye(102)
    case = Case("Cofactor", (big, big), {})
    with pytest.raises(Refusal, match="along two for up to 101 rows"):
        case.pull((big,))


@pytest.mark.parametrize("zeros", range(5))
def test_products_of_scattered_updates_are_derived_through_zeros(zeros: int) -> None:
    """Every derivative of second order, beside the products of all other factors."""
    updates = np.array([2.0, -3.0, 0.5, 4.0, 7.0])
    updates[:zeros] = 0.0
    places = np.array([1, 0, 1, 1, 0])
    data = np.array([5.0, -2.0])
    case = Case("ScatterElements", (data, places, updates), {"reduction": "mul"})
    graph = gradient_graph(one_node(case), (), {}, Limits())
    for own in range(5):
        weights = {"grad/x2": np.eye(5)[own], "grad/x0": np.zeros(2)}
        _, found = run(graph, {"grad/out0": np.ones(2)}, weights)
        expected = [
            0.0
            if other == own or places[other] != places[own]
            else data[places[own]]
            * np.prod(
                [updates[i] for i in range(5) if places[i] == places[own] and i not in (own, other)]
            )
            for other in range(5)
        ]
        np.testing.assert_allclose(found["x2"], expected, atol=1e-12)
