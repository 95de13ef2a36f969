/** What is written in a gate, by the rules of docs/pictures.md. */

import type { Circuit } from "./circuit";
import { brief } from "./format";
import { bytesOf, decoded } from "./tensors";

const SYMBOLS: Readonly<Record<string, string>> = {
  Abs: "|x|",
  Acos: "acos",
  Add: "+",
  And: "and",
  Asin: "asin",
  Atan: "atan",
  Cos: "cos",
  Cosh: "cosh",
  Div: "÷",
  Equal: "=",
  Exp: "exp",
  Greater: ">",
  GreaterOrEqual: "≥",
  Less: "<",
  LessOrEqual: "≤",
  Log: "ln",
  Max: "max",
  Min: "min",
  Mul: "×",
  Neg: "×−1",
  Not: "not",
  Or: "or",
  Pow: "x^y",
  Reciprocal: "1/x",
  ReduceSum: "Σ",
  Sigmoid: "σ",
  Sin: "sin",
  Sinh: "sinh",
  Sqrt: "√",
  Sub: "−",
  Sum: "+",
  Tan: "tan",
  Tanh: "tanh",
};

const POWERS: Readonly<Record<string, string>> = { "2": "x²", "3": "x³" };

export interface GateText {
  text: string;
  /** The constant that the text has in it, which is not drawn as an input; or 0. */
  folded: number;
}

/** A constant of one element that an arithmetic gate takes is written in the gate: "+1", "2÷", "x²". */
export function gateText(circuit: Circuit, node: number): GateText {
  const operator = circuit.operatorOf(node);
  const symbol = SYMBOLS[operator] ?? operator;
  const inputs = circuit.inputsOf(node);
  const [left, right] = [...inputs].map((id) => constantNumber(circuit, id));
  if (inputs.length !== 2 || (left === undefined) === (right === undefined)) {
    return { text: symbol, folded: 0 };
  }
  const folded = left === undefined ? inputs[1] : inputs[0];
  const number = left ?? right ?? "";
  if (operator === "Add" || operator === "Mul") return { text: symbol + number, folded };
  if (operator === "Sub" || operator === "Div") {
    return { text: left === undefined ? symbol + number : number + symbol, folded };
  }
  if (operator === "Pow") {
    return { text: left === undefined ? (POWERS[number] ?? `x^${number}`) : `${number}^x`, folded };
  }
  return { text: symbol, folded: 0 };
}

function constantNumber(circuit: Circuit, id: number): string | undefined {
  const leaf = circuit.leafOf(id);
  if (leaf?.kind !== "constant" || leaf.axes.some((axis) => axis !== 1)) return undefined;
  const elements = decoded(leaf.dataType, bytesOf(leaf.message.value));
  return elements?.length === 1 ? brief(elements[0]) : undefined;
}
