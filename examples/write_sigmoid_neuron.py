"""Writes the sigmoid neuron f(w, x) = 1 / (1 + exp(-(w0*x0 + w1*x1 + w2))) as three graph files.

sigmoid_neuron.gate           in primitive gates, stage by stage
sigmoid_neuron_one_gate.gate  the last stages as one Sigmoid gate, whose gradient is (1 - f) * f
sigmoid_neuron_module.gate    the last stages as a module, with that gradient of its own
"""

from pathlib import Path

import gradwire as gw

VALUES = {"w0": 2.0, "w1": -3.0, "w2": -3.0, "x0": -1.0, "x1": -2.0}


@gw.module
def sigmoid(x: gw.Handle) -> gw.Handle:
    """Negation, exponential, plus one, reciprocal."""
    exponential = gw.exp((-x).named("-x")).named("exp(-x)")
    return gw.reciprocal((1 + exponential).named("1 + exp(-x)")).named("1 / (1 + exp(-x))")


@sigmoid.gradient
def sigmoid_gradient(x: gw.Handle, out: gw.Handle, grad: gw.Handle) -> gw.Handle:
    """The local gradient times the one that comes in; the stages inside are not differentiated."""
    return (1 - out) * out * grad


def weighted_sum(graph: gw.Graph) -> gw.Handle:
    """w0*x0 + w1*x1 + w2, with the stored inputs as defaults."""
    w0, w1, w2, x0, x1 = (graph.input(name, value=value) for name, value in VALUES.items())
    first = (w0 * x0).named("w0*x0")
    second = (w1 * x1).named("w1*x1")
    both = (first + second).named("w0*x0 + w1*x1")
    return (both + w2).named("w0*x0 + w1*x1 + w2")


def primitive_gates() -> gw.Graph:
    """Negation, exponential, plus one, reciprocal: four stages."""
    graph = gw.Graph()
    negative = (-weighted_sum(graph)).named("-(w0*x0 + w1*x1 + w2)")
    exponential = gw.exp(negative).named("exp(-(w0*x0 + w1*x1 + w2))")
    plus_one = (1 + exponential).named("1 + exp(-(w0*x0 + w1*x1 + w2))")
    graph.output("f", gw.reciprocal(plus_one))
    return graph


def one_gate() -> gw.Graph:
    """The four stages as one."""
    graph = gw.Graph()
    graph.output("f", gw.sigmoid(weighted_sum(graph)))
    return graph


def one_module() -> gw.Graph:
    """The four stages as a module; the path of its stages begins with "f/"."""
    graph = gw.Graph()
    graph.output("f", sigmoid(weighted_sum(graph)).named("f"))
    return graph


if __name__ == "__main__":
    folder = Path(__file__).parent
    primitive_gates().save(folder / "sigmoid_neuron.gate")
    one_gate().save(folder / "sigmoid_neuron_one_gate.gate")
    one_module().save(folder / "sigmoid_neuron_module.gate")
