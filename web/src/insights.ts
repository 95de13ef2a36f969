/** What one looks for in a circuit: the way of the largest gradient, the first NaN, a name. */

import type { Circuit } from "./circuit";
import type { Readings } from "./readings";

/** From an output back to a leaf, each time to the input with the largest gradient (or norm). */
export function largestPath(circuit: Circuit, gradients: Readings, from: number[]): Set<number> {
  const sizes = sizesOf(circuit, gradients);
  const ahead = largestLeaves(circuit, sizes);
  const path = new Set<number>();
  let at = largestOf(from, sizes, ahead);
  while (at !== undefined) {
    path.add(at);
    const node = circuit.makerOf(at);
    at = node < 0 ? undefined : largestOf(inputsWithGradients(circuit, node, sizes), sizes, ahead);
  }
  return path;
}

/** Inside of a module with its own gradient there are none: those of its inputs are found beyond. */
function inputsWithGradients(circuit: Circuit, from: number, sizes: Float64Array): Set<number> {
  const found = new Set<number>();
  const waiting = [from];
  const seen = new Set(waiting);
  for (const node of waiting) {
    for (const id of circuit.inputsOf(node)) {
      if (sizes[id] >= 0) found.add(id);
      const maker = circuit.isWithoutGradient(id) ? circuit.makerOf(id) : -1;
      if (maker >= 0 && !seen.has(maker)) waiting.push(maker);
      seen.add(maker);
    }
  }
  return found;
}

/** By value id: -1 where there is no gradient, infinity where it is NaN. */
function sizesOf(circuit: Circuit, gradients: Readings): Float64Array {
  return Float64Array.from({ length: circuit.valueCount + 1 }, (_, id) => {
    const size = gradients.sizeOf(id);
    if (size === undefined) return -1;
    return Number.isNaN(size) ? Infinity : Math.abs(size);
  });
}

/** By value id: the largest gradient of the leaves that it depends on, which decides among equals. */
function largestLeaves(circuit: Circuit, sizes: Float64Array): Float64Array {
  const found = sizes.slice();
  for (let node = 0; node < circuit.nodeCount; node++) {
    const best = circuit.inputsOf(node).reduce((most, id) => Math.max(most, found[id]), -1);
    const first = circuit.firstOutputOf(node);
    found.fill(best, first, first + circuit.outputCountOf(node));
  }
  return found;
}

function largestOf(
  ids: Iterable<number>,
  sizes: Float64Array,
  ahead: Float64Array,
): number | undefined {
  let best: number | undefined;
  for (const id of ids) {
    if (sizes[id] < 0) continue;
    if (
      best === undefined ||
      sizes[id] > sizes[best] ||
      (sizes[id] === sizes[best] && ahead[id] > ahead[best])
    )
      best = id;
  }
  return best;
}

export interface Bad {
  id: number;
  kind: "value" | "gradient";
}

/** The first value that is or holds NaN; where none does, the first gradient on the way back. */
export function firstBad(circuit: Circuit, values: Readings, gradients: Readings): Bad | undefined {
  for (let id = 1; id <= circuit.valueCount; id++)
    if (values.isBad(id)) return { id, kind: "value" };
  for (let id = circuit.valueCount; id > 0; id--) {
    if (gradients.isBad(id)) return { id, kind: "gradient" };
  }
  return undefined;
}

/** Values whose label or operator has a text in it; those that are it come first. */
export function matches(circuit: Circuit, text: string, most = 1000): number[] {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const [whole, part]: number[][] = [[], []];
  for (let id = 1; id <= circuit.valueCount && part.length < most; id++) {
    const node = circuit.makerOf(id);
    const label = circuit.labelOf(id).toLowerCase();
    const operator = node < 0 ? "" : circuit.operatorOf(node).toLowerCase();
    if (label === wanted || operator === wanted) whole.push(id);
    else if (label.includes(wanted) || operator.includes(wanted)) part.push(id);
  }
  return [...whole, ...part];
}
