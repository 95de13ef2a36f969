/** Named sub-circuits that can be closed to one box, and the summary of what is too large to draw. */

import type { Circuit, Part } from "./circuit";

export interface Group {
  id: number;
  name: string;
  /** -1 at the top. */
  parent: number;
  /** Nodes inside, those of inner groups counted. */
  nodes: number;
  /** Of a summary: which stretch of levels it is; -1 for others. */
  column: number;
  /** What names of its parts begin with, before a "/"; empty where there is none. */
  path: string;
  /** More about it, such as the levels of a summary. */
  note: string;
  /** A module that has a gradient of its own is looked at from outside first. */
  ownGradient: boolean;
}

/** More nodes than this are summarized: by stretches of levels, and in them by operator. */
const SUMMARIZED_ABOVE = 5000;
const STRETCHES = 12;

export class Groups {
  readonly all: Group[] = [];
  readonly summarized: boolean;
  /** By node: its innermost group, or -1. */
  private readonly innermost: Int32Array;

  constructor(circuit: Circuit) {
    this.innermost = new Int32Array(circuit.nodeCount).fill(-1);
    const byKey = new Map<string, number>();
    const idOf = (parts: Part[]): number => {
      let parent = -1;
      for (const { key, name, note, path, ownGradient } of parts) {
        let id = byKey.get(key);
        if (id === undefined) {
          id = this.all.length;
          byKey.set(key, id);
          this.all.push({ id, name, note, path, ownGradient, parent, nodes: 0, column: -1 });
        }
        this.all[id].nodes++;
        parent = id;
      }
      return parent;
    };
    this.summarized = circuit.nodeCount > SUMMARIZED_ABOVE;
    if (this.summarized) {
      const stretches = stretchesOf(circuit);
      for (let node = 0; node < circuit.nodeCount; node++) {
        const { note, column } = stretches(node);
        const name = circuit.operatorOf(node);
        const id = idOf([{ key: `${name} ${column}`, name, note, path: "", ownGradient: false }]);
        this.all[id].column = column;
        this.innermost[node] = id;
      }
      return;
    }
    for (let node = 0; node < circuit.nodeCount; node++) {
      this.innermost[node] = idOf(circuit.partsOf(node));
    }
  }

  /** The groups around a node, outermost first. */
  around(node: number): number[] {
    return this.chain(this.innermost[node]);
  }

  chain(group: number): number[] {
    const found: number[] = [];
    for (let at = group; at >= 0; at = this.all[at].parent) found.unshift(at);
    return found;
  }
}

function stretchesOf(circuit: Circuit): (node: number) => { note: string; column: number } {
  const levels = levelsOf(circuit);
  const depth = levels.reduce((most, level) => Math.max(most, level), 0) + 1;
  const length = Math.ceil(depth / STRETCHES);
  return (node) => {
    const column = Math.floor(levels[node] / length);
    const first = column * length + 1;
    return {
      column,
      note: length === 1 ? `level ${first}` : `levels ${first}–${first + length - 1}`,
    };
  };
}

/** How many nodes lie before each on its longest way from the leaves. */
function levelsOf(circuit: Circuit): Uint32Array {
  const levels = new Uint32Array(circuit.nodeCount);
  for (let node = 0; node < circuit.nodeCount; node++) {
    for (const id of circuit.inputsOf(node)) {
      const maker = circuit.makerOf(id);
      if (maker >= 0) levels[node] = Math.max(levels[node], levels[maker] + 1);
    }
  }
  return levels;
}
