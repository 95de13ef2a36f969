/** What is drawn: a circuit's leaves, gates and outputs as items, wires between them. */

import type { Circuit } from "./circuit";
import type { Groups } from "./groups";
import { drawnLeaves, Units } from "./leaves";
import { gateText } from "./symbols";

export type ItemKind = "input" | "parameter" | "constant" | "gate" | "group" | "output";

export interface Item {
  index: number;
  kind: ItemKind;
  /** Of a gate; -1 for others. */
  node: number;
  /** Of a closed group; -1 for others. */
  group: number;
  /** What is written inside, and above where there is more to say. */
  text: string;
  caption: string;
  /** Values that it yields (an output: that it takes); the first is on its wire. */
  ids: number[];
  /** It stands for many values: a closed group, or the elements of a leaf. */
  bundle: boolean;
  /** Of the body; the label of the wire is to the right of it, `stub` wide. */
  width: number;
  height: number;
  stub: number;
  /** Innermost open group around it, or -1. */
  inside: number;
}

export interface Wire {
  from: number;
  to: number;
  id: number;
  /** Which input of a gate it is; -1 where it leads to something else. */
  slot: number;
}

export interface Scene {
  items: Item[];
  wires: Wire[];
  /** Open groups that are drawn as boxes around their items. */
  open: number[];
  /** Of a leaf that is drawn beside each use, the item beside this one, or else the first. */
  itemOfValue(id: number, user?: number): number | undefined;
}

const PILL = 36;
const CHARACTER = 7.6;
const SMALL_CHARACTER = 6.3;
const [LONGEST, LONGEST_CAPTION] = [24, 15];
const SCALAR_STUB = 72;
const BUNDLE_STUB = 96;

export function buildScene(
  circuit: Circuit,
  groups: Groups,
  closed: ReadonlySet<number>,
  shapeOf: (id: number) => number[],
): Scene {
  const items: Item[] = [];
  const wires: Wire[] = [];
  const byNode = new Int32Array(circuit.nodeCount);
  const byGroup = new Map<number, number>();
  const open = new Set<number>();
  const add = (item: Made): number => {
    const wide = item.bundle ? BUNDLE_STUB : stubWidth(shapeOf(item.ids[0]));
    const stub = item.kind === "output" ? 0 : wide;
    items.push({ ...item, stub, index: items.length });
    return items.length - 1;
  };
  const texts = Array.from({ length: circuit.nodeCount }, (_, node) => gateText(circuit, node));
  const units = new Units(circuit, groups, closed);
  const leafItems = new Map<number, number>(); // the first of each value
  const once = new Map<number, number>();
  const besides = new Map<string, number>(); // by unit and value
  for (const { kind, text, ids, beside } of drawnLeaves(circuit, groups, units, texts)) {
    const item = add({
      kind,
      node: -1,
      group: -1,
      text: clipped(text),
      caption: "",
      ids,
      bundle: ids.length > 1,
      width: widthOf(clipped(text)),
      height: 38,
      inside: beside === undefined || kind === "input" ? -1 : units.insideOf(beside),
    });
    for (const id of ids) {
      if (!leafItems.has(id)) leafItems.set(id, item);
      if (beside === undefined) once.set(id, item);
      else besides.set(`${beside}:${id}`, item);
    }
  }
  const itemOf = (node: number): number => {
    const around = groups.around(node);
    const shut = around.find((group) => closed.has(group));
    if (shut === undefined) {
      around.forEach((group) => open.add(group));
      return add(gateItem(circuit, node, texts[node].text, around.at(-1) ?? -1));
    }
    const known = byGroup.get(shut);
    if (known !== undefined) return known;
    const { name, note, nodes, parent } = groups.all[shut];
    groups.chain(parent).forEach((group) => open.add(group));
    const text = clipped(name);
    const caption = [note, `${nodes} nodes`].filter(Boolean).join(", ");
    const made = add({
      kind: "group",
      node: -1,
      group: shut,
      text,
      caption,
      ids: [],
      bundle: true,
      width: Math.max(widthOf(text), caption.length * SMALL_CHARACTER) + 16,
      height: 48,
      inside: parent,
    });
    byGroup.set(shut, made);
    return made;
  };
  const sourceOf = (id: number, unit: number): number | undefined => {
    const maker = circuit.makerOf(id);
    if (maker >= 0) return byNode[maker];
    const inside = circuit.insideOf(id);
    return besides.get(`${unit}:${inside}`) ?? once.get(inside);
  };
  const drawn = new Set<number>();
  const wire = (id: number, unit: number, to: number, slot = -1): void => {
    const from = sourceOf(id, unit);
    const key = id * (circuit.nodeCount + circuit.valueCount + 1) + to;
    if (from === undefined || from === to) return;
    if (items[from].kind === "group" && !items[from].ids.includes(id)) items[from].ids.push(id);
    const grouped = items[to].kind === "group" || items[from].kind === "group";
    if (grouped && drawn.has(key)) return;
    drawn.add(key);
    const [before, after] = [columnOf(groups, items[from]), columnOf(groups, items[to])];
    if (before >= 0 && before === after) return; // of one stretch of a summary: neither comes first
    wires.push({ from, to, id, slot: items[to].kind === "gate" ? slot : -1 });
  };
  for (let node = 0; node < circuit.nodeCount; node++) {
    byNode[node] = itemOf(node);
    circuit.inputsOf(node).forEach((id, slot) => {
      if (id !== texts[node].folded) wire(id, units.ofNode(node), byNode[node], slot);
    });
  }
  for (const [place, { name, ids }] of circuit.outputs.entries()) {
    const text = clipped(name);
    const to = add({
      kind: "output",
      node: -1,
      group: -1,
      text,
      caption: "",
      ids,
      bundle: false,
      width: widthOf(text),
      height: 38,
      inside: -1,
    });
    for (const id of ids) wire(id, units.ofOutput(place), to);
  }
  for (const item of items) if (item.kind === "group") item.bundle = item.ids.length !== 1;
  const shown = thinned(items, wires);
  const itemOfValue = (id: number, user?: number): number | undefined => {
    const inside = circuit.insideOf(id);
    const maker = circuit.makerOf(id);
    if (maker >= 0) return byNode[maker];
    const near = shown.find(({ from, to }) => to === user && items[from].ids.includes(inside));
    return near?.from ?? leafItems.get(inside);
  };
  return { items, wires: shown, open: [...open], itemOfValue };
}

function columnOf(groups: Groups, { group }: Item): number {
  return group < 0 ? -1 : groups.all[group].column;
}

type Made = Omit<Item, "index" | "stub">;

function gateItem(circuit: Circuit, node: number, text: string, inside: number): Made {
  const first = circuit.firstOutputOf(node);
  const name = circuit.captionOf(node);
  return {
    kind: "gate",
    node,
    group: -1,
    text: clipped(text),
    caption: clipped(name, LONGEST_CAPTION),
    inside,
    ids: Array.from({ length: circuit.outputCountOf(node) }, (_, i) => first + i),
    bundle: false,
    width: Math.max(PILL, widthOf(clipped(text))),
    height: PILL + (name ? 18 : 4),
  };
}

/** Between two groups one wire is enough, however many values it carries. */
function thinned(items: Item[], wires: Wire[]): Wire[] {
  const seen = new Set<string>();
  return wires.filter(({ from, to }) => {
    if (items[from].kind !== "group" && !items[from].bundle) return true;
    const key = `${from} ${to}`;
    return !seen.has(key) && seen.add(key);
  });
}

/** Room for what is written of a value of this shape. */
function stubWidth(shape: number[]): number {
  if (shape.length === 0) return SCALAR_STUB;
  if (shape.length === 1 && shape[0] <= 4) return 20 + 52 * shape[0];
  return (shape.join("×").length + 11) * 7.2;
}

function clipped(text: string, most = LONGEST): string {
  const characters = [...text];
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("")}…`;
}

function widthOf(text: string): number {
  return Math.max(24, [...text].length * CHARACTER + 14);
}
