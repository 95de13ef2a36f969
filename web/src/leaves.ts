/**
 * Where leaves are drawn: once, or beside each of their uses. Long wires from leaves hide what is
 * computed, and dot takes seconds over the columns that they cross.
 */

import type { Circuit, LeafKind } from "./circuit";
import type { Groups } from "./groups";
import type { GateText } from "./symbols";

/** An item for one value of a leaf, or for many together. */
export interface DrawnLeaf {
  kind: LeafKind;
  text: string;
  ids: number[];
  /** The unit that it stands beside; undefined where it stands for all its uses. */
  beside: number | undefined;
}

const MOST_CROSSED = 1500; // columns, by the wires of leaves that are drawn once
const MOST_BESIDE = 32; // leaves of one unit, drawn one by one
const MOST_OF_A_SUMMARY = 12; // leaves drawn one by one
const MOST_UNUSED = 24; // leaves drawn that nothing uses

/** What takes values, numbered: gates by their nodes, then closed groups, then outputs. */
export class Units {
  readonly count: number;
  /** How many units lie before each on the longest way to it. */
  readonly levels: Int32Array;
  /** By node: its own number, or that of the outermost closed group around it. */
  private readonly byNode: Int32Array;

  constructor(
    private readonly circuit: Circuit,
    private readonly groups: Groups,
    closed: ReadonlySet<number>,
  ) {
    const { nodeCount, outputs } = circuit;
    this.count = nodeCount + groups.all.length + outputs.length;
    this.byNode = Int32Array.from({ length: nodeCount }, (_, node) => {
      const shut = groups.around(node).find((group) => closed.has(group));
      return shut === undefined ? node : nodeCount + shut;
    });
    this.levels = new Int32Array(this.count);
    for (let node = 0; node < nodeCount; node++) {
      for (const id of circuit.inputsOf(node)) this.raise(this.byNode[node], id);
    }
    outputs.forEach(({ ids }, i) => ids.forEach((id) => this.raise(this.ofOutput(i), id)));
  }

  private raise(unit: number, id: number): void {
    const maker = this.circuit.makerOf(id);
    if (maker < 0 || this.byNode[maker] === unit) return;
    this.levels[unit] = Math.max(this.levels[unit], this.levels[this.byNode[maker]] + 1);
  }

  ofNode(node: number): number {
    return this.byNode[node];
  }

  ofOutput(place: number): number {
    return this.circuit.nodeCount + this.groups.all.length + place;
  }

  /** The closed group that it is, or -1. */
  groupOf(unit: number): number {
    const group = unit - this.circuit.nodeCount;
    return group >= 0 && group < this.groups.all.length ? group : -1;
  }

  /** Innermost open group around it, or -1. */
  insideOf(unit: number): number {
    const group = this.groupOf(unit);
    if (group >= 0) return this.groups.all[group].parent;
    return unit < this.circuit.nodeCount ? (this.groups.around(unit).at(-1) ?? -1) : -1;
  }
}

export function drawnLeaves(
  circuit: Circuit,
  groups: Groups,
  units: Units,
  texts: GateText[],
): DrawnLeaf[] {
  const uses = usesOf(circuit, units, texts);
  if (groups.summarized) return ofSummary(circuit, uses);
  const unused = circuit.leafValues - uses.size;
  const once = drawnOnce(circuit, uses, units);
  const found: DrawnLeaf[] = [];
  const beside = new Map<number, number[]>();
  for (const { kind, first, count } of circuit.everyLeaf) {
    for (let id = first; id < first + count; id++) {
      const users = uses.get(id);
      if (!users && (kind === "constant" || unused > MOST_UNUSED)) continue;
      if (!users || once.has(id)) {
        found.push({ kind, text: circuit.labelOf(id), ids: [id], beside: undefined });
        continue;
      }
      for (const unit of users) {
        if (isInside(circuit, groups, units.groupOf(unit), id, users)) continue;
        const known = beside.get(unit);
        if (known) known.push(id);
        else beside.set(unit, [id]);
      }
    }
  }
  for (const [unit, ids] of beside) found.push(...besideUnit(circuit, unit, ids));
  return found.sort((a, b) => a.ids[0] - b.ids[0]);
}

/** By value of a leaf: the units that take it, but where it is written in the gate. */
function usesOf(circuit: Circuit, units: Units, texts: GateText[]): Map<number, Set<number>> {
  const uses = new Map<number, Set<number>>();
  const add = (id: number, unit: number) => {
    const inside = circuit.insideOf(id);
    if (!circuit.isLeaf(inside)) return;
    const known = uses.get(inside);
    if (known) known.add(unit);
    else uses.set(inside, new Set([unit]));
  };
  for (let node = 0; node < circuit.nodeCount; node++) {
    for (const id of circuit.inputsOf(node)) {
      if (id !== texts[node].folded) add(id, units.ofNode(node));
    }
  }
  circuit.outputs.forEach(({ ids }, i) => ids.forEach((id) => add(id, units.ofOutput(i))));
  return uses;
}

/** Those whose wires cross the fewest columns, of inputs and parameters that several units take. */
function drawnOnce(
  circuit: Circuit,
  uses: ReadonlyMap<number, ReadonlySet<number>>,
  { levels }: Units,
): Set<number> {
  const crossed: [id: number, columns: number][] = [];
  for (const [id, users] of uses) {
    if (users.size < 2 || circuit.leafOf(id)!.kind === "constant") continue;
    const columns = [...users].map((unit) => levels[unit]);
    const nearest = columns.reduce((least, column) => Math.min(least, column));
    crossed.push([id, columns.reduce((sum, column) => sum + column - nearest, 0)]);
  }
  const once = new Set<number>();
  let left = MOST_CROSSED;
  for (const [id, columns] of crossed.sort(([, a], [, b]) => a - b)) {
    left -= columns;
    if (left < 0) break;
    once.add(id);
  }
  return once;
}

/** A closed group has its constants inside, and the parameters whose names begin with its path. */
function isInside(
  circuit: Circuit,
  groups: Groups,
  group: number,
  id: number,
  users: ReadonlySet<number>,
): boolean {
  if (group < 0) return false;
  const { kind, name } = circuit.leafOf(id)!;
  const path = groups.all[group].path;
  return kind === "constant" || (users.size === 1 && path !== "" && name.startsWith(`${path}/`));
}

/** One by one; or together, where they are many. */
function besideUnit(circuit: Circuit, beside: number, ids: number[]): DrawnLeaf[] {
  if (ids.length <= MOST_BESIDE) {
    return ids.map((id) => ({
      kind: circuit.leafOf(id)!.kind,
      text: circuit.labelOf(id),
      ids: [id],
      beside,
    }));
  }
  return byKind(circuit, ids).map((each) => ({ ...each, beside }));
}

function byKind(circuit: Circuit, all: number[]): Omit<DrawnLeaf, "beside">[] {
  return (["input", "parameter", "constant"] as const).flatMap((kind) => {
    const ids = all.filter((id) => circuit.leafOf(id)!.kind === kind);
    if (ids.length === 0) return [];
    const leaves = new Set(ids.map((id) => circuit.leafOf(id)!.name));
    const [name] = leaves;
    const text = leaves.size === 1 ? `${name} [${ids.length}]` : `${ids.length} ${kind}s`;
    return [{ kind, text: ids.length === 1 ? circuit.labelOf(ids[0]) : text, ids }];
  });
}

/** There everything is a stretch of levels, and leaves are a few items that lead to many of them. */
function ofSummary(circuit: Circuit, uses: ReadonlyMap<number, unknown>): DrawnLeaf[] {
  const ids = [...uses.keys()].sort((a, b) => a - b);
  if (ids.length > MOST_OF_A_SUMMARY) {
    return byKind(circuit, ids).map((each) => ({ ...each, beside: undefined }));
  }
  return ids.map((id) => ({
    kind: circuit.leafOf(id)!.kind,
    text: circuit.labelOf(id),
    ids: [id],
    beside: undefined,
  }));
}
