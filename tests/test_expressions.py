"""Mathematics as text becomes the graph that a person would build, or is refused at its column."""

from __future__ import annotations

import json
import math
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import gradwire as gw
from gradwire.cli import main
from gradwire.expressions import MOST_CHARACTERS

NEURON = "1/(1+exp(-(w0*x0 + w1*x1 + w2)))"
VALUES = {"w0": 2.0, "w1": -3.0, "w2": -3.0, "x0": -1.0, "x1": -2.0}


@pytest.fixture(scope="module")
def server() -> Iterator[gw.Connection]:
    with gw.local() as connection:
        yield connection


def built(names: str, formula: Callable[..., gw.Handle], output: str = "out") -> gw.Graph:
    graph = gw.Graph()
    graph.output(output, formula(*(graph.input(name) for name in names.split())))
    return graph


def named_stages() -> gw.Graph:
    graph = gw.Graph()
    w, x = graph.input("w", value=2.0), graph.input("x")
    s = (w * x - 3).named("s")
    graph.output("f", gw.sigmoid(s).named("f"))
    return graph


def of_vectors() -> gw.Graph:
    graph = gw.Graph()
    w, x = graph.input("w", (3,), value=[1, 2, 3]), graph.input("x", (3,))
    graph.output("out", gw.reduce_sum(w * x, keepdims=0))
    return graph


@pytest.mark.parametrize(
    ("expression", "graph"),
    [
        (
            NEURON,
            built(
                "w0 x0 w1 x1 w2",
                lambda w0, x0, w1, x1, w2: gw.reciprocal(1 + gw.exp(-(w0 * x0 + w1 * x1 + w2))),
            ),
        ),
        ("a - b - c", built("a b c", lambda a, b, c: (a - b) - c)),
        ("a / b * c", built("a b c", lambda a, b, c: (a / b) * c)),
        ("-a**2", built("a", lambda a: -(a**2.0))),
        ("a ^ -b ^ c", built("a b c", lambda a, b, c: a ** (-(b**c)))),
        ("2*x + 3*x", built("x", lambda x: 2 * x + 3 * x)),
        ("x*x + x*x", built("x", lambda x: x * x + x * x)),
        ("2^3^2 * x / (3 - 1)", built("x", lambda x: 512 * x / 2)),
        ("1e-3*x + .5 + pi", built("x", lambda x: 1e-3 * x + 0.5 + math.pi)),
        ("e^(-x)", built("x", lambda x: gw.exp(-x))),
        ("w0·x0 × 2 − 1", built("w0 x0", lambda w, x: w * x * 2 - 1)),
        ("max(x, 0) - min(x, y, 1)", built("x y", lambda x, y: gw.max(x, 0) - gw.min(x, y, 1))),
        ("leaky_relu(x, alpha=0.1)", built("x", lambda x: gw.leaky_relu(x, alpha=0.1))),
        ("LeakyRelu(x, alpha=0.1)", built("x", lambda x: gw.leaky_relu(x, alpha=0.1))),
        ("gelu(x, approximate='tanh')", built("x", lambda x: gw.gelu(x, approximate="tanh"))),
        ("clip(x, max=1)", built("x", lambda x: gw.clip(x, None, 1))),
        ("ln(x) + arctan(x)", built("x", lambda x: gw.log(x) + gw.atan(x))),
        ("where(0 < x, x, 0.1*x)", built("x", lambda x: gw.where(gw.less(0, x), x, 0.1 * x))),
        (
            "where(not x > 1 and x != 0, x, 2)",
            built("x", lambda x: gw.where(~(x > 1) & ~gw.equal(x, 0), x, 2)),
        ),
        ("softmax([1, -2] * x, axis=0) @ [1, 2]",
         built("x", lambda x: gw.softmax([1, -2] * x, axis=0) @ [1, 2])),
        ("w = 2; s = w*x - 3\n  f = sigmoid(s)  # the neuron", named_stages()),
        ("w = [1, 2, 3]; x = [0, 0, 0]; sum(w*x)",
         gw.parse("sum(w*x)", {"w": [1, 2, 3], "x": np.zeros(3)})),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_graph_is_the_one_that_operators_build(expression: str, graph: gw.Graph) -> None:
    assert gw.parse(expression).digest == graph.digest


def test_inputs_take_values_and_shapes() -> None:
    graph = gw.parse("sum(w*x)", {"w": [1, 2, 3]}, shapes={"x": (3,)})
    assert graph.digest == of_vectors().digest
    (leaf,) = gw.parse("sum(x)", shapes={"x": ("batch", 2)}).leaves
    assert leaf.axes == ("batch", 2)


def test_given_value_is_taken_before_an_assigned_one_and_a_constant() -> None:
    leaves = gw.parse("a = 2; a*e*pi", {"a": 3, "e": 4}).leaves
    found = {leaf.name: float(leaf.value) for leaf in leaves if leaf.value is not None}
    assert found == {"a": 3, "e": 4, "": math.pi}


def test_output_has_the_last_name_or_is_called_out() -> None:
    assert gw.parse("s = 2*x; f = s + 1").outputs == ("f",)
    assert gw.parse("s = 2*x; s").outputs == ("s",)
    assert gw.parse("2*x").outputs == ("out",)
    assert gw.parse("2*out").outputs == ("out_",)


def test_lines_go_on_in_brackets_and_behind_operators() -> None:
    graph = gw.parse("f = a +\n  b*(c\n  - d)\n\n")
    assert graph.digest == gw.parse("f = a + b*(c - d)").digest


def test_neuron_tells_its_story(server: gw.Connection) -> None:
    result = server.evaluate(gw.parse(NEURON, VALUES), {})
    f = 1 / (1 + math.exp(-1))
    assert result["out"].value == pytest.approx(f, rel=1e-12)
    assert result["w2"].gradient == pytest.approx((1 - f) * f, rel=1e-12)
    operators = [node.operator for node in gw.parse(NEURON).nodes()]
    assert operators[-4:] == ["Neg", "Exp", "Add", "Reciprocal"]


def test_number_alone_is_a_result(server: gw.Connection) -> None:
    assert server.evaluate(gw.parse("2*(3 + 4)"), {}).outputs["out"] == 14


PYTHON: dict[str, Any] = {
    "sin": math.sin, "cos": math.cos, "tanh": math.tanh, "exp": math.exp, "sqrt": math.sqrt,
    "log": math.log, "max": max, "min": min, "pi": math.pi, "e": math.e,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "where": lambda c, x, y: x if c else y,
}  # fmt: skip
NAMES = ("a", "b", "c")


def random_expression(random: random.Random, depth: int) -> str:
    """An expression in Python's syntax, too, with arguments where its functions are smooth."""
    if depth == 0:
        return random.choice([*NAMES, *NAMES, "2", "0.5", "pi", "1.5e0"])

    def part() -> str:
        return random_expression(random, depth - 1)

    match random.randrange(8):
        case 0:
            return f"{random.choice(['sin', 'cos', 'tanh', 'sigmoid'])}({part()})"
        case 1:
            return f"sqrt(1 + ({part()})**2)"
        case 2:
            return f"-{part()}"
        case 3:
            return f"({part()} {random.choice('+-*')} {part()})"
        case 4:
            return f"{part()}/(2 + cos({part()}))"
        case 5:
            return f"{random.choice(['max', 'min'])}({part()}, {part()})"
        case 6:
            return f"where({part()} {random.choice(['<', '>='])} {part()}, {part()}, {part()})"
        case _:
            return f"{part()} {random.choice('+-*')} tanh({part()})**2"


def test_random_expressions_equal_python_and_finite_differences(server: gw.Connection) -> None:
    chance = random.Random(7)
    point = {name: chance.uniform(-2, 2) for name in NAMES}
    for _ in range(80):
        text = "a*0 + b*0 + c*0 + " + random_expression(chance, 4)
        code = compile(text, "expression", "eval")

        def at(**moved: float) -> float:
            return float(eval(code, {**PYTHON, **point, **moved}))  # noqa: B023

        result = server.evaluate(gw.parse(text), point)
        assert result["out"].value == pytest.approx(at(), rel=1e-12, abs=1e-12), text
        for name, x in point.items():
            step = 1e-5
            slope = (at(**{name: x + step}) - at(**{name: x - step})) / (2 * step)
            assert result[name].gradient == pytest.approx(slope, rel=1e-5, abs=1e-5), text


@pytest.mark.parametrize(
    ("expression", "line", "column", "words"),
    [
        ("", 1, 1, "expected an expression but found the end"),
        ("1 +", 1, 4, "expected a value but found the end"),
        ("a +; b", 1, 4, "expected a value but found the end of the statement"),
        ("2*(x + 1", 1, 3, "'(' is never closed"),
        ("x + 1)", 1, 6, "')' closes nothing"),
        ("max(x, [1, 2)", 1, 13, "expected ']', for the bracket at line 1, column 8"),
        ("size(x)/2", 1, 8, "/ divides int64 as floats in Python; cast one"),
        ("x + size(x)^0.5", 1, 12, "int64 cannot hold"),
        ("size(x)^-1", 1, 8, "int64 to a negative power is no integer; cast the base"),
        ("f = 2\ng = sigmod(f)", 2, 5, "no function 'sigmod'; did you mean 'sigmoid'?"),
        ("x + matmull(x, x)", 1, 5, "did you mean 'matmul'?"),
        ("w0(x)", 1, 1, "to multiply, write w0*(...)"),
        ("f(w, x) = w*x", 1, 1, "write f = ...; the inputs are found in the expression"),
        ("2x", 1, 2, "expected an operator but found 'x'; to multiply, write *"),
        ("sin x", 1, 5, "write sin(x)"),
        ("w[0]", 1, 2, "gather(x, 0) takes an element"),
        ("2*x = 3", 1, 5, "== compares"),
        ("x²", 1, 2, "'²' cannot be read here; write ^2"),
        ("x % 2", 1, 3, "write mod(a, b)"),
        ("0 < x < 1", 1, 7, "comparisons are not chained"),
        ("(x, y)", 1, 3, "a comma stands between arguments of a function"),
        ("x + 1; y", 1, 1, "the value of this statement is not used"),
        ("f = a*b\n  + c", 2, 3, "end that one with '+'"),
        ("s = a; s = b", 1, 8, "s is already assigned at line 1, column 1"),
        ("f = 2*s; s = b", 1, 10, "s is already used at line 1, column 7"),
        ("s = s + 1", 1, 1, "s is already used at line 1, column 5"),
        ("f = e*x; e = 2; e*f", 1, 10, "e is already used at line 1, column 5"),
        ("1e999*x", 1, 1, "too large for float64"),
        ("[x, 1]", 1, 1, "a list holds numbers"),
        ("[[1], [1, 2]]", 1, 1, "differ in length"),
        ("2 * sin(x, y)", 1, 5, "Sin: takes 1 inputs (X) but is given 2"),
        ("x + where(x, 1, 2)", 1, 5, "Where: condition is float64 but must be one of bool"),
        ("elu(x, alfa=1)", 1, 1, "no attribute 'alfa'; did you mean 'alpha'?"),
        ("elu(x, alpha=x)", 1, 1, "attribute 'alpha' is a number that is written"),
        ("elu(x, alpha=1, alpha=2)", 1, 17, "alpha is given twice"),
        ("softmax(x, axis=0.5)", 1, 1, "attribute 'axis' is 0.5 but must be of kind int"),
        ("top_k(x, [1])", 1, 1, "TopK yields several values"),
        ("and", 1, 1, "expected a value but found 'and'"),
        ("'a' + x", 1, 1, "expected a value"),
        ("\ud800", 1, 1, "cannot be read here"),
        ("gradwire text 1\n", 1, 1, "gw.from_text reads"),
    ],
)
def test_mistake_is_told_with_line_and_column(
    expression: str, line: int, column: int, words: str
) -> None:
    with pytest.raises(gw.TextError) as failure:
        gw.parse(expression)
    assert (failure.value.line, failure.value.column) == (line, column)
    sentence = failure.value.message.splitlines()[0]
    assert sentence.startswith(f"line {line}, column {column}: ")
    assert words in sentence


def test_mistake_is_shown_under_a_caret() -> None:
    with pytest.raises(gw.TextError) as failure:
        gw.parse("s = w*x\nf = 2*sigmod(s)\n")
    assert failure.value.message.splitlines()[1:] == ["  f = 2*sigmod(s)", "        ^"]
    with pytest.raises(gw.TextError) as failure:
        gw.parse("x + " * 100 + "2y" + " + x" * 100)
    _, shown, caret = failure.value.message.splitlines()
    assert len(shown) < 80
    assert shown[caret.index("^")] == "y"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"values": {"y": 1}}, "there is no input 'y' in the expression"),
        ({"values": {"s": 1}}, "s is computed here, so it cannot be given"),
        ({"values": {"x": [1, [2]]}}, "line 1, column 7: input 'x': setting an array element"),
        ({"values": {"x": [1]}, "shapes": {"x": 2}}, "declared with shape (2,) but its stored"),
        ({"shapes": {"x": (-1,)}}, "axis -1 is neither a size nor a symbol"),
    ],
)
def test_values_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(gw.InvalidRequestError) as failure:
        gw.parse("s = 2*x; s + 1", **given)
    assert words in failure.value.message


def test_servers_refusal_tells_where_the_node_was_written(server: gw.Connection) -> None:
    with pytest.raises(gw.InvalidRequestError) as failure:
        server.evaluate(gw.parse("2 + x @ x"), {"x": 1.0})
    assert "(made at line 1, column 7)" in failure.value.message


@pytest.mark.parametrize(
    ("expression", "nodes"),
    [
        ("(" * 20_000 + "x" + ")" * 20_000, 0),
        ("-" * 5_000 + "x", 5_000),
        ("sin(" * 5_000 + "x" + ")" * 5_000, 5_000),
        ("x^" * 5_000 + "x", 5_000),
    ],
    ids=["brackets", "signs", "functions", "powers"],
)
def test_depth_has_no_limit(expression: str, nodes: int) -> None:
    assert gw.parse(expression).node_count == nodes


def test_hostile_text_is_read_or_refused() -> None:
    chance = random.Random(11)
    pieces = [
        *"()[],;=+-*/^@<>\n.'\"#²\0_", "**", "!=", "==", "x", "y = ", "sin(", "max(", "axis=",
        "softmax(", "1", "2.5e3", "e", "not ", " and ", "[1, 2]", "reshape(", "lstm(", "x, ",
    ]  # fmt: skip
    read = 0
    for _ in range(3000):
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 12)))
        try:
            gw.parse(text).to_bytes()
        except gw.GradwireError:
            continue
        read += 1
    assert read > 50


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 40_000, "[" * 100_000, "(" * 1000 + "]", "a" * 100_000 + "²", "9" * 100_000,
        "10**10**10**10 * y(", "reshape(x, [1e300])", "softmax(x, axis=1e300)", "gather(x, 0/0)",
        "lstm(x, x, x, activation_alpha=[[1]])", "x" * (MOST_CHARACTERS + 1),
    ],
    ids=lambda each: each[:30],
)  # fmt: skip
def test_hostile_size_is_refused_in_a_short_message(expression: str) -> None:
    with pytest.raises(gw.GradwireError) as failure:
        gw.parse(expression)
    assert len(failure.value.message) < 500


def gradwire(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_eval_takes_an_expression() -> None:
    settings = [f"--set={name}={value}" for name, value in VALUES.items()]
    found = json.loads(gradwire("eval", NEURON, "--json", *settings).stdout)
    rounded = {name: round(gradient, 2) for name, gradient in found["gradients"].items()}
    assert rounded == {"w0": -0.20, "w1": -0.39, "w2": 0.20, "x0": 0.39, "x1": -0.59}
    assert round(found["outputs"]["out"], 2) == 0.73


def test_eval_takes_the_shapes_of_the_values(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.float32([3, 4]))
    (tmp_path / "dot").write_text("f = sum(w *\n  x)")
    found = gradwire(
        "eval", f"@{tmp_path / 'dot'}", "--set=w=[1, 2]", f"--set=x=@{tmp_path / 'x.npy'}", "--json"
    )
    assert json.loads(found.stdout)["gradients"] == {"w": [3, 4], "x": [1, 2]}


def test_missing_values_are_named_as_the_options_to_add(tmp_path: Path) -> None:
    found = gradwire("eval", "w*x + b", "--set=x=1")
    assert found.exit_code == 1
    assert found.stderr == "gradwire: 2 inputs have no value; add --set w=NUMBER --set b=NUMBER\n"
    gw.parse("sum(x)", shapes={"x": ("n", 2)}).save(tmp_path / "sum.gate")
    found = gradwire("eval", tmp_path / "sum.gate")
    assert "input 'x' has no value; add --set x=@x.npy (x is float64['n', 2])" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("eval neuron.gat", "there is no file 'neuron.gat', and as an expression: line 1, column"),
        ("eval models/neuron", "no file 'models/neuron', and as an expression: 2 inputs have no"),
        ("eval models/neuron.gate", "gradwire: models/neuron.gate: cannot be read: No such file"),
        ("eval @nowhere", "gradwire: nowhere: cannot be read: No such file"),
        ("show 'f = sigmod(x)'", "line 1, column 5: there is no function 'sigmod'; did you mean"),
        ("eval 'sin(x)' --set=x=1 --set=y=2", "there is no input 'y' in the expression"),
        ("eval 'sin(x)' --watch", "--watch needs a file"),
        ("eval nowhere.gate --watch", "--watch needs a file"),
        ("convert 'sin(x)' sine.txt", "one must end in .onnx, the other in .gate"),
        ("convert 'sin(x)' sine.gate --size=n=2", "--size is for ONNX models"),
    ],
)
def test_mistyped_command_is_told(arguments: str, words: str) -> None:
    found = gradwire(*shlex.split(arguments))
    assert found.exit_code in (1, 2)
    assert words in found.stderr


def test_expression_is_written_as_a_file_and_compared_with_it(tmp_path: Path) -> None:
    assert gradwire("convert", "sin(2*x)", tmp_path / "sine.gate").exit_code == 0
    assert gw.load(tmp_path / "sine.gate").digest == gw.parse("sin(2*x)").digest
    assert gradwire("diff", "sin(2*x)", tmp_path / "sine.gate").exit_code == 0
    assert gradwire("diff", "sin(2*x)", "cos(2*x)").exit_code == 1
    assert gradwire("convert", "sin(2*x)", tmp_path / "sine.onnx").exit_code == 0
    model = gw.from_onnx(tmp_path / "sine.onnx")
    assert [node.operator for node in model.nodes()] == ["Mul", "Sin"]


def test_text_form_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "sine.txt").write_text(gradwire("show", "--text", "f = 2*x").stdout)
    found = gradwire("eval", tmp_path / "sine.txt", "--set=x=3", "--json")
    assert json.loads(found.stdout)["outputs"] == {"f": 6}


@pytest.mark.slow  # another process, which starts a server
def test_watch_evaluates_again_and_tells_what_changed(tmp_path: Path) -> None:
    file, beside = tmp_path / "f.txt", tmp_path / "beside"

    def replace(text: str) -> None:
        beside.write_text(text)
        beside.replace(file)

    replace("s = 3*x\nf = s + 1")
    command = [sys.executable, "-m", "gradwire.cli", "eval", f"@{file}", "--watch", "--set=x=2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        shown: list[str] = []

        def shows(words: str) -> bool:
            for line in running.stdout or ():
                shown.append(line)
                if words in line:
                    return True
            return False

        assert shows("output f = 7")
        replace("s = 4*x\nf = s +")
        assert shows("line 2, column 8: expected a value but found the end")
        replace("s = 4*x\nf = s + 1")
        assert shows("output f = 9")
        running.terminate()
    assert any(line.startswith("s ") and "8 was 6" in line for line in shown)
