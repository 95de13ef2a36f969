"""Trees of ai.onnx.ml as gates: all trees go down one level at a time, for all rows at once.

What a tree yields is constant between its splits, so its gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradwire import tensors
from gradwire.errors import InvalidRequestError, LimitError, UnsupportedError
from gradwire.onnx.ml_scores import (
    class_labels,
    floats_of,
    labelled,
    of_two_classes,
    post_transformed,
    unknown_choice,
)
from gradwire.onnx.values import MOST_ELEMENTS, Value

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader

#: The deepest tree that is read.
MOST_LEVELS = 1024
_LEAF = "LEAF"
_COMPARISONS = {
    "BRANCH_LEQ": "LessOrEqual",
    "BRANCH_LT": "Less",
    "BRANCH_GTE": "GreaterOrEqual",
    "BRANCH_GT": "Greater",
    "BRANCH_EQ": "Equal",
    "BRANCH_NEQ": "Equal",  # and Not
}
_MODES_BY_NUMBER = (*_COMPARISONS, "BRANCH_MEMBER")


@dataclass(frozen=True)
class Forest:
    """Nodes of all trees in one table; a leaf is its own successor."""

    modes: np.ndarray[Any, Any]
    features: np.ndarray[Any, Any]
    thresholds: np.ndarray[Any, Any]
    if_true: np.ndarray[Any, Any]
    if_false: np.ndarray[Any, Any]
    #: Whether a value that is missing, NaN, goes where true ones go.
    missing_is_true: np.ndarray[Any, Any]
    roots: np.ndarray[Any, Any]

    def depth(self) -> int:
        """How many levels of branches there are (LIMIT_EXCEEDED)."""
        reached = np.unique(self.roots)
        for level in range(MOST_LEVELS + 1):
            branches = reached[self.modes[reached] != _LEAF]
            if not branches.size:
                return level
            reached = np.unique(np.concatenate([self.if_true[branches], self.if_false[branches]]))
        raise LimitError(
            "LIMIT_EXCEEDED", f"its trees are deeper than {MOST_LEVELS} levels, or go in circles"
        )


def _regressor(reader: Reader, call: Call) -> list[Value]:
    """Sums, averages, or extremes over the trees of what their leaves say."""
    x = floats_of(reader, call.required(0))
    count = call.attributes.get("n_targets", 1)
    forest, weights = _forest(call, "target", count)
    scores = _aggregated(
        reader, x, forest, weights, call.attributes.get("aggregate_function", "SUM")
    )
    base = _real(call, "base_values")
    if base.size:
        scores = reader.one("Add", scores, reader.constant(base, x.dtype))
    return [post_transformed(reader, floats_of(reader, scores, ()), call)]


def _classifier(reader: Reader, call: Call) -> list[Value]:
    """Labels, and scores of each class; one sum may stand for two classes."""
    x = floats_of(reader, call.required(0))
    labels = class_labels(call, "classlabels_int64s")
    ids, base = {*call.attributes.get("class_ids", ())}, _real(call, "base_values")
    if len(labels) < 2:
        raise _unfit(f"it has {len(labels)} classes, but must have two or more")
    is_one_sum = len(labels) == 2 and len(ids) == 1
    if is_one_sum and base.size > (ids == {0}):
        raise UnsupportedError(
            "ATTRIBUTE_INVALID", f"{base.size} base_values for one sum of two classes are not read"
        )
    forest, weights = _forest(call, "class", len(labels))
    if is_one_sum:
        weights = weights[:, [*ids]]
    scores = _aggregated(reader, x, forest, weights, "SUM")
    if base.size:
        scores = reader.one("Add", scores, reader.constant(base, x.dtype))
    scores = floats_of(reader, scores, ())
    is_share = not (weights < 0).any()
    if ids == {0} and is_one_sum:
        return [*of_two_classes(reader, call, scores, labels, is_share, complement=False)]
    if is_one_sum:
        label, _ = of_two_classes(reader, call, scores, labels, is_share, complement=False)
        zeros = reader.one("Mul", scores, reader.constant(0, "float32"))
        scores = reader.emit("Concat", [zeros, scores], {"axis": 1})[0]
    else:
        label = labelled(reader, reader.one("ArgMax", scores, axis=1, keepdims=0), labels)
    return [label, post_transformed(reader, scores, call)]


def _ensemble(reader: Reader, call: Call) -> list[Value]:
    """Trees as operator set 5 of ai.onnx.ml writes them."""
    x = floats_of(reader, call.required(0), tensors.FLOATS)
    count = call.attributes.get("n_targets", 1)
    functions = ("AVERAGE", "SUM", "MIN", "MAX")
    function = call.attributes.get("aggregate_function", 1)
    if function not in range(len(functions)):
        raise unknown_choice("aggregate_function", function)
    forest, weights = _forest_of_5(call, count)
    scores = _aggregated(reader, x, forest, weights, functions[function])
    return [post_transformed(reader, scores, call)]


# -- going down ------------------------------------------------------------------------------------


def _aggregated(
    reader: Reader, x: Value, forest: Forest, weights: np.ndarray[Any, Any], function: str
) -> Value:
    """[rows, targets]: what the leaves that are reached say of each target."""
    places = _leaves(reader, x, forest)
    if function in ("MIN", "MAX"):
        weights = np.where(np.isnan(weights), np.inf if function == "MIN" else -np.inf, weights)
    else:
        weights = np.nan_to_num(weights, nan=0.0)
    taken = reader.one("Gather", reader.constant(weights, x.dtype), places)
    along = reader.constant([1])
    name = {"SUM": "ReduceSum", "AVERAGE": "ReduceMean", "MIN": "ReduceMin", "MAX": "ReduceMax"}
    if function not in name:
        raise unknown_choice("aggregate_function", function)
    found = reader.one(name[function], taken, along, keepdims=0)
    if not np.isinf(weights).any():
        return found
    is_untold = reader.one("IsInf", found)  # by every tree
    return reader.one("Where", is_untold, reader.constant(0, x.dtype), found)


def _leaves(reader: Reader, x: Value, forest: Forest) -> Value:
    """[rows, trees]: the leaf that each row reaches in each tree."""
    columns = {
        "features": reader.constant(forest.features),
        "thresholds": reader.constant(forest.thresholds, x.dtype),
        "if_true": reader.constant(forest.if_true),
        "if_false": reader.constant(forest.if_false),
    }
    modes = sorted({*forest.modes.tolist()} - {_LEAF})
    numbers = np.array([modes.index(each) if each in modes else 0 for each in forest.modes])
    depth = forest.depth()
    reader.count_steps(depth * (7 + 3 * len(modes)))
    if not depth:  # every tree is a leaf, the same for all rows: 0 * rows makes as many of them
        first = reader.one("Gather", x, reader.constant([0]), axis=1)
        none = reader.one("Less", first, first)
        zeros = reader.one("Cast", none, to=int(tensors.data_type("int64")))
        return reader.one("Add", zeros, reader.constant(forest.roots))
    places = reader.constant(forest.roots)
    for level in range(depth):
        features = reader.one("Gather", columns["features"], places)
        if level:
            values = reader.one("GatherElements", x, features, axis=1)
        else:
            values = reader.one("Gather", x, reader.constant(forest.features[forest.roots]), axis=1)
        thresholds = reader.one("Gather", columns["thresholds"], places)
        goes = _compared(reader, values, thresholds, modes[0])
        if len(modes) > 1:
            kind = reader.one("Gather", reader.constant(numbers), places)
            for number, mode in enumerate(modes[1:], 1):
                is_mode = reader.one("Equal", kind, reader.constant(number))
                other = _compared(reader, values, thresholds, mode)
                goes = reader.one("Where", is_mode, other, goes)
        if forest.missing_is_true.any():
            tracks = reader.one("Gather", reader.constant(forest.missing_is_true, "bool"), places)
            is_missing = reader.one("And", reader.one("IsNaN", values), tracks)
            goes = reader.one("Or", goes, is_missing)
        left, right = (
            reader.one("Gather", columns[side], places) for side in ("if_true", "if_false")
        )
        places = reader.one("Where", goes, left, right)
    return places


def _compared(reader: Reader, values: Value, thresholds: Value, mode: str) -> Value:
    found = reader.one(_COMPARISONS[mode], values, thresholds)
    return reader.one("Not", found) if mode == "BRANCH_NEQ" else found


# -- tables ----------------------------------------------------------------------------------------


def _forest(call: Call, kind: str, count: int) -> tuple[Forest, np.ndarray[Any, Any]]:
    """Nodes, and the weights of leaves for each target, as older operator sets write them."""
    trees, numbers = _column(call, "nodes_treeids"), _column(call, "nodes_nodeids")
    length = trees.size
    modes = np.array(call.attributes.get("nodes_modes") or (), object)
    missing = _column(call, "nodes_missing_value_tracks_true")
    columns = {
        name: _column(call, f"nodes_{name}")
        for name in ("nodeids", "featureids", "truenodeids", "falsenodeids")
    }
    thresholds = _real(call, "nodes_values")
    sizes = {each.size for each in (modes, thresholds, *columns.values())}
    if sizes != {length} or missing.size not in (0, length) or not length:
        raise _unfit("its attributes nodes_... have different lengths, or none")
    _require_modes(modes, (*_COMPARISONS, _LEAF))
    place_of = {
        each: place for place, each in enumerate(zip(trees.tolist(), numbers.tolist(), strict=True))
    }
    own, is_leaf = np.arange(length), modes == _LEAF
    successors = []
    for name in ("truenodeids", "falsenodeids"):
        asked = zip(trees.tolist(), columns[name].tolist(), strict=True)
        found = np.array([place_of.get(each, -1) for each in asked])
        if (found[~is_leaf] < 0).any():
            raise _unfit("a branch leads to a node that is not there")
        successors.append(np.where(is_leaf, own, found))
    _, roots = np.unique(trees, return_index=True)
    forest = Forest(
        modes,
        np.where(is_leaf, 0, columns["featureids"]),
        np.where(is_leaf, 0, thresholds),
        successors[0],
        successors[1],
        missing.astype(bool) if missing.size else np.zeros(length, bool),
        np.sort(roots),
    )
    ids = _column(call, f"{kind}_ids")
    weights = _real(call, f"{kind}_weights")
    leaves = zip(
        _column(call, f"{kind}_treeids").tolist(),
        _column(call, f"{kind}_nodeids").tolist(),
        strict=False,
    )
    places = np.array([place_of.get(each, -1) for each in leaves], np.int64)
    return forest, _weights(length, count, places, ids, weights)


def _forest_of_5(call: Call, count: int) -> tuple[Forest, np.ndarray[Any, Any]]:
    """The same of operator set 5, where leaves are numbered by themselves."""
    names = ("featureids", "truenodeids", "falsenodeids", "trueleafs", "falseleafs")
    columns = {name: _column(call, f"nodes_{name}") for name in names}
    splits = _real(call, "nodes_splits")
    numbers = _column(call, "nodes_modes")
    targets, weights = _column(call, "leaf_targetids"), _real(call, "leaf_weights")
    length = splits.size
    missing = _column(call, "nodes_missing_value_tracks_true")
    sizes = {each.size for each in (numbers, *columns.values())}
    if sizes != {length} or missing.size not in (0, length) or targets.size != weights.size:
        raise _unfit("its attributes nodes_... and leaf_... have different lengths")
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(_MODES_BY_NUMBER):
        raise _unfit(f"nodes_modes are from {numbers.min()} to {numbers.max()}")
    roots = _column(call, "tree_roots")
    successors = []
    for side in ("true", "false"):
        leads, ends = columns[f"{side}nodeids"], columns[f"{side}leafs"].astype(bool)
        if (leads < 0).any() or (leads >= np.where(ends, targets.size, length)).any():
            raise _unfit("a branch leads to a node that is not there")
        successors.append(np.where(ends, leads + length, leads))
    if not roots.size or (roots < 0).any() or (roots >= length).any():
        raise _unfit(f"tree_roots are {roots.tolist()[:8]}, but there are {length} nodes")
    leaf = np.full(targets.size, _LEAF, object)
    modes = np.concatenate([np.array(_MODES_BY_NUMBER, object)[numbers], leaf])
    own = np.arange(length, length + targets.size)
    nothing = np.zeros(targets.size, np.int64)
    whole = missing.astype(bool) if missing.size else np.zeros(length, bool)
    forest = Forest(
        modes,
        np.concatenate([columns["featureids"], nothing]),
        np.concatenate([splits, nothing]),
        np.concatenate([successors[0], own]),
        np.concatenate([successors[1], own]),
        np.concatenate([whole, nothing.astype(bool)]),
        _roots_of_5(roots, columns, length),
    )
    table = _weights(modes.size, count, own, targets, weights)
    members = _real(call, "membership_values")
    return _without_members(forest, table, members)


def _roots_of_5(
    roots: np.ndarray[Any, Any], columns: dict[str, np.ndarray[Any, Any]], length: int
) -> np.ndarray[Any, Any]:
    """A root whose sides are the same leaf is that leaf."""
    true, false = columns["truenodeids"][roots], columns["falsenodeids"][roots]
    ends = (columns["trueleafs"][roots] != 0) & (columns["falseleafs"][roots] != 0)
    return np.where(ends & (true == false), true + length, roots)


def _without_members(
    forest: Forest, weights: np.ndarray[Any, Any], members: np.ndarray[Any, Any]
) -> tuple[Forest, np.ndarray[Any, Any]]:
    """Questions for a set as one question for each of its members; NaN ends each set."""
    asking = np.flatnonzero(forest.modes == "BRANCH_MEMBER")
    sets = np.split(members, np.flatnonzero(np.isnan(members)))[: len(asking)]
    sets = [each[~np.isnan(each)] for each in sets]
    if len(sets) != asking.size or not all(each.size for each in sets):
        raise _unfit(
            f"{asking.size} nodes ask for a set, but membership_values has "
            f"{np.isnan(members).sum()} sets, each of some numbers with NaN behind them"
        )
    columns = {
        name: getattr(forest, name).tolist()
        for name in ("modes", "features", "thresholds", "if_true", "if_false", "missing_is_true")
    }
    for node, values in zip(asking.tolist(), sets, strict=True):
        refused = columns["if_false"][node]
        columns["modes"][node], columns["thresholds"][node] = "BRANCH_EQ", values[0]
        last = node
        for value in values[1:]:
            columns["if_false"][last] = last = len(columns["modes"])
            columns["modes"].append("BRANCH_EQ")
            columns["features"].append(columns["features"][node])
            columns["thresholds"].append(value)
            columns["if_true"].append(columns["if_true"][node])
            columns["if_false"].append(refused)
            columns["missing_is_true"].append(False)
    added = len(columns["modes"]) - len(weights)
    nothing = np.full((added, weights.shape[1]), np.nan)
    arrays = {
        name: np.array(column, object if name == "modes" else None)
        for name, column in columns.items()
    }
    return Forest(**arrays, roots=forest.roots), np.concatenate([weights, nothing])


def _weights(
    length: int,
    count: int,
    places: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any],
    weights: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """[nodes, targets]: what each leaf says; NaN where it says nothing."""
    if count < 1:
        raise _unfit(f"n_targets is {count}, but must be 1 or more")
    if length * count > MOST_ELEMENTS:
        raise LimitError(
            "LIMIT_EXCEEDED",
            f"{length} nodes and {count} targets make a table over {MOST_ELEMENTS} elements",
        )
    sizes = {places.size, targets.size, weights.size}
    inside = len(sizes) == 1 and bool(((places >= 0) & (targets >= 0) & (targets < count)).all())
    if not inside:
        raise _unfit(f"weights of leaves are of nodes or of targets that are not there ({count})")
    table = np.full((length, count), np.nan, weights.dtype)
    told = np.zeros((length, count), bool)
    told[places, targets] = True
    table[told] = 0
    np.add.at(table, (places, targets), weights)
    return table


def _column(call: Call, name: str) -> np.ndarray[Any, Any]:
    found = call.attributes.get(name)
    return np.asarray(() if found is None else found, np.int64).reshape(-1)


def _real(call: Call, name: str) -> np.ndarray[Any, Any]:
    """An attribute of real numbers, or a tensor of that name; float64 holds both."""
    found = call.attributes.get(f"{name}_as_tensor", call.attributes.get(name))
    if isinstance(found, np.ndarray):
        return found.astype(np.float64).reshape(-1)
    return np.asarray(() if found is None else found, np.float32).astype(np.float64)


def _require_modes(modes: np.ndarray[Any, Any], known: Sequence[str]) -> None:
    for mode in {*modes.tolist()}:
        if mode not in known:
            raise unknown_choice("nodes_modes", mode)


def _unfit(fault: str) -> InvalidRequestError:
    return InvalidRequestError("ATTRIBUTE_INVALID", fault)


#: What reads each operator.
TREES: dict[str, Callable[[Reader, Call], list[Value]]] = {
    "TreeEnsemble": _ensemble,
    "TreeEnsembleClassifier": _classifier,
    "TreeEnsembleRegressor": _regressor,
}
