/** At a fork: the gradient of a value is the sum of what its uses hand back. */

import type { Circuit } from "./circuit";
import { shown } from "./format";
import type { Locals } from "./locals";
import type { State } from "./state";
import { isFloating } from "./tensors";

const MOST_TERMS = 6;
const ROUNDING = 1e-5; // of the largest share; local gradients are computed apart, some in float32

/** What a gate hands back; a gradient of exactly 0 hands on 0, whatever the local gradient is. */
export function handedBack(incoming: number, local: number): number {
  return incoming === 0 ? 0 : incoming * local;
}

/** "-1.7 - 1.7 + 1 = -2.4", of a number with several uses once all of it is there. */
export function sumOfShares(
  circuit: Circuit,
  state: State,
  locals: Locals,
  id: number,
): string | undefined {
  const total = state.gradientOf(circuit.outsideOf(id));
  if (!total || total.shape.length > 0) return undefined;
  const shares = sharesOf(circuit, state, locals, id);
  if (!shares || shares.length < 2) return undefined;
  const gradient = Number(total.elements?.[0]);
  const [sum, largest] = [
    shares.reduce((all, share) => all + share, 0),
    shares.reduce((most, share) => Math.max(most, Math.abs(share)), 0),
  ];
  const agrees = Math.abs(sum - gradient) <= ROUNDING * largest;
  return agrees ? `${termsOf(shares)} = ${shown(gradient)}` : undefined;
}

function sharesOf(
  circuit: Circuit,
  state: State,
  locals: Locals,
  id: number,
): number[] | undefined {
  const shares: number[] = [];
  for (const [node, slot] of circuit.usesOf(id)) {
    const out = circuit.firstOutputOf(node);
    const type = state.everyValue(out)?.dataType;
    if (type !== undefined && !isFloating(type)) continue; // it hands back nothing
    const incoming = state.gradientOf(circuit.outsideOf(out))?.elements?.[0];
    const known = locals.get(node);
    const local = known?.scalar ? known.bySlot.get(slot)?.elements?.[0] : undefined;
    if (circuit.outputCountOf(node) > 1 || incoming === undefined || local === undefined)
      return undefined;
    shares.push(handedBack(Number(incoming), Number(local)));
  }
  const inside = circuit.insideOf(id);
  const seeded = circuit.outputs.find(({ name }) => name === state.output)?.ids ?? [];
  for (const each of seeded) if (circuit.insideOf(each) === inside) shares.push(1);
  return shares;
}

function termsOf(shares: number[]): string {
  const terms = shares.slice(0, MOST_TERMS).map((share, i) => {
    const text = shown(share);
    if (i === 0) return text;
    return text.startsWith("-") ? ` - ${text.slice(1)}` : ` + ${text}`;
  });
  if (shares.length > MOST_TERMS) terms.push(` + … (${shares.length} in all)`);
  return terms.join("");
}
