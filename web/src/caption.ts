/** Sentences about what the circuit does and what is chosen in it. */

import type { App } from "./app";
import { titleOf } from "./expression";
import { brief } from "./format";
import { handedBack } from "./shares";
import { briefReading, NOT_COMPUTED } from "./state";
import type { Reading } from "./readings";

export const NOT_YET = "not computed yet";

/** What the last step did. */
export function captionOf(app: App): string {
  const { state, playback } = app;
  const step = playback.step();
  if (step.kind === "nothing") return "Nothing is computed yet. Play, or step.";
  if (step.kind === "given") return "Inputs and parameters have their values.";
  if (step.kind === "seed")
    return `Backward: the gradient of output ${state.output} is the seed, 1.`;
  return step.kind === "forward" ? forward(app, step.node) : backward(app, step.node);
}

function forward({ circuit, state }: App, node: number): string {
  const textOf = (id: number) => briefly(id ? state.valueOf(id) : undefined);
  const inputs = circuit!.inputsOf(node).map(textOf).join(", ");
  const place = `Forward ${node + 1} of ${circuit!.nodeCount}`;
  return `${place}: ${circuit!.operatorOf(node)} of ${inputs} is ${textOf(circuit!.firstOutputOf(node))}`;
}

function backward({ circuit, state, locals }: App, node: number): string {
  const out = circuit!.firstOutputOf(node);
  const operator = circuit!.operatorOf(node);
  const place = `Backward ${circuit!.nodeCount - node} of ${circuit!.nodeCount}: ${operator}`;
  if (circuit!.isWithoutGradient(out)) return `${place} is in a module that has its own gradient`;
  if (!state.hasGradients(out)) return `${place} has no gradient: its output is not floating`;
  const incoming = state.gradientOf(out);
  const found = locals.get(node);
  const came = briefly(incoming);
  if (!incoming || !found?.scalar) return `${place} takes ${came} and hands on what its inputs get`;
  const factor = Number(incoming.elements?.[0]);
  const back = [...found.bySlot.values()].map(({ elements }) => {
    const local = Number(elements?.[0]);
    return `${came} × ${brief(local)} = ${brief(handedBack(factor, local))}`;
  });
  return `${place} takes ${came} and hands on ${back.join(" and ")}`;
}

function briefly(reading: Reading | undefined): string {
  return reading ? briefReading(reading) : NOT_COMPUTED;
}

/** The chosen item, for who hears the page. */
export function itemSentence({ selectedItem: item, state, circuit }: App): string {
  if (!item || !circuit) return "";
  if (item.kind === "group") return `${item.text}, closed, ${item.caption}`;
  const [id] = item.ids;
  const operator = item.node >= 0 ? circuit.operatorOf(item.node) : item.kind;
  const [value, gradient] = [state.valueOf(id), state.gradientOf(id)];
  const missing = state.hasGradients(id) ? NOT_YET : "none";
  return (
    `${operator} ${titleOf(circuit, id)}: value ${value ? briefReading(value) : NOT_YET}, ` +
    `gradient ${gradient ? briefReading(gradient) : missing}`
  );
}
