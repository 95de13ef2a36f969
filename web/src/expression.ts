/** A value as the formula that yields it: "w0*x0 + w1*x1" says more than "%9". */

import type { Circuit } from "./circuit";

const LONGEST = 32; // characters
const DEEPEST = 6;

enum Binds {
  SUM,
  PRODUCT,
  SIGN,
  POWER,
  ATOM,
}

type Formula = [text: string, binds: Binds];

const INFIX: Readonly<Record<string, [between: string, binds: Binds]>> = {
  Add: [" + ", Binds.SUM],
  Sub: [" - ", Binds.SUM],
  Mul: ["*", Binds.PRODUCT],
  Div: ["/", Binds.PRODUCT],
  Pow: ["**", Binds.POWER],
};

/** Its own name; or its formula, where that is short; or its id. */
export function titleOf(circuit: Circuit, id: number): string {
  const found = formulaOf(circuit, id, 0);
  return found && found[0].length <= LONGEST ? found[0] : circuit.labelOf(id);
}

function formulaOf(circuit: Circuit, id: number, depth: number): Formula | undefined {
  const label = circuit.labelOf(id);
  const node = circuit.makerOf(id);
  if (node < 0 || label !== `%${id}`) {
    return [label, label.startsWith("-") ? Binds.SIGN : Binds.ATOM];
  }
  if (depth === DEEPEST || circuit.outputCountOf(node) > 1) return undefined;
  const operator = circuit.operatorOf(node);
  const operands: Formula[] = [];
  for (const input of circuit.inputsOf(node)) {
    const operand = input ? formulaOf(circuit, input, depth + 1) : undefined;
    if (!operand || operand[0].length > LONGEST) return undefined;
    operands.push(operand);
  }
  const [left, right] = operands;
  if (operator === "Neg") return [`-${within(left, Binds.SIGN, true)}`, Binds.SIGN];
  const infix = INFIX[operator];
  if (!infix) {
    const name = /^[A-Z][a-z]+$/.test(operator) ? operator.toLowerCase() : operator;
    return [`${name}(${operands.map(([text]) => text).join(", ")})`, Binds.ATOM];
  }
  const [between, binds] = infix;
  const power = binds === Binds.POWER;
  return [within(left, binds, power) + between + within(right, binds, !power), binds];
}

/** In brackets, where it would read otherwise beside an operator that binds so strongly. */
function within([text, own]: Formula, binds: Binds, strictly: boolean): string {
  return own < binds || (strictly && own === binds) ? `(${text})` : text;
}
