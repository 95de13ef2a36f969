"""ONNX models are read into gate graphs that mean the same, with the models' names."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from patience import counted_calls

import gradwire as gw
from gradwire.onnx import reading
from gradwire.onnx.counting import Names

X = np.float32([[1, -2, 3], [0.5, 0, -1]])


@pytest.fixture(scope="module")
def server() -> Any:
    with gw.local(warm_up=False) as connection:
        yield connection


def model(body: str, version: int = 17, functions: str = "", imports: str = "") -> onnx.ModelProto:
    """A model from ONNX's text."""
    text = f'<ir_version: 10, opset_import: ["" : {version}{imports}]>\n{body}\n{functions}'
    found: onnx.ModelProto = onnx.parser.parse_model(text)
    return found


def agree(
    server: gw.Connection,
    given: onnx.ModelProto,
    inputs: dict[str, Any],
    expected: Any = None,
    **options: Any,
) -> gw.Graph:
    """The graph of a model, which yields what is expected, or what ONNX's evaluator does."""
    graph = gw.from_onnx(given, **options)
    names = {leaf.name for leaf in graph.leaves if leaf.kind == "input"}
    bound = {name: each for name, each in inputs.items() if name in names}
    found = server.evaluate(graph, bound, forward_only=True).outputs
    if expected is None:
        expected = ReferenceEvaluator(given).run(None, inputs)
    assert list(found) == [each.name for each in given.graph.output]
    for name, reference in zip(found, expected, strict=True):
        assert found[name].dtype == reference.dtype
        np.testing.assert_allclose(found[name], reference, rtol=1e-6, err_msg=name)
    return graph


MLP = """g (float[batch, 3] x) => (float[batch, 2] y, float[batch, 2] hidden)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {0.5, -0.5}, int64[1] last = {-1}>
    { product = MatMul(x, w)  hidden = Add(product, b)  y = Softmax<axis = -1>(hidden) }"""


def test_names_kinds_symbols_and_order_survive(server: gw.Connection) -> None:
    graph = agree(server, model(MLP), {"x": X})
    assert str(graph).splitlines() == [
        "input x: float32[batch, 3]",
        "parameter w: float32[3, 2] = 6 stored elements",
        "parameter b: float32[2] = [0.5, -0.5]",
        "product = MatMul(x, w)",
        "hidden = Add(product, b)",
        "y = Softmax(hidden)",
        "output y = y",
        "output hidden = hidden",
    ]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("scales", ["", "4"], ids=["one scale", "a scale for each column"])
@pytest.mark.parametrize("bias", [False, True])
def test_dynamically_quantized_layers_follow_each_other(
    layers: int, scales: str, bias: bool, server: gw.Connection
) -> None:
    """As quantize_dynamic of ONNX Runtime writes them; the planner guesses ranks first."""
    numbers = np.random.default_rng(layers)
    body, declared, x = [], [], "x"
    for each in range(layers):
        weights = ", ".join(map(str, numbers.integers(-128, 128, 16)))
        shape = f"[{scales}]" if scales else ""
        steps = ", ".join(f"{step:.4f}" for step in numbers.uniform(0.01, 0.02, int(scales or 1)))
        zeros = ", ".join(map(str, numbers.integers(-3, 4, int(scales or 1))))
        declared += [
            f"int8[4, 4] w{each} = {{{weights}}}",
            f"float{shape} s{each} = {{{steps}}}",
            f"int8{shape} z{each} = {{{zeros}}}",
            f"float[4] b{each} = {{0.5, -0.25, 0, 1}}",
        ]
        body.append(
            f"q{each}, qs{each}, qz{each} = DynamicQuantizeLinear({x}) "
            f"m{each} = MatMulInteger(q{each}, w{each}, qz{each}, z{each}) "
            f"f{each} = Cast<to = 1>(m{each}) t{each} = Mul(qs{each}, s{each}) "
            f"d{each} = Mul(f{each}, t{each}) "
            f"a{each} = {f'Add(d{each}, b{each})' if bias else f'Identity(d{each})'}"
        )
        x = f"a{each}"
    text = (
        f"g (float[batch, 4] x) => (float[batch, 4] y) <{', '.join(declared)}> "
        f"{{ {' '.join(body)} y = Relu({x}) }}"
    )
    inputs = {"x": numbers.standard_normal((3, 4)).astype(np.float32)}
    graph = agree(server, model(text), inputs)
    here = gw.Evaluator(graph, inputs, forward_only=True).outputs["y"]
    there = server.evaluate(graph, inputs, forward_only=True).outputs["y"]
    assert here.tobytes() == there.tobytes()


def test_every_node_has_a_value_and_a_gradient(server: gw.Connection) -> None:
    graph = gw.from_onnx(model(MLP))
    seeds = {"y": np.float32([[1, 0], [0, 1]])}
    result = server.evaluate(graph, {"x": X}, seeds=seeds, values=True, gradients=True)
    for name in ("product", "hidden"):
        np.testing.assert_array_equal(result[name].gradient.shape, (2, 2))
    assert result["w"].gradient.shape == (3, 2)


def test_a_path_bytes_and_a_message_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "mlp.onnx"
    onnx.save(model(MLP), path)
    ways = (path, str(path), path.read_bytes(), model(MLP))
    assert len({gw.from_onnx(each).digest for each in ways}) == 1


def test_external_data_is_read_beside_the_model(tmp_path: Path) -> None:
    given, path = model(MLP), tmp_path / "mlp.onnx"
    for each in given.graph.initializer:
        each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each), each.name))
    onnx.save(given, path, save_as_external_data=True, size_threshold=0, location="weights")
    assert gw.from_onnx(path).digest == gw.from_onnx(model(MLP)).digest
    with pytest.raises(gw.InvalidRequestError, match="'w': its elements are in another file"):
        gw.from_onnx(path.read_bytes())


def test_an_initializer_that_is_an_input_too_is_a_parameter() -> None:
    given = model(MLP)
    given.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    graph = gw.from_onnx(given)
    assert [leaf.kind for leaf in graph.leaves] == ["input", "parameter", "parameter"]


def test_sparse_initializers_and_every_form_of_constant_are_read(server: gw.Connection) -> None:
    given = model(
        """g (float[n, 3] x) => (float[n, 3] y, int64[2] z) {
          a = Constant<value_float = 0.1>()  b = Constant<value_floats = [1.0, 2.0, 3.0]>()
          c = Constant<value_int = 2>()      z = Constant<value_ints = [3, 4]>()
          d = CastLike(c, a)  e = Mul(b, d)  f = Add(e, a)  h = Add(f, s)  y = Mul(x, h) }"""
    )
    values = numpy_helper.from_array(np.float32([7]), "s")
    places = numpy_helper.from_array(np.int64([1]))
    given.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    graph = gw.from_onnx(given)
    result = server.evaluate(graph, {"x": X}, forward_only=True)
    np.testing.assert_allclose(result.outputs["y"], X * np.float32([2.1, 11.1, 6.1]), rtol=1e-6)
    np.testing.assert_array_equal(result.outputs["z"], [3, 4])


def test_attributes_are_the_shortest_numbers_that_mean_the_same() -> None:
    given = model("g (float[3] x) => (float[3] y) { y = LeakyRelu<alpha = 0.3>(x) }")
    assert "alpha=0.3" in str(gw.from_onnx(given))
    default = model("g (float[3] x) => (float[3] y) { y = LeakyRelu<alpha = 0.01>(x) }")
    assert "alpha" not in str(gw.from_onnx(default))


def test_axes_without_names_are_symbols_that_can_be_bound() -> None:
    given = model("g (float[?, 3] x) => (float[?, 3] y) { y = Neg(x) }")
    assert gw.from_onnx(given).leaves[0].axes == ("x.0", 3)
    assert gw.from_onnx(given, sizes={"x.0": 2}).leaves[0].axes == (2, 3)
    given.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1  # as some exporters write it
    assert gw.from_onnx(given).leaves[0].axes == ("x.0", 3)
    for size in (-1, 1 << 63):
        with pytest.raises(gw.InvalidRequestError, match=f"size 'x.0' is {size}, but must be 0 to"):
            gw.from_onnx(given, sizes={"x.0": size})
    with pytest.raises(gw.InvalidRequestError, match=r"no input has an axis 'x\.2'; did you mean"):
        gw.from_onnx(given, sizes={"x.2": 2})


def test_inputs_and_outputs_that_are_left_out_are_absent(server: gw.Connection) -> None:
    given = model(
        """g (float[n, 3] x) => (float[n, 3] y, int64[m, 1] at) {
          high = Constant<value_float = 0.7>()
          y = Clip(x, , high)
          k = Constant<value_ints = [1]>()
          top, at = TopK(x, k)
        }"""
    )
    agree(server, given, {"x": X})
    batch = model(
        """g (float[2, 3] x, float[3] s) => (float[2, 3] y)
            { y = BatchNormalization(x, s, s, s, s) }"""
    )
    agree(server, batch, {"x": X, "s": np.float32([1, 2, 3])})


def test_floating_values_that_shapes_depend_on_are_found(server: gw.Connection) -> None:
    given = model(
        """g (float[1, 1, 2, 2] x) => (float[1, 1, a, b] y) <float[2] half = {1.5, 1.0}> {
          one = Constant<value_floats = [1.0, 1.0]>()
          two = Add(half, half)
          scales = Concat<axis = 0>(one, two)
          y = Resize<mode = "nearest">(x, , scales)
        }"""
    )
    graph = agree(server, given, {"x": np.float32([[[[1, 2], [3, 4]]]])})
    assert graph.leaves[-1].kind == "constant"


def test_sizes_that_go_through_floats_are_found_where_they_are_bound(server: gw.Connection) -> None:
    given = model(
        """g (float[n, 3] x) => (float[a, b] y) {
          s = Shape(x)  f = Cast<to = 1>(s)  half = Constant<value_float = 2.0>()
          d = Mul(f, half)  c = Cast<to = 7>(d)  z = Constant<value_ints = [0, 0]>()
          pads = Concat<axis = 0>(z, c)  y = Pad(x, pads) }"""
    )
    agree(server, given, {"x": X}, sizes={"n": 2})
    with pytest.raises(gw.UnsupportedError, match=r"shape of the input 'x'.*give sizes for 'n'"):
        gw.from_onnx(given)


# -- functions ------------------------------------------------------------------------------------


def test_functions_of_the_model_are_written_out(server: gw.Connection) -> None:
    given = model(
        "g (float[n, 3] x) => (float[n, 3] y) { h = my.twice<by = 3.0>(x, x)  y = my.twice(h) }",
        imports=', "my" : 1',
        functions="""<opset_import: ["" : 17, "my" : 1], domain: "my">
            twice <by: float = 0.5> (p, q) => (r)
                { s = my.scaled<by: float = @by>(p)  r = Add(s, p) }
            <opset_import: ["" : 17], domain: "my">
            scaled <by> (p) => (r) { c = Constant<value_float: float = @by>()  r = Mul(p, c) }""",
    )
    graph = agree(server, given, {"x": X}, [4 * X * np.float32(1.5)])
    assert set(graph.ids_by_name()) == {"x", "h/s", "h", "y/s", "y"}


def test_functions_that_use_themselves_are_refused() -> None:
    given = model(
        "g (float[n] x) => (float[n] y) { y = my.f(x) }",
        imports=', "my" : 1',
        functions="""<opset_import: ["" : 17, "my" : 1], domain: "my">
            f (p) => (r) { r = my.f(p) }""",
    )
    with pytest.raises(gw.LimitError, match="nested more than 64"):
        gw.from_onnx(given)


def test_functions_that_multiply_are_limited() -> None:
    levels = [
        f'<opset_import: ["" : 17, "my" : 1], domain: "my"> f{n} (p) => (r) '
        f"{{ q = my.f{n + 1}(p)  r = my.f{n + 1}(q) }}"
        for n in range(30)
    ]
    last = '<opset_import: ["" : 17], domain: "my"> f30 (p) => (r) { r = Neg(p) }'
    given = model(
        "g (float[n] x) => (float[n] y) { y = my.f0(x) }",
        imports=', "my" : 1',
        functions="\n".join([*levels, last]),
    )
    with pytest.raises(gw.LimitError, match="more than 1000 nodes; raise max_nodes"):
        reading.from_onnx(given, max_nodes=1000)


# -- control flow ---------------------------------------------------------------------------------

LOOP = """g (float[n, 3] x, int64 trips, bool flag) => (float[n, 3] y, float[m, n, 3] each) {
    one = Constant<value_float = 1.0>()  go = Constant<value = bool {1}>()
    y, each = Loop(trips, go, x) <body = body (int64 i, bool c, float[n, 3] a) =>
        (bool c2, float[n, 3] b, float[n, 3] kept) <float[1] rate = {0.5}> {
      c2 = Identity(c)
      moved = Add(a, one)
      b = If(flag) <
        then_branch = t () => (float[n, 3] p) { p = Mul(moved, x) },
        else_branch = e () => (float[n, 3] q) { h = Mul(moved, rate)  q = Neg(h) }
      >
      kept = Identity(b)
    }>
}"""


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("trips", [1, 3])
def test_loops_and_branches_are_written_out(server: gw.Connection, flag: bool, trips: int) -> None:
    given = {"x": X, "trips": np.int64(trips), "flag": np.bool_(flag)}
    fixed = {"trips": trips, "flag": flag}
    steps = [X]
    for _ in range(trips):
        moved = steps[-1] + 1
        steps.append(moved * X if flag else -moved * np.float32(0.5))
    graph = agree(server, model(LOOP), given, [steps[-1], np.stack(steps[1:])], fixed=fixed)
    parameters = [leaf.name for leaf in graph.leaves if leaf.kind == "parameter"]
    assert parameters == ([] if flag else ["y[0]/rate"])  # one for all trips
    assert {"y", "each", "y[0]/moved"} < set(graph.ids_by_name())


def test_values_that_decide_the_way_are_named_where_they_are_not_known() -> None:
    with pytest.raises(
        gw.UnsupportedError,
        match=r"node 'y' \(Loop\): its trip count 'trips' depends on the input 'trips'.*fixed={'tr",
    ):
        gw.from_onnx(model(LOOP))
    with pytest.raises(
        gw.UnsupportedError, match="its condition 'flag' depends on the input 'flag'"
    ):
        gw.from_onnx(model(LOOP), fixed={"trips": 1})
    with pytest.raises(
        gw.InvalidRequestError, match="no input 'trip' to fix; did you mean 'trips'"
    ):
        gw.from_onnx(model(LOOP), fixed={"trip": 1})


def test_a_loop_ends_where_its_condition_says_so(server: gw.Connection) -> None:
    given = model(
        """g (float[n, 3] x) => (float[n, 3] y) {
          none = Constant<value_int = 1000>()  go = Constant<value = bool {1}>()
          y = Loop(none, go, x) <body = body (int64 i, bool c, float[n, 3] a) =>
              (bool c2, float[n, 3] b) {
            s = Shape(a)  zero = Constant<value_int = 0>()  rows = Gather(s, zero)
            c2 = Less(i, rows)  b = Add(a, x)
          }>
        }"""
    )
    graph = agree(server, given, {"x": X}, sizes={"n": 2})
    assert str(graph).count("Add") == 3


def test_endless_loops_are_limited() -> None:
    endless = model(
        """g (float[n] x) => (float[n] y) {
          go = Constant<value = bool {1}>()
          y = Loop( , go, x) <body = body (int64 i, bool c, float[n] a) => (bool c2, float[n] b)
            { c2 = Identity(c)  b = Neg(a) }>
        }"""
    )
    idle = model(
        """g (float[n] x, int64 k) => (float[n] y) {
          go = Constant<value = bool {1}>()
          y = Loop(k, go, x) <body = body (int64 i, bool c, float[n] a) => (bool c, float[n] a) {}>
        }"""
    )
    for given, fixed in ((endless, {}), (idle, {"k": 1 << 60})):
        with pytest.raises(gw.LimitError, match="more than 500 nodes"):
            reading.from_onnx(given, fixed=fixed, max_nodes=500)


LONG = """g (float[4] x) => (float[4] y) <int64 m = {1000000000}, int64 zero = {0}> {
  go = Constant<value = bool {1}>()  y = Loop(%s, go, x) <body = body (int64 i, bool c, float[4] a)
    => (bool %s, float[4] %s) { %s }> }"""


@pytest.mark.parametrize(
    ("trips", "condition", "value", "nodes"),
    [
        ("m", "c2", "b", "c2 = Identity(c)  b = Add(a, a)"),
        ("m", "c", "a", ""),
        ("m", "c2", "b", "c1 = Identity(c)  c2 = Identity(c1)  b = Neg(a)"),
        ("m", "go", "b", "b = Neg(a)"),
        ("", "c2", "b", "c2 = Constant<value = bool {1}>()  b = Neg(a)"),
        ("", "c", "a", ""),
        (
            "m",
            "c2",
            "b",
            "c2 = Identity(c)  b = Loop(zero, c, a) <body = z (int64 j, bool d, float[4] e) "
            "=> (bool d, float[4] e) {}>",
        ),
    ],
)
def test_loops_that_nothing_ends_early_are_refused_before_they_are_written_out(
    trips: str, condition: str, value: str, nodes: str
) -> None:
    given = model(LONG % (trips, condition, value, nodes))
    with (
        counted_calls(most=100_000),
        pytest.raises(gw.LimitError, match="more than 1000000 nodes; raise max_nodes"),
    ):
        gw.from_onnx(given)


def test_loops_that_end_early_are_written_out(server: gw.Connection) -> None:
    for nodes in (
        "c2 = Constant<value = bool {0}>()  b = Add(a, a)",
        "c1 = Identity(c)  c2 = Not(c1)  b = Add(a, a)",
    ):
        agree(server, model(LONG % ("m", "c2", "b", nodes)), {"x": np.ones(4, "float32")})


def test_scans_of_many_trips_are_refused_before_they_are_written_out() -> None:
    given = model(
        """g (float s, float[100000000] x) => (float y) {
          y = Scan<num_scan_inputs = 1, body = b (float a, float e) => (float c)
            { c = Add(a, e) }>(s, x) }"""
    )
    with counted_calls(most=100_000), pytest.raises(gw.LimitError, match="more than 1000000 nodes"):
        gw.from_onnx(given)


def doubling(levels: int, body: str) -> onnx.ModelProto:
    """Functions that each use the one below twice."""
    last = f'<opset_import: ["" : 17], domain: "my"> f0 (p) => ({body}'
    calls = [
        f'<opset_import: ["" : 17, "my" : 1], domain: "my"> f{n} (p) => (r) '
        f"{{ q = my.f{n - 1}(p)  r = my.f{n - 1}(q) }}"
        for n in range(1, levels + 1)
    ]
    text = f"g (float[n] x) => (float[n] y) {{ y = my.f{levels}(x) }}"
    return model(text, imports=', "my" : 1', functions="\n".join([*calls, last]))


@pytest.mark.parametrize("body", ["r) { r = Neg(p) }", "p) {}"])
def test_functions_that_double_are_refused_before_they_are_written_out(body: str) -> None:
    with counted_calls(most=100_000), pytest.raises(gw.LimitError, match="more than 1000000 nodes"):
        gw.from_onnx(doubling(40, body))


def test_initializers_of_a_body_cost_nothing_in_each_trip() -> None:
    given = model(LONG.replace("1000000000", "300") % ("m", "c", "b", "b = Add(a, a)"))
    body = given.graph.node[-1].attribute[0].g
    for place in range(3000):
        body.initializer.append(numpy_helper.from_array(np.float32(place), f"w{place}"))
    with counted_calls(most=2_000_000):  # not 300 times 3000
        assert gw.from_onnx(given).node_count == 300


def test_many_carried_values_count_as_steps() -> None:
    count = 2000
    given = model(LONG.replace("1000000000", "30000") % ("m", "c", "a", ""))
    node = given.graph.node[-1]
    body = node.attribute[0].g
    for place in range(count):
        info = helper.make_tensor_value_info(f"a{place}", 1, [4])
        body.input.append(info)
        body.output.append(info)
        node.input.append("x")
        node.output.append(f"y{place}")
    with counted_calls(most=1_000_000), pytest.raises(gw.LimitError, match="more than 1000000 nod"):
        gw.from_onnx(given)


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_scans_go_along_any_axis_in_both_directions(
    server: gw.Connection, axis: int, backwards: int
) -> None:
    given = model(
        f"""g (float[k] start, float[2, 2] x) => (float[k] sum, float[2, 2] sums) {{
          sum, sums = Scan<
            num_scan_inputs = 1, scan_input_axes = [{axis}], scan_output_axes = [{axis}],
            scan_input_directions = [{backwards}], scan_output_directions = [{backwards}],
            body = body (float[k] so_far, float[2] row) => (float[k] next, float[2] out)
              {{ next = Add(so_far, row)  out = Identity(next) }}
          >(start, x)
        }}"""
    )
    x = np.float32([[1, 2], [3, 4]])
    start = np.float32([10, 20])
    order = slice(None, None, -1 if backwards else 1)
    sums = start + np.cumsum(np.moveaxis(x, axis, 0)[order], axis=0)
    expected = [sums[-1], np.moveaxis(sums[order], 0, axis)]
    agree(server, given, {"start": start, "x": x}, expected)


def test_a_loop_without_trips_yields_what_is_declared(server: gw.Connection) -> None:
    given = model(LOOP.replace("n, 3", "2, 3"))
    graph = gw.from_onnx(given, fixed={"trips": 0, "flag": True})
    found = server.evaluate(graph, {"x": X}, forward_only=True).outputs
    np.testing.assert_array_equal(found["y"], X)
    assert found["each"].shape == (0, 2, 3)
    with pytest.raises(gw.UnsupportedError, match="makes no trip, and the shape"):
        gw.from_onnx(model(LOOP), fixed={"trips": 0, "flag": True})


def test_rows_that_an_old_scan_goes_through_are_counted() -> None:
    text = """g (float[1099511627776, 1] s, float[1099511627776, 0, 1] x) => (y) {
        y = Scan<num_scan_inputs = 1, body = b (float[1] a, float[1] e) => (float[1] c) {
            c = Identity(a)
        }>(, s, x)
    }"""
    with pytest.raises(gw.LimitError, match="more than 1000 nodes; raise max_nodes"):
        gw.from_onnx(model(text, version=8), max_nodes=1000)


@pytest.mark.parametrize(
    ("size", "error"), [(-3, gw.UnsupportedError), (1 << 62, gw.GradwireError)]
)
def test_sizes_that_a_loop_without_trips_declares_are_checked(size: int, error: Any) -> None:
    given = model(LOOP.replace("n, 3", "2, 3"))
    body = given.graph.node[-1].attribute[0].g
    for axis in body.output[-1].type.tensor_type.shape.dim:
        axis.dim_value = size
    with pytest.raises(error, match=r"node .*\(Loop\)"):
        gw.from_onnx(given, fixed={"trips": 0, "flag": True})


# -- sequences ------------------------------------------------------------------------------------

FIVE = np.arange(15, dtype=np.float32).reshape(5, 3)


@pytest.mark.parametrize(
    "split",
    [
        "s = SplitToSequence<axis = 0>(x, two)",
        "s = SplitToSequence<axis = -2>(x, sizes)",
        "s = SplitToSequence(x)",
        "s = SplitToSequence<axis = -1, keepdims = 0>(x)",
        "s = SplitToSequence<axis = 1, keepdims = 0>(x, two)",
    ],
)
def test_a_split_sequence_is_its_parts(server: gw.Connection, split: str) -> None:
    body = f"""g (float[5, 3] x) => (float[n, m] first, float[k, l] last, int64 length)
        <int64 two = {{2}}, int64[2] sizes = {{4, 1}}, int64 zero = {{0}}, int64 end = {{-1}}>
        {{ {split}  first = SequenceAt(s, zero)  last = SequenceAt(s, end)
           length = SequenceLength(s) }}"""
    graph = agree(server, model(body), {"x": FIVE})
    assert {node.operator for node in graph.nodes()} <= {"Split", "Squeeze"}
    assert {"first", "last"} <= set(graph.ids_by_name())


def test_gradients_go_through_sequences(server: gw.Connection) -> None:
    graph = gw.from_onnx(
        model(
            """g (float[4, 3] x) => (float y)
            <int64 two = {2}, int64 one = {1}> {
              parts = SplitToSequence(x, two)
              part = SequenceAt(parts, one)
              square = Mul(part, part)
              y = ReduceSum<keepdims = 0>(square)
            }"""
        )
    )
    gradient = server.evaluate(graph, {"x": FIVE[:4]})["x"].gradient
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0, 0, 0], *(2 * FIVE[2:4])])


def test_items_are_inserted_erased_and_counted(server: gw.Connection) -> None:
    graph = gw.from_onnx(
        model(
            """g (float[1] a, float[1] b, float[1] c, float[1] d) => (seq(float[1]) y, int64 n)
            <int64 front = {0}, int64 before_last = {-1}> {
              none = SequenceEmpty<dtype = 1>()
              one = SequenceInsert(none, a)
              two = SequenceInsert(one, b, front)
              three = SequenceInsert(two, c, before_last)
              four = SequenceInsert(three, d)
              five = SequenceInsert(four, d)
              less = SequenceErase(five)
              y = SequenceErase(less, front)
              n = SequenceLength(less)
            }"""
        )
    )
    inputs = {name: np.float32([at]) for at, name in enumerate("abcd")}
    outputs = server.evaluate(graph, inputs, forward_only=True).outputs
    assert {name: each.tolist() for name, each in outputs.items()} == {
        "y[0]": [2], "y[1]": [0], "y[2]": [3], "n": 4
    }  # fmt: skip


@pytest.mark.parametrize(("axis", "new"), [(0, 0), (-1, 0), (0, 1), (-1, 1)])
def test_sequences_are_put_together(server: gw.Connection, axis: int, new: int) -> None:
    body = f"""g (float[2, 3] x) => (float[n] y) {{
        z = Neg(x)  s = SequenceConstruct(x, z, x)
        y = ConcatFromSequence<axis = {axis}, new_axis = {new}>(s) }}"""
    put = np.stack if new else np.concatenate
    agree(server, model(body), {"x": X}, [put([X, -X, X], axis)])


def test_loops_and_branches_carry_sequences(server: gw.Connection) -> None:
    body = """g (float[2, 3] x, int64 trips, bool flag) => (float[n, 3] y) {
        one = SequenceConstruct(x)
        start = If(flag) <
          then_branch = t () => (seq(float[2, 3]) a) { a = Identity(one) },
          else_branch = e () => (seq(float[2, 3]) b) { z = Neg(x)  b = SequenceConstruct(z, z) }
        >
        all = Loop(trips, , start) <body = l (int64 i, bool c, seq(float[2, 3]) before)
          => (bool go, seq(float[2, 3]) after) {
            go = Identity(c)  k = CastLike(i, x)  item = Mul(x, k)
            after = SequenceInsert(before, item)
        }>
        y = ConcatFromSequence<axis = 0>(all) }"""
    for flag, first in ((True, [X]), (False, [-X, -X])):
        inputs = {"x": X, "trips": np.int64(3), "flag": np.bool_(flag)}
        expected = [np.concatenate([*first, 0 * X, X, 2 * X])]
        fixed = {name: inputs[name] for name in ("trips", "flag")}
        agree(server, model(body), inputs, expected, fixed=fixed)


def test_a_map_reads_its_graph_for_each_item(server: gw.Connection) -> None:
    body = """g (float[4, 3] x, float[3] b) => (float[n, 3] y, float[m, 3] z)
        <int64[2] sizes = {3, 1}> {
        s = SplitToSequence(x, sizes)
        t, u = SequenceMap(s, b) <body = f (float[k, 3] item, float[3] add)
          => (float[k, 3] sum, float[k, 3] product) {
            sum = Add(item, add)  product = Mul(item, b)
        }>
        y = ConcatFromSequence<axis = 0>(t)
        z = ConcatFromSequence<axis = 0>(u) }"""
    b = np.float32([1, 2, 3])
    graph = agree(server, model(body), {"x": FIVE[:4], "b": b}, [FIVE[:4] + b, FIVE[:4] * b])
    assert {"t[0]/sum", "t[1]/product"} <= set(graph.ids_by_name())


def test_optionals_are_their_elements(server: gw.Connection) -> None:
    body = """g (float[2, 3] x) => (float[2, 3] y, bool some, bool none, bool left_out) {
        full = Optional(x)  empty = Optional<type = float[2, 3]>()
        y = OptionalGetElement(full)
        some = OptionalHasElement(full)
        none = OptionalHasElement(empty)
        left_out = OptionalHasElement() }"""
    expected = [X, np.bool_(True), np.bool_(False), np.bool_(False)]
    given = model(body.replace("<type = float[2, 3]>", ""), 18)
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 3])
    given.graph.node[1].attribute.append(helper.make_attribute("type", kind))
    graph = gw.from_onnx(given)
    outputs = server.evaluate(graph, {"x": X}, forward_only=True).outputs
    for found, reference in zip(outputs.values(), expected, strict=True):
        np.testing.assert_array_equal(found, reference)


def test_sequences_and_optionals_may_be_given_beforehand(server: gw.Connection) -> None:
    body = (
        "g (seq(float[2, 3]) s, float[2, 3] x) => (seq(float[n, 3]) y) { y = SequenceInsert(s, x) }"
    )
    graph = gw.from_onnx(model(body), fixed={"s": [X, 2 * X]})
    outputs = server.evaluate(graph, {"x": X}, forward_only=True).outputs
    assert list(outputs) == ["y[0]", "y[1]", "y[2]"]
    np.testing.assert_array_equal(outputs["y[1]"], 2 * X)
    with pytest.raises(gw.InvalidRequestError, match="input 's': is a sequence, so fixed must be"):
        gw.from_onnx(model(body), fixed={"s": 1.0})


def test_maps_and_outputs_that_multiply_are_limited() -> None:
    names = [f"y{each}" for each in range(200)]
    outputs = ", ".join(f"seq(float) {name}" for name in names)
    split = "s = SplitToSequence<keepdims = 0>(x)"
    copies = " ".join(f"{name} = Identity(s)" for name in names)
    with pytest.raises(gw.LimitError, match="more than 10000 nodes"):
        gw.from_onnx(
            model(f"g (float[60] x) => ({outputs}) {{ {split} {copies} }}"), max_nodes=10000
        )
    given = ", ".join(["s", *["x"] * 200])
    taken = ", ".join(f"float a{each}" for each in range(201))
    body = f"body = f ({taken}) => (float b) {{ b = Neg(a0) }}"
    nodes = f"{split} t = SequenceMap<{body}>({given}) y = Neg(x)"
    with pytest.raises(gw.LimitError, match="more than 10000 nodes"):
        gw.from_onnx(model(f"g (float[60] x) => (float[60] y) {{ {nodes} }}"), max_nodes=10000)


@pytest.mark.parametrize(
    ("nodes", "reason", "message"),
    [
        ("y = SequenceAt(s, far)", "SHAPE_MISMATCH", "'far' in the sequence 's' of 2 items is 2, "),
        ("y = SequenceAt(s, k)", "INPUT_NOT_KNOWN", "position 'k' .* depends on the input 'k'"),
        ("y = SequenceAt(s, half)", "MODEL_INVALID", "'s' is float32, but must be int64"),
        ("t = SplitToSequence(x, half) y = Neg(x)", "MODEL_INVALID", "'half' .* is float32, but"),
        ("y = SequenceAt(x, far)", "MODEL_INVALID", "'x' is a tensor, but must be a sequence"),
        ("y = Add(x, s)", "MODEL_INVALID", r"'y' \(Add\): one of its inputs is a sequence of 2"),
        ("y = Add(x, none)", "MODEL_INVALID", "is an optional without an element, but must be a"),
        ("y = OptionalGetElement(none)", "MODEL_INVALID", "the optional 'none' has no element"),
        ("e = SequenceEmpty() y = ConcatFromSequence<axis=0>(e)", "MODEL_INVALID", "'e' is empty"),
        ("e = SequenceEmpty() f = SequenceErase(e) y = Neg(x)", "MODEL_INVALID", "'e' is empty"),
        ("y = ConcatFromSequence(s)", "MODEL_INVALID", "needs the attribute 'axis'"),
        ("t = SplitToSequence(z) y = Neg(x)", "INPUT_NOT_KNOWN", r"axis 0 of 'z' .* for 'n' as"),
        ("t = SplitToSequence(x, bad) y = Neg(x)", "SHAPE_MISMATCH", "'bad' is -1 but must be a p"),
        ("t = SplitToSequence<axis = 2>(x) y = Neg(x)", "SHAPE_MISMATCH", "no axis 2 among the 1"),
        ("t = SplitToSequence(wide) y = Neg(x)", "LIMIT_EXCEEDED", "70000 items is over the limit"),
        ("t = SequenceConstruct(s) y = Neg(x)", "MODEL_INVALID", "is a sequence of 2 items, but"),
        (
            """e = SequenceConstruct(x)
            t = SequenceMap(s, e) <body = f (float[3] a, float[3] b) => (float[3] c)
            { c = Add(a, b) }> y = Neg(x)""",
            "SHAPE_MISMATCH",
            "different lengths: 's' has 2 items and 'e' has 1",
        ),
        (
            """t = Scan<num_scan_inputs = 1, body = f (float[3] a, float b) => (float[3] c)
            { c = Add(a, b) }>(s, x) y = Neg(x)""",
            "MODEL_INVALID",
            r"\(Scan\): one of its inputs is a sequence of 2 items, but must be a tensor",
        ),
        (
            "t = Loop(s, ) <body = f (int64 i, bool c) => (bool d) { d = Identity(c) }> y = Neg(x)",
            "MODEL_INVALID",
            r"\(Loop\): one of its inputs is a sequence of 2 items",
        ),
    ],
)
def test_sequences_that_are_not_known_or_wrong_are_refused(
    nodes: str, reason: str, message: str
) -> None:
    body = f"""g (float[3] x, float[n] z, float[70000] wide, int64 k) => (float[3] y)
        <int64 far = {{2}}, int64 bad = {{-1}}, float half = {{0.5}}>
        {{ s = SequenceConstruct(x, x)  none = Optional() {nodes} }}"""
    with pytest.raises(gw.GradwireError, match=message) as caught:
        gw.from_onnx(model(body))
    assert caught.value.reason == reason


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        ("g (float[3] x) => (float[3] y) { y = RandomNormalLike(x) }", "OPERATOR_UNKNOWN", "draws"),
        ("g (float[3] x) => (float[3] y) { y = Sigmoyd(x) }", "OPERATOR_UNKNOWN", "'Sigmoid'"),
        ("g (string[3] x) => (string[3] y) { y = Identity(x) }", "DATA_TYPE_UNSUPPORTED", "string"),
        (
            "g (seq(float) x) => (seq(float) y) { y = Identity(x) }",
            "DATA_TYPE_UNSUPPORTED",
            r"input 'x': is of kind sequence, .* give its items as fixed=\{'x': \.\.\.\}",
        ),
        (
            "g (float[3] x) => (string[3] y) { y = Cast<to = 8>(x) }",
            "DATA_TYPE_UNSUPPORTED",
            "string",
        ),
        (
            """g (float[3] x, bool t) => (float[3] y) { r = Constant<value_float = 0.5>()
               on = Constant<value = bool {1}>() y = Dropout(x, r, on) }""",
            "ATTRIBUTE_INVALID",
            "without a seed",
        ),
    ],
)  # fmt: skip
def test_what_gate_graphs_have_not_is_refused_with_the_reason(
    body: str, reason: str, message: str
) -> None:
    with pytest.raises(gw.UnsupportedError, match=message) as caught:
        gw.from_onnx(model(body))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"\xff\xff\xff", "the model: is no ONNX model"),
        (b"", "the model: is no ONNX model"),
        ("/nowhere/at/all.onnx", "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_models_are_refused(given: Any, message: str) -> None:
    with pytest.raises(gw.FileError, match=message):
        gw.from_onnx(given)


def changed(change: Any) -> onnx.ModelProto:
    found = model(MLP)
    change(found)
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.graph.initializer[0].dims.append(1 << 40), "initializer 'w': cannot be read"),
        (lambda m: m.graph.initializer[0].dims.append(-1), "initializer 'w': has the shape"),
        (lambda m: m.graph.node[1].input.append("z"), "uses the value 'z', which nothing before"),
        (lambda m: m.graph.node[0].input.pop(), "takes 2 inputs"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "uses the value 'product'"),
        (lambda m: m.graph.output.add(name="q"), "output 'q': uses the value 'q'"),
        (lambda m: m.ClearField("opset_import"), "imports no operator set"),
        (
            lambda m: setattr(m.graph.node[2].attribute[0], "type", 1),
            "of another kind than in ONNX",
        ),
        (lambda m: m.graph.node[2].attribute[0].ints.extend([1]), None),
        (lambda m: setattr(m.graph.node[2].attribute[0], "name", "axes"), "no attribute 'axes'"),
    ],
)
def test_models_that_are_not_whole_are_refused(change: Any, message: str | None) -> None:
    given = changed(change)
    if message is None:
        assert gw.from_onnx(given).digest == gw.from_onnx(model(MLP)).digest
        return
    with pytest.raises(gw.InvalidRequestError, match=message):
        gw.from_onnx(given)


def add_graphs(m: onnx.ModelProto, name: str) -> None:
    m.graph.node[0].attribute.append(
        onnx.AttributeProto(name=name, type=onnx.AttributeProto.GRAPHS)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.graph.input.append(m.graph.input[0]), "has two inputs 'x'"),
        (lambda m: setattr(m.opset_import[0], "version", 1 << 40), "imports operator set 10995116"),
        (lambda m: setattr(m.opset_import[0], "version", -1), "imports operator set -1"),
        (lambda m: m.graph.node[0].ClearField("output"), "has no output"),
        (lambda m: add_graphs(m, "dtype"), "no attribute 'dtype'"),
        (lambda m: setattr(m.graph.node[0], "op_type", "NonZero"), "takes 1 inputs"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Unique"), "takes 1 inputs"),
        (lambda m: setattr(m.graph.node[2], "op_type", "Compress"), "takes 2 inputs"),
        (lambda m: setattr(m.graph.node[2], "op_type", "Range"), "takes 3 inputs"),
    ],
)
def test_what_fuzzing_found_is_refused(change: Any, message: str) -> None:
    with pytest.raises(gw.InvalidRequestError, match=message):
        gw.from_onnx(changed(change))


def test_numbers_of_attributes_that_an_input_cannot_hold_are_refused() -> None:
    given = model("g (int32[2] x) => (int32[n] y) { y = Pad<pads = [0, 1]>(x) }", version=10)
    given.graph.node[0].attribute.append(helper.make_attribute("value", float("inf")))
    with pytest.raises(
        gw.InvalidRequestError, match=r"node 'y' \(Pad\): an attribute cannot be int"
    ):
        gw.from_onnx(given)


@pytest.mark.parametrize("count", [np.nan, np.inf, 1e30, 2.5])
@pytest.mark.parametrize("operator", ["Loop", "Tile"])
def test_counts_that_are_no_whole_numbers_are_refused(operator: str, count: float) -> None:
    if operator == "Loop":
        body = "{ y = Loop<body = b (int64 i, bool c) => (bool c) { }>(count, ) }"
    else:
        body = "{ y = Tile(x, count, axis) }"
    given = model(f"g (float[2] x) => (float[n] y) <float[1] axis = {{0}}> {body}", version=1)
    given.graph.initializer.append(numpy_helper.from_array(np.float32([count]), "count"))
    with pytest.raises(gw.InvalidRequestError, match="must be one integer"):
        gw.from_onnx(given)


def test_more_targets_than_coefficients_are_refused() -> None:
    body = "g (float[1, 2] x) => (float[1, n] y) { y = ai.onnx.ml.LinearRegressor<targets = 4>(x) }"
    given = model(body, imports=', "ai.onnx.ml" : 3')
    given.graph.node[0].attribute[0].i = 1 << 62
    with pytest.raises(gw.InvalidRequestError, match="0 coefficients cannot be divided among"):
        gw.from_onnx(given)


@pytest.mark.parametrize("equation", ["b.ij,bjk->bik", "bi\tj,bjk->bik", "bij>,bjk->", "b....,b"])
def test_equations_that_onnx_would_read_forever_are_refused(equation: str) -> None:
    given = model("g (float[5, 2, 3] x, float[5, 3, 4] y) => (float[n] z) { z = Add(x, y) }")
    node = helper.make_node("Einsum", ["x", "y"], ["z"], equation=equation)
    given.graph.node[0].CopyFrom(node)
    with pytest.raises(gw.InvalidRequestError, match="must be of letters, commas"):
        gw.from_onnx(given)
    graph = gw.Graph()
    x, y = graph.input("x", (5, 2, 3)), graph.input("y", (5, 3, 4))
    graph.output("z", gw.einsum(x, y, equation=equation))
    with pytest.raises(gw.InvalidRequestError, match="must be of letters, commas"):
        gw.to_onnx(graph)


def test_splits_into_other_numbers_of_parts_than_outputs_are_refused() -> None:
    given = model(
        "g (float[6] x) => (float[2] a, float[2] b, float[2] c) "
        "{ a, b, c = Split<num_outputs = 2>(x) }",
        version=18,
    )
    with pytest.raises(gw.InvalidRequestError, match="num_outputs is 2 but there are 3 outputs"):
        gw.from_onnx(given)


def test_names_that_are_no_text_are_refused() -> None:
    data = model(MLP).SerializeToString().replace(b"product", b"pro\xffuct")
    with pytest.raises(gw.InvalidRequestError, match=r"the name b'pro\\xffuct' is not UTF-8"):
        gw.from_onnx(data)


def test_indices_of_sparse_tensors_are_checked() -> None:
    for place, dims in ((5, [3]), (-1, [3]), (0, [1 << 40])):
        given = model("g (float[3] x) => (float[3] y) { y = Add(x, s) }")
        values = numpy_helper.from_array(np.float32([7]), "s")
        places = numpy_helper.from_array(np.int64([place]))
        given.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))
        with pytest.raises(gw.InvalidRequestError, match="sparse tensor"):
            gw.from_onnx(given)


class Counting(set[str]):
    """A set that counts how often it was asked."""

    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


def test_equal_names_are_numbered_in_linear_time() -> None:
    names = Names(["b_2"])
    names._taken = Counting(names._taken)
    found = [names.take("a") for _ in range(2000)]
    assert found == ["a", *(f"a_{count}" for count in range(2, 2001))]
    assert [names.take("b") for _ in range(3)] == ["b", "b_3", "b_4"]
    assert names._taken.asked < 3 * 2003


def test_labels_that_are_repeated_cost_what_they_hold() -> None:
    label, nodes = "L" * 1_000_000, [helper.make_node("Neg", ["a"], ["t0"])]
    nodes += [helper.make_node("Neg", [f"t{n}"], [f"t{n + 1}"]) for n in range(600)]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    function = helper.make_function("my", "f", ["a"], ["t600"], nodes, imports[:1])
    call = helper.make_node("f", ["x"], ["y"], domain="my", name=label)
    infos = [helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
    graph = helper.make_graph([call], "g", infos[:1], infos[1:])
    given = helper.make_model(graph, opset_imports=imports, functions=[function])
    tracemalloc.start()
    try:
        with pytest.raises(gw.LimitError, match="have more than 536870912 letters") as caught:
            gw.from_onnx(given)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 1000  # it names no label of a million letters


def test_sequences_put_together_item_by_item_are_counted() -> None:
    inserts = "".join(f"s{n + 1} = SequenceInsert(s{n}, x)\n" for n in range(600))
    given = model(f"g (float[3] x) => (float[3] y) {{ s0 = SequenceEmpty() {inserts} y = Neg(x) }}")
    with pytest.raises(gw.LimitError, match="more than 10000 nodes"):
        gw.from_onnx(given, max_nodes=10_000)
    assert gw.from_onnx(given, max_nodes=13_000).node_count == 1


def test_large_constants_are_not_computed_while_reading() -> None:
    given = model(
        """g (float[3] x) => (float[3] y) {
          big = Constant<value_ints = [1000000, 1000000]>()  f = ConstantOfShape(big)
          s = ReduceSum<keepdims = 0>(f)  zero = Constant<value_float = 0.0>()  c = Greater(s, zero)
          y = If(c) <then_branch = t () => (float[3] a) { a = Neg(x) },
                     else_branch = e () => (float[3] b) { b = Abs(x) }>
        }"""
    )
    with pytest.raises(gw.UnsupportedError, match="its condition 'c' is computed"):
        gw.from_onnx(given)


def test_reading_takes_time_in_proportion_to_the_nodes() -> None:
    names = ["x", *(f"v{n}" for n in range(5_000))]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in pairwise(names)]
    info = [helper.make_tensor_value_info(name, 1, ["n"]) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "deep", info[:1], info[1:])
    found = gw.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert found.node_count == 5_000
    shape = helper.make_node("Shape", [names[-1]], ["s"])
    more = [shape, helper.make_node("Expand", ["x", "s"], ["z"])]
    graph.node.extend(more)  # a question about a value far down: no recursion
    value = reading.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert value.node_count == 5_002


def nodes_in(order: tuple[int, ...]) -> onnx.ModelProto:
    given = model(MLP)
    nodes = [given.graph.node[place] for place in order]
    given.graph.ClearField("node")
    given.graph.node.extend(nodes)
    return given


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_nodes_may_be_listed_in_any_order(server: gw.Connection, order: tuple[int, ...]) -> None:
    expected = ReferenceEvaluator(model(MLP)).run(None, {"x": X})
    agree(server, nodes_in(order), {"x": X}, expected)


def test_a_branch_may_use_what_is_listed_after_it(server: gw.Connection) -> None:
    given = model(
        """g (float[2, 3] x) => (float[2, 3] y) {
        c = Constant<value_int = 1>()  t = Cast<to = 9>(c)
        y = If(t) <then_branch = a () => (float[2, 3] p) { p = Neg(z) },
                   else_branch = b () => (float[2, 3] q) { q = Identity(z) }>
        z = Exp(x) }"""
    )
    agree(server, given, {"x": X}, [-np.exp(X)])


def test_an_unused_input_with_a_default_may_be_given(server: gw.Connection) -> None:
    text = "g (float[2, 3] x, float u, int64 n) => (float[2, 3] y) <float u = {1}, int64 n = {2}>"
    graph = gw.from_onnx(model(text + "{ y = Neg(x) }"))
    for given in ({"x": X}, {"x": X, "u": np.float32(5)}, {"x": X, "n": np.int64(3)}):
        found = server.evaluate(graph, given, forward_only=True).outputs["y"]
        np.testing.assert_array_equal(found, -X)


@pytest.mark.parametrize("name", ["?", "-1", "None", "a b", "n + 1", ""])
def test_axes_with_names_that_name_nothing_are_of_any_size(name: str) -> None:
    given = model("g (float[a, b, 3] x) => (float[p, q, r] y) { y = Neg(x) }")
    for dim in given.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_param = name
    (leaf,) = gw.from_onnx(given).leaves
    assert leaf.axes == ("x.0", "x.1", 3)
    (leaf,) = gw.from_onnx(given, sizes={"x.1": 5}).leaves
    assert leaf.axes == ("x.0", 5, 3)
    if name:  # the name is that of all of them
        (leaf,) = gw.from_onnx(given, sizes={name: 5}).leaves
        assert leaf.axes == (5, 5, 3)


def without_shape() -> onnx.ModelProto:
    given = model("g (float[a] x) => (float[b] y) { y = Neg(x) }")
    given.graph.input[0].type.tensor_type.ClearField("shape")
    return given


def test_an_input_of_undeclared_rank_takes_the_shape_that_is_given(server: gw.Connection) -> None:
    graph = gw.from_onnx(without_shape(), shapes={"x": (2, None, "n")})
    assert graph.leaves[0].axes == (2, "x.1", "n")
    x = np.ones((2, 5, 4), np.float32)
    found = server.evaluate(graph, {"x": x}, forward_only=True).outputs["y"]
    np.testing.assert_array_equal(found, -x)
    (leaf,) = gw.from_onnx(without_shape(), shapes={"x": (None, "n")}, sizes={"n": 3}).leaves
    assert leaf.axes == ("x.0", 3)
    with pytest.raises(
        gw.UnsupportedError, match=r"give its shape as shapes=\{'x': \.\.\.\}, a size"
    ):
        gw.from_onnx(without_shape())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (2, 3, 4)}, r"declared with shape \(batch, 3\), but shapes gives \(2, 3, 4\)"),
        ({"x": (2, 4)}, r"declared with shape \(batch, 3\), but shapes gives \(2, 4\)"),
        ({"x": (-1, 3)}, "shapes gives"),
        ({"z": (2,)}, "no input 'z' to shape"),
    ],
)
def test_shapes_that_the_model_does_not_allow_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(gw.InvalidRequestError, match=message):
        gw.from_onnx(model(MLP), shapes=shapes)


CONSTANTS = """g (float[2, 3] x) => (float[2, 2] y, float[2, 2] z) {
    w = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>()
    turned = Transpose(w)
    b = Constant<value_floats = [0.5, -0.5]>()
    mask = Constant<value_floats = [1.0, 0.0]>()
    half = Constant<value_float = 0.0447>()
    product = MatMul(x, turned)
    shifted = Add(product, b)
    masked = Mul(shifted, mask)
    y = Pow(masked, half)
    z = acme.layer(x)
}"""
LAYER = """<domain: "acme", opset_import: ["" : 17]>
layer (x) => (y) {
    w = Constant<value = float[3, 2] {1, 2, 3, 4, 5, 6}>()
    y = MatMul(x, w)
}"""


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("initializers", set()),
        ("weights", {"w", "b", "z/w"}),
        ("all", {"w", "b", "z/w", "mask"}),
    ],
)
def test_constants_that_are_weights_become_parameters(choice: str, expected: set[str]) -> None:
    given = model(CONSTANTS, functions=LAYER, imports=', "acme" : 1')
    graph = gw.from_onnx(given, parameters=choice)
    assert {each.name for each in graph.leaves if each.kind == "parameter"} == expected
    if choice == "weights":
        assert gw.from_onnx(given).digest == graph.digest


def test_a_constant_in_a_loop_is_one_parameter_for_all_trips(server: gw.Connection) -> None:
    given = model(
        """g (float[2, 2] x) => (float[2, 2] y) {
        n = Constant<value_int = 3>()  go = Constant<value_int = 1>()  t = Cast<to = 9>(go)
        y = Loop(n, t, x) <body = b (int64 i, bool c, float[2, 2] a) => (bool d, float[2, 2] e) {
            d = Identity(c)
            w = Constant<value = float[2, 2] {1, 2, 0, 1}>()
            e = MatMul(a, w) }> }"""
    )
    graph = gw.from_onnx(given)
    (name,) = (each.name for each in graph.leaves if each.kind == "parameter")
    x = np.float32([[1, 2], [3, 4]])
    found = server.evaluate(graph, {"x": x}, seeds={"y": np.ones((2, 2), np.float32)})
    w = np.float32([[1, 2], [0, 1]])
    np.testing.assert_array_equal(found.outputs["y"], x @ w @ w @ w)
    seed = np.ones((2, 2), np.float32)
    expected = x.T @ seed @ w.T @ w.T + (x @ w).T @ seed @ w.T + (x @ w @ w).T @ seed
    np.testing.assert_array_equal(found.gradients[name], expected)


def test_weights_of_different_functions_stay_apart() -> None:
    other = LAYER.replace("layer", "other")
    given = model(
        "g (float[2, 3] x) => (float[2, 2] y, float[2, 2] z)"
        "{ y = acme.layer(x)  z = acme.other(x) }",
        functions=f"{LAYER}\n{other}",
        imports=', "acme" : 1',
    )
    names = {each.name for each in gw.from_onnx(given).leaves if each.kind == "parameter"}
    assert names == {"y/w", "z/w"}


def test_an_unknown_choice_of_parameters_is_refused() -> None:
    with pytest.raises(
        gw.InvalidRequestError, match="'none' but must be one of initializers, weig"
    ):
        gw.from_onnx(model(MLP), parameters="none")


DECIDED = {
    "a branch": """g (float[4] x) => (float[4] y) <float t = {2}, float zero = {0}> {
        c = Greater(t, zero)
        b = If(c) <
            then_branch = yes () => (float[4] u) { u = Mul(x, t) },
            else_branch = no () => (float[4] v) { v = Neg(x) }>
        y = Add(b, t)
    }""",
    "a trip count": """g (float[4] x) => (float[4] y) <float t = {2}, bool on = {1}> {
        n = Cast<to=7>(t) s = Mul(x, t)
        y = Loop(n, on, s) <body = trip (int64 i, bool c, float[4] a) => (bool d, float[4] b)
            { d = Identity(c) b = Mul(a, t) }>
    }""",
    "a shape": """g (float[4] x) => (float[8] y) <float[1] t = {2}, float[1] two = {2}> {
        s = Mul(t, two) n = Cast<to=7>(s) p = Mul(x, t)
        m = ConstantOfShape(n) z = Concat<axis=0>(p, m) y = Add(z, t)
    }""",
    "sizes of a resize": """g (float[1, 1, 4] x) => (float[1, 1, 8] y) <float[3] t = {1, 1, 2}> {
        m = ReduceMax<keepdims=0>(t) p = Mul(x, m) r = Resize(p, , t) y = Mul(r, m)
    }""",
    "no dropping": """g (float[4] x) => (float[4] y) <float t = {0}, bool on = {1}> {
        p = Dropout(x, t, on) y = Add(p, t)
    }""",
    "boxes": """g (float[4] x) => (float[4] y) <
        float[1, 2, 4] t = {0, 0, 1, 1, 0, 0.1, 1, 1.1}, float[1, 1, 2] s = {1, 2},
        int64[1] n = {2}, float[1] iou = {0.5}> {
        r = NonMaxSuppression(t, s, n, iou) h = Shape(r) f = Cast<to=1>(h)
        k = ReduceSum<keepdims=0>(f) w = ReduceSum<keepdims=0>(t) v = Mul(x, w) y = Mul(v, k)
    }""",
}  # fmt: skip


@pytest.mark.parametrize("case", DECIDED)
def test_a_parameter_that_decides_what_the_graph_is_is_a_constant(server: Any, case: str) -> None:
    """A request that set it would be answered by the graph of its stored value."""
    given = model(DECIDED[case], 18)
    shape = [each.dim_value for each in given.graph.input[0].type.tensor_type.shape.dim]
    x = np.linspace(-1, 2, 4, dtype="float32").reshape(shape)
    graph = agree(server, given, {"x": x})
    assert [leaf.name for leaf in graph.leaves if leaf.name] == ["x"]


def test_beside_a_parameter_that_decides_others_stay_parameters() -> None:
    given = model(
        """g (float[4] x) => (float[4] y) <
            float t = {2}, float zero = {0}, float[4] w = {1, 2, 3, 4}> {
            c = Greater(t, zero) a = Mul(x, t)
            y = If(c) <
                then_branch = yes () => (float[4] u) { u = Mul(a, w) },
                else_branch = no () => (float[4] v) { v = Neg(a) }> }"""
    )
    assert [leaf.name for leaf in gw.from_onnx(given).leaves if leaf.name] == ["x", "w"]
