/** Modules written out: each use's nodes stand where the use stands, with the ids that servers give. */

import type { Circuit as CircuitMessage, Graph, Module } from "./gen/gradwire/v1/graph_pb";

/** A named sub-circuit around a node: a use of a module. */
export interface Use {
  /** Unique among the uses. */
  key: string;
  name: string;
  around: Use | undefined;
  /** What names inside begin with; empty where the use, or one around it, has no name. */
  path: string;
  /** The module has a gradient of its own, so that none is computed inside. */
  ownGradient: boolean;
}

/** A constant of a module: an id that no server knows, and its place in Module.circuit.constants. */
export interface ModuleConstant {
  id: number;
  module: Module;
  place: number;
}

/** A graph that cannot be drawn. */
export class GraphError extends Error {}

const MOST_NODES = 4_000_000;

export class WrittenOut {
  /** By node: row of the gates' table, first id it yields, place of its first input in `inputs`. */
  readonly rows: number[] = [];
  readonly firsts: number[] = [];
  readonly starts: number[] = [0];
  readonly inputs: number[] = [];
  readonly uses: (Use | undefined)[] = [];
  readonly names = new Map<number, string>();
  /** What a use yields is a value inside of it, or one that it was given. */
  readonly aliases = new Map<number, number>();
  readonly constants: ModuleConstant[] = [];
  readonly valueCount: number;
  /** By module: values of its own nodes, and of those with all inside. */
  private readonly own: number[];
  private readonly whole: number[] = [];

  constructor(
    private readonly graph: Graph,
    circuit: CircuitMessage,
    leafValues: number,
  ) {
    this.own = graph.modules.map(({ circuit: inner }) => this.countOf(inner));
    graph.modules.forEach(({ circuit: inner }, i) => {
      this.whole[i] = this.own[i] + this.insideOf(inner);
    });
    const own = this.countOf(circuit);
    this.valueCount = leafValues + own + this.insideOf(circuit);
    if (this.valueCount > MOST_NODES) {
      throw new GraphError(`${this.valueCount} values with modules written out: too many to draw`);
    }
    const leaves = Array.from({ length: leafValues + 1 }, (_, id) => id);
    this.write(circuit, leaves, leafValues + 1, leafValues + 1 + own, undefined);
  }

  private countOf(circuit: CircuitMessage | undefined): number {
    return (circuit?.nodeGates ?? []).reduce((sum, row) => sum + this.gate(row).outputCount, 0);
  }

  private insideOf(circuit: CircuitMessage | undefined): number {
    return (circuit?.nodeGates ?? []).reduce((sum, row) => {
      const { target } = this.gate(row);
      return sum + (target.case === "module" ? (this.whole[target.value] ?? 0) : 0);
    }, 0);
  }

  private gate(row: number) {
    const gate = this.graph.gates[row];
    if (!gate) throw new GraphError(`a node uses gate ${row}, which is not in the table`);
    return gate;
  }

  /** `leaves` are the ids of a circuit's leaves; its nodes' values begin at `own`, others at `inside`. */
  private write(
    circuit: CircuitMessage,
    leaves: number[],
    own: number,
    inside: number,
    use: Use | undefined,
  ): (local: number) => number {
    const idOf = (local: number) =>
      local < leaves.length ? leaves[local] : own + local - leaves.length;
    circuit.namedIds.forEach((local, i) => {
      const name = circuit.names[i];
      if (!use || use.path) this.names.set(idOf(local), use ? `${use.path}/${name}` : name);
    });
    let [first, cursor] = [own, 0];
    for (const row of circuit.nodeGates) {
      const { target, inputCount, outputCount } = this.gate(row);
      const inputs = circuit.nodeInputs.slice(cursor, cursor + inputCount).map(idOf);
      cursor += inputCount;
      if (target.case === "module") {
        this.writeUse(target.value, inputs, first, inside, use);
        inside += this.whole[target.value];
      } else {
        this.rows.push(row);
        this.firsts.push(first);
        this.inputs.push(...inputs);
        this.starts.push(this.inputs.length);
        this.uses.push(use);
      }
      first += outputCount;
    }
    return idOf;
  }

  private writeUse(
    index: number,
    inputs: number[],
    first: number,
    inside: number,
    around: Use | undefined,
  ): void {
    const module = this.graph.modules[index];
    if (!module?.circuit) throw new GraphError(`a node uses module ${index}, which has no circuit`);
    const path = this.names.get(first) ?? "";
    const use: Use = {
      key: `use ${inside}`,
      name: labelOf(path, module.name),
      around,
      path,
      ownGradient: module.gradient !== undefined || (around?.ownGradient ?? false),
    };
    const constants = module.circuit.constants.map((_, place) => {
      const id = this.valueCount + 1 + this.constants.length;
      this.constants.push({ id, module, place });
      return id;
    });
    const idOf = this.write(
      module.circuit,
      [0, ...inputs, ...constants],
      inside,
      inside + this.own[index],
      use,
    );
    module.circuit.outputs.forEach(({ valueIds }, i) =>
      this.aliases.set(first + i, idOf(valueIds[0])),
    );
  }
}

/** "attention · layer": a use's own name and that of its module, or the latter alone. */
function labelOf(path: string, module: string): string {
  const own = path.split("/").at(-1);
  return own ? `${own} · ${module}` : module;
}
