"""Every gate, by operator: the table of contents."""

from gradwire_server.gates import arithmetic, logic, reductions, transcendental
from gradwire_server.gates.base import Gate

#: ONNX operator-set versions whose meaning these gates have.
OPERATOR_SETS = (21, 28)

GATES: dict[str, Gate] = {
    gate.operator: gate()
    for gate in (
        # Arithmetic
        arithmetic.Add,
        arithmetic.Sub,
        arithmetic.Mul,
        arithmetic.Div,
        arithmetic.Pow,
        arithmetic.Neg,
        arithmetic.Abs,
        arithmetic.Reciprocal,
        arithmetic.Sqrt,
        arithmetic.Sign,
        arithmetic.Mod,
        arithmetic.Floor,
        arithmetic.Ceil,
        arithmetic.Round,
        arithmetic.Sum,
        arithmetic.Mean,
        arithmetic.Max,
        arithmetic.Min,
        # Exponentials, logarithms, angles
        transcendental.Exp,
        transcendental.Log,
        transcendental.Sin,
        transcendental.Cos,
        transcendental.Tan,
        transcendental.Asin,
        transcendental.Acos,
        transcendental.Atan,
        transcendental.Sinh,
        transcendental.Cosh,
        transcendental.Tanh,
        transcendental.Asinh,
        transcendental.Acosh,
        transcendental.Atanh,
        transcendental.Erf,
        # Comparison and choice
        logic.Equal,
        logic.Greater,
        logic.GreaterOrEqual,
        logic.Less,
        logic.LessOrEqual,
        logic.Not,
        logic.And,
        logic.Or,
        logic.Xor,
        logic.Where,
        logic.IsNaN,
        logic.IsInf,
        # Reductions
        reductions.ReduceSum,
        reductions.ReduceMean,
        reductions.ReduceMax,
        reductions.ReduceMin,
        reductions.ReduceProd,
        reductions.ReduceL1,
        reductions.ReduceL2,
        reductions.ReduceLogSum,
        reductions.ReduceLogSumExp,
        reductions.ReduceSumSquare,
        reductions.CumSum,
        reductions.ArgMax,
    )
}

__all__ = ["GATES", "OPERATOR_SETS", "Gate"]
