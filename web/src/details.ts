/** The panel about one node: operator, formulas, numbers put in, what comes back. */

import { NOT_YET } from "./caption";
import type { Circuit } from "./circuit";
import type { App } from "./app";
import { h } from "./dom";
import { shown, shownTensor } from "./format";
import { titleOf } from "./expression";
import { partialOf, substituted } from "./formula";
import type { Attribute } from "./gen/gradwire/v1/graph_pb";
import type { GateDescription } from "./gen/gradwire/v1/service_pb";
import type { Found, Locals } from "./locals";
import type { Reading } from "./readings";
import type { Item } from "./scene";
import { handedBack, sumOfShares } from "./shares";
import type { State } from "./state";
import { isFloating, typeName } from "./tensors";

interface Subject {
  circuit: Circuit;
  state: State;
  item: Item;
  gate: GateDescription | undefined;
  locals: Found | undefined;
  everyLocal: Locals;
  select(id: number): void;
}

/** A number as `gradwire eval` shows it. */
function numberText(reading: Reading): string {
  const { elements, shape, figures, dataType } = reading;
  const floating = isFloating(dataType);
  if (elements && shape.length === 0) return shown(elements[0], floating);
  if (elements) return shownTensor(elements, shape, floating);
  const { minimum, maximum, mean, norm } = figures;
  return `${shown(minimum)} to ${shown(maximum)}, mean ${shown(mean)}, norm ${shown(norm)}`;
}

/** Of the chosen item. */
export function detailsOf(app: App): HTMLElement {
  const { circuit, state, selectedItem: item, catalogue } = app;
  if (!circuit || !item) return h("p", { class: "muted" }, "Choose a gate to see its gradient.");
  const subject: Subject = {
    circuit,
    state,
    item,
    gate: catalogue?.gate(item.node >= 0 ? circuit.operatorOf(item.node) : ""),
    locals: app.locals.get(item.node),
    everyLocal: app.locals,
    select: (id) => void app.jump(id),
  };
  if (item.kind === "gate") return gateDetails(subject);
  if (item.kind === "output") return outputDetails(subject);
  if (item.kind === "group") return groupDetails(app, item);
  return leafDetails(subject);
}

function groupDetails(app: App, item: Item): HTMLElement {
  const open = () => void app.toggleGroup(item.group);
  return h(
    "div",
    { class: "details-body" },
    h("h2", {}, app.groups.all[item.group].name, " ", h("span", { class: "muted" }, item.caption)),
    h("div", {}, h("button", { type: "button", click: open }, "Open")),
  );
}

function gateDetails(subject: Subject): HTMLElement {
  const { circuit, state, item, gate } = subject;
  const operator = circuit.operatorOf(item.node);
  const [first] = item.ids;
  return h(
    "div",
    { class: "details-body" },
    h(
      "h2",
      {},
      item.text !== operator && h("span", { class: "chip" }, item.text),
      ` ${operator} `,
      h("span", { class: "muted mono" }, circuit.labelOf(first)),
    ),
    titleOf(circuit, first) !== circuit.labelOf(first) &&
      h("p", { class: "mono" }, titleOf(circuit, first)),
    gate && h("p", {}, gate.summary),
    h(
      "dl",
      { class: "formulas" },
      ...term("formula", gate?.formula),
      ...term("gradient", gate?.gradient),
      ...term("at kinks", gate?.subgradient),
      ...attributeTerms(circuit.attributesOf(item.node)),
    ),
    numbers(subject),
    item.ids.length > 1 &&
      h("p", { class: "muted" }, `${item.ids.length} outputs; the first is shown.`),
    h("h3", {}, "Forward"),
    inputTable(subject),
    state.hasGradients(first) && h("h3", {}, "Backward"),
    state.hasGradients(first) && backward(subject),
  );
}

function term(name: string, text: string | undefined): HTMLElement[] {
  return text ? [h("dt", {}, name), h("dd", { class: "mono" }, text)] : [];
}

function attributeTerms(attributes: Attribute[]): HTMLElement[] {
  return attributes.flatMap(({ name, value }) => term(name, attributeText(value)));
}

function attributeText(value: Attribute["value"]): string {
  if (value.case === "tensor") return "a tensor";
  if (value.case === "ints" || value.case === "floats" || value.case === "strings") {
    return `[${value.value.values.join(", ")}]`;
  }
  return String(value.value);
}

const NOT_INSIDE = "not computed: the module has its own";

/** The output's value and gradient, as the terminal shows them. */
function numbers({ circuit, state, item, everyLocal }: Subject): HTMLElement {
  const [first] = item.ids;
  const sum = sumOfShares(circuit, state, everyLocal, first);
  return h(
    "dl",
    { class: "numbers" },
    h("dt", {}, "value"),
    numberCell("value", state.valueOf(first)),
    h("dt", {}, "gradient"),
    state.hasGradients(first)
      ? numberCell("gradient", state.gradientOf(first))
      : h("dd", { class: "muted" }, circuit.isWithoutGradient(first) ? NOT_INSIDE : "has none"),
    ...(sum
      ? [h("dt", {}, "sum of uses"), h("dd", { class: "gradient", "data-number": "sum" }, sum)]
      : []),
    ...typeTerms(state.everyValue(first)),
  );
}

function numberCell(kind: string, reading: Reading | undefined): HTMLElement {
  return h("dd", { class: reading ? kind : "muted", "data-number": kind }, textOf(reading));
}

function typeTerms(reading: Reading | undefined): HTMLElement[] {
  if (!reading) return [];
  const shape = reading.shape.length ? `, shape ${reading.shape.join("×")}` : "";
  return [h("dt", {}, "type"), h("dd", {}, typeName(reading.dataType) + shape)];
}

function textOf(reading: Reading | undefined): string {
  return reading ? numberText(reading) : NOT_YET;
}

function inputTable({ circuit, state, item, gate, select }: Subject): HTMLElement {
  const rows = Array.from(circuit.inputsOf(item.node), (id, slot) =>
    h(
      "tr",
      {},
      h("td", { class: "mono" }, inputName(gate, slot)),
      h("td", {}, id ? link(circuit, id, select) : h("span", { class: "muted" }, "omitted")),
      h(
        "td",
        { class: state.valueOf(id) ? "value mono" : "muted" },
        id ? textOf(state.valueOf(id)) : "",
      ),
    ),
  );
  return h(
    "table",
    { class: "inputs-of" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ...["input", "comes from", "value"].map((each) => h("th", { scope: "col" }, each)),
      ),
    ),
    h("tbody", {}, ...rows),
  );
}

function link(circuit: Circuit, id: number, select: (id: number) => void): HTMLElement {
  const go = () => select(id);
  return h("button", { type: "button", class: "link mono", click: go }, titleOf(circuit, id));
}

/** ONNX's name of an input; of further ones of a variadic gate, with the next number. */
function inputName(gate: GateDescription | undefined, slot: number): string {
  const inputs = gate?.inputs ?? [];
  const known = inputs[slot];
  if (known) return known.name;
  const last = inputs.at(-1);
  return last?.variadic
    ? last.name.replace(/\d+$/, String(slot - inputs.length + 1))
    : String(slot);
}

/** Coming in, times the local gradient, going back: for each input. */
function backward(subject: Subject): HTMLElement {
  const { circuit, state, item, locals, select } = subject;
  const incoming = state.gradientOf(item.ids[0]);
  const cards = Array.from(circuit.inputsOf(item.node)).flatMap((id, slot) => {
    if (!id) return [];
    const reading = state.everyValue(id);
    if (reading && !isFloating(reading.dataType)) return [];
    const card =
      locals?.scalar === false ? tensorCard(subject, slot) : localCard(subject, slot, incoming);
    const to = h("div", {}, "to ", link(circuit, id, select));
    return [h("li", {}, to, ...card, sharedWith(subject, id))];
  });
  return h("ul", { class: "backward" }, ...cards);
}

function localCard(subject: Subject, slot: number, incoming: Reading | undefined): HTMLElement[] {
  const { state, item, gate, locals } = subject;
  const name = inputName(gate, slot);
  const expression = partialOf(gate?.gradient ?? "", name);
  const local = locals?.bySlot.get(slot);
  const computed = state.valueOf(item.ids[0]) !== undefined;
  const left = partialName(gate, name);
  const steps = [left, expression].filter((each) => each !== undefined);
  if (computed && expression) steps.push(substituted(expression, numbersOf(subject)));
  if (computed && local) steps.push(numberText(local));
  const lines: HTMLElement[] = [
    h("div", { class: "mono local-line", "data-number": "local" }, ...equation(steps)),
  ];
  if (!computed) lines.push(h("div", { class: "muted" }, `local gradient: ${NOT_YET}`));
  lines.push(product(incoming, computed ? local : undefined));
  return lines;
}

/** Equal sides, one below the other; a side that says the same as the one before is left out. */
function equation(sides: string[]): HTMLElement[] {
  return sides
    .filter((side, i) => side !== sides[i - 1])
    .map((side, i, kept) =>
      h(
        "span",
        {
          class: i === kept.length - 1 && i > 1 ? "local" : "",
        },
        i ? `= ${side} ` : `${side} `,
      ),
    );
}

function product(incoming: Reading | undefined, local: Reading | undefined): HTMLElement {
  if (!incoming) return h("div", { class: "muted" }, `gradient coming in: ${NOT_YET}`);
  const came = h("b", { class: "gradient", title: "gradient coming in" }, numberText(incoming));
  if (!local) return h("div", {}, "gradient coming in: ", came);
  const back = handedBack(Number(incoming.elements?.[0]), Number(local.elements?.[0]));
  return h(
    "div",
    { class: "mono product", "data-number": "product" },
    came,
    " × ",
    h("b", { class: "local", title: "local gradient" }, numberText(local)),
    " = ",
    h("b", { class: "gradient", title: "what goes back" }, shown(back)),
  );
}

function tensorCard({ gate, locals, state, item }: Subject, slot: number): HTMLElement[] {
  const back = locals?.bySlot.get(slot);
  const name = inputName(gate, slot);
  const expression = partialOf(gate?.gradient ?? "", name);
  const text = state.gradientOf(item.ids[0]) && back ? numberText(back) : NOT_YET;
  return [
    h("div", { class: "mono" }, expression ? `${partialName(gate, name)} = ${expression}` : ""),
    h("div", {}, "goes back: ", h("b", { class: "gradient mono" }, text)),
  ];
}

function sharedWith(
  { circuit, state, item, everyLocal }: Subject,
  id: number,
): HTMLElement | false {
  const users = new Set(circuit.usesOf(id).map(([node]) => node));
  users.delete(item.node);
  if (users.size === 0) return false;
  const others = users.size === 1 ? "another gate uses" : `${users.size} other gates use`;
  const sum = sumOfShares(circuit, state, everyLocal, id);
  return h(
    "div",
    { class: "muted" },
    `${others} ${titleOf(circuit, id)} too: its gradient is the sum`,
    sum ? h("span", {}, ", ", h("span", { class: "mono" }, sum)) : "",
  );
}

/** "out" in "d out/dX": what the catalogue calls the output. */
function outputName(gate: GateDescription | undefined): string {
  return /d ([A-Za-z_]\w*)\/d/.exec(gate?.gradient ?? "")?.[1] ?? "out";
}

/** "d out/dX", "d out/d data_0": as the catalogue writes it. */
function partialName(gate: GateDescription | undefined, input: string): string {
  return `d ${outputName(gate)}/d${input.length > 1 ? " " : ""}${input}`;
}

/** Names in the catalogue's gradient, and this node's numbers for them. */
function numbersOf({ circuit, state, item, gate }: Subject): Map<string, string> {
  const found = new Map<string, string>();
  for (const { name, defaultValue } of gate?.attributes ?? []) {
    if (defaultValue && typeof defaultValue.value.value === "number") {
      found.set(name, shown(defaultValue.value.value));
    }
  }
  for (const { name, value } of circuit.attributesOf(item.node)) {
    if (value.case === "floatValue" || value.case === "intValue") {
      found.set(name, shown(value.value, value.case === "floatValue"));
    }
  }
  circuit.inputsOf(item.node).forEach((id, slot) => {
    const reading = id ? state.valueOf(id) : undefined;
    if (reading?.shape.length === 0) found.set(inputName(gate, slot), numberText(reading));
  });
  const output = state.valueOf(item.ids[0]);
  if (output?.shape.length === 0) found.set(outputName(gate), numberText(output));
  return found;
}

const KINDS: Readonly<Record<string, string>> = {
  input: "given by the caller, and differentiated",
  parameter: "a stored value, differentiated like an input",
  constant: "a stored value, never differentiated",
};

function leafDetails(subject: Subject): HTMLElement {
  const { circuit, item } = subject;
  if (item.bundle) return h("h2", {}, item.text);
  return h(
    "div",
    { class: "details-body" },
    heading(circuit.labelOf(item.ids[0]), item.kind),
    h("p", {}, `This ${item.kind} is ${KINDS[item.kind]}.`),
    numbers(subject),
  );
}

function outputDetails(subject: Subject): HTMLElement {
  const { circuit, item, state, select } = subject;
  const seeded = circuit.outputs.find(({ ids }) => ids === item.ids)?.name === state.output;
  return h(
    "div",
    { class: "details-body" },
    heading(item.text, "output"),
    h(
      "p",
      {},
      seeded
        ? "The backward pass begins here, with a gradient of 1."
        : "Gradients are not taken of this output now.",
    ),
    item.ids.length === 1 && numbers(subject),
    h(
      "p",
      {},
      "It is ",
      ...item.ids.slice(0, MOST_LINKS).flatMap((id) => [link(circuit, id, select), " "]),
    ),
  );
}

const MOST_LINKS = 12;

function heading(name: string, kind: string): HTMLElement {
  return h("h2", {}, h("span", { class: "mono" }, name), " ", h("span", { class: "muted" }, kind));
}
