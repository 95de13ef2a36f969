/** A decoded graph: nodes by index, values by id; modules are written out. */

import { fromBinary } from "@bufbuild/protobuf";
import { shown, shownTensor } from "./format";
import {
  GraphSchema,
  Leaf_Layout,
  type Attribute,
  type Gate,
  type Graph,
  type Leaf as LeafMessage,
} from "./gen/gradwire/v1/graph_pb";
import { GraphError, WrittenOut } from "./modules";
import type { DataType } from "./gen/gradwire/v1/tensor_pb";
import { bytesOf, decoded, isFloating, sizeOf } from "./tensors";

export type LeafKind = "input" | "parameter" | "constant";

/** An axis: its length, or the symbol that stands for it. */
export type Axis = number | string;

export interface Leaf {
  kind: LeafKind;
  name: string;
  dataType: DataType;
  axes: Axis[];
  /** One value id for each element, or one for all. */
  byElement: boolean;
  first: number;
  count: number;
  message: LeafMessage;
}

export interface Output {
  name: string;
  ids: number[];
}

/** A named sub-circuit around a node: a use of a module, or a part of a path that names share. */
export interface Part {
  key: string;
  name: string;
  note: string;
  /** What names of its parts begin with, before a "/"; empty where there is none. */
  path: string;
  ownGradient: boolean;
}

export class Circuit {
  readonly message: Graph;
  readonly leaves: Leaf[] = [];
  readonly outputs: Output[];
  readonly nodeCount: number;
  /** The greatest value id that a server knows. Constants of modules have greater ones. */
  readonly valueCount: number;
  /** Values of the leaves; those of nodes come after them. */
  readonly leafValues: number;
  private readonly written: WrittenOut;
  private readonly moduleConstants: Leaf[];
  private readonly outsides = new Map<number, number>();
  /** By value id: its node, or -1 for a leaf. */
  private readonly makers: Int32Array;
  private readonly outputNames = new Map<number, string>();
  private uses: Map<number, [node: number, slot: number][]> | undefined;

  /** @param bytes a serialized Graph, kept as it is: its digest is the graph's identity. */
  constructor(readonly bytes: Uint8Array) {
    this.message = fromBinary(GraphSchema, bytes);
    const circuit = this.message.circuit;
    if (!circuit) throw new GraphError("the graph has no circuit");
    let id = 1;
    for (const [kind, messages] of [
      ["input", circuit.inputs],
      ["parameter", circuit.parameters],
      ["constant", circuit.constants],
    ] as const) {
      for (const message of messages) {
        const leaf = leafOf(kind, message, id);
        this.leaves.push(leaf);
        id += leaf.count;
      }
    }
    this.leafValues = id - 1;
    const written = new WrittenOut(this.message, circuit, this.leafValues);
    this.written = written;
    this.nodeCount = written.rows.length;
    this.valueCount = written.valueCount;
    this.moduleConstants = written.constants.map(({ id: own, module, place }) =>
      leafOf("constant", module.circuit!.constants[place], own),
    );
    this.makers = new Int32Array(this.valueCount + 1).fill(-1);
    for (let node = 0; node < this.nodeCount; node++) {
      const first = written.firsts[node];
      this.makers.fill(node, first, first + this.outputCountOf(node));
    }
    for (const [outer, inner] of written.aliases) {
      this.makers[outer] = this.makers[this.insideOf(outer)] ?? -1;
      if (this.makers[outer] >= 0) this.outsides.set(inner, outer);
    }
    this.outputs = circuit.outputs.map(({ name, valueIds }) => ({ name, ids: valueIds }));
    for (const { name, ids } of this.outputs) {
      if (ids.length === 1) this.outputNames.set(ids[0], name);
    }
  }

  gateOf(node: number): Gate {
    return this.message.gates[this.written.rows[node]];
  }

  operatorOf(node: number): string {
    const { target } = this.gateOf(node);
    return target.case === "operator" ? target.value : "";
  }

  attributesOf(node: number): Attribute[] {
    return this.gateOf(node).attributes;
  }

  /** Value ids, 0 for an omitted one. */
  inputsOf(node: number): number[] {
    const { inputs, starts } = this.written;
    return inputs.slice(starts[node], starts[node + 1]);
  }

  firstOutputOf(node: number): number {
    return this.written.firsts[node];
  }

  outputCountOf(node: number): number {
    return this.gateOf(node).outputCount;
  }

  /** The node that yields a value; -1 for a leaf's. */
  makerOf(id: number): number {
    return this.makers[id] ?? -1;
  }

  /** What a use of a module yields, as the value inside of it; any other value as it is. */
  insideOf(id: number): number {
    let at = id;
    for (
      let next = this.written.aliases.get(at);
      next !== undefined;
      next = this.written.aliases.get(at)
    )
      at = next;
    return at;
  }

  /** A value inside of a module, as what the outermost use yields it; any other value as it is. */
  outsideOf(id: number): number {
    let at = id;
    for (let next = this.outsides.get(at); next !== undefined; next = this.outsides.get(at))
      at = next;
    return at;
  }

  /** Values that uses of modules yield. */
  get usedValues(): Iterable<number> {
    return this.written.aliases.keys();
  }

  /** Nodes that take a value, by the name it has inside of modules or outside, and as which input. */
  usesOf(id: number): readonly [node: number, slot: number][] {
    if (!this.uses) {
      this.uses = new Map();
      for (let node = 0; node < this.nodeCount; node++) {
        this.inputsOf(node).forEach((input, slot) => {
          const inside = this.insideOf(input);
          const known = this.uses!.get(inside);
          if (known) known.push([node, slot]);
          else this.uses!.set(inside, [[node, slot]]);
        });
      }
    }
    return this.uses.get(this.insideOf(id)) ?? [];
  }

  /** It is inside of a module that has its own gradient, which computes none there. */
  isWithoutGradient(id: number): boolean {
    const node = this.written.aliases.has(id) ? -1 : this.makerOf(id);
    return node >= 0 && (this.written.uses[node]?.ownGradient ?? false);
  }

  isLeaf(id: number): boolean {
    return (id > 0 && id <= this.leafValues) || id > this.valueCount;
  }

  leafOf(id: number): Leaf | undefined {
    if (!this.isLeaf(id)) return undefined;
    const leaves = id > this.valueCount ? this.moduleConstants : this.leaves;
    let [low, high] = [0, leaves.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (leaves[middle].first + leaves[middle].count <= id) low = middle + 1;
      else high = middle;
    }
    return leaves[low];
  }

  /** The graph's leaves, then the constants of its modules. */
  get everyLeaf(): Leaf[] {
    return [...this.leaves, ...this.moduleConstants];
  }

  /** What `gradwire eval` calls a value. */
  labelOf(id: number): string {
    const leaf = this.leafOf(id);
    if (!leaf) return this.written.names.get(id) ?? this.outputNames.get(id) ?? `%${id}`;
    if (leaf.kind === "constant") return constantLabel(leaf);
    return leaf.byElement ? `${leaf.name}[${id - leaf.first}]` : leaf.name;
  }

  /** A node's own name, without its path; its output's stands at the end of its wire. */
  captionOf(node: number): string {
    const id = this.firstOutputOf(node);
    const name = this.written.names.get(id) ?? "";
    if (name === this.outputNames.get(id)) return "";
    const path = this.written.uses[node]?.path;
    const own = path ? name.slice(path.length + 1) : name;
    return own.includes(" ") ? own : (own.split("/").at(-1) ?? "");
  }

  /** The named sub-circuits around a node, outermost first. */
  partsOf(node: number): Part[] {
    const inner = this.written.uses[node];
    const name = this.written.names.get(this.firstOutputOf(node)) ?? "";
    if (!inner) return pathParts(name);
    const uses: Part[] = [];
    let outermost = inner;
    for (let use: typeof inner | undefined = inner; use; use = use.around) {
      outermost = use;
      const { key, name: called, path, ownGradient } = use;
      const note = ownGradient ? "own gradient" : "";
      uses.unshift({ key, name: called, note, path, ownGradient });
    }
    return [...pathParts(outermost.path), ...uses];
  }
}

/** The parts of a name before its last "/"; a formula, such as "1 / (1 + x)", has none. */
function pathParts(name: string): Part[] {
  if (name.includes(" ")) return [];
  const words = name
    .split("/")
    .slice(0, -1)
    .filter((part) => part !== "");
  return words.map((word, i) => ({
    key: words.slice(0, i + 1).join("/"),
    name: word,
    note: "",
    path: words.slice(0, i + 1).join("/"),
    ownGradient: false,
  }));
}

function leafOf(kind: LeafKind, message: LeafMessage, first: number): Leaf {
  const type = message.type;
  if (!type) throw new GraphError(`leaf '${message.name}' has no type`);
  const axes = type.axes.map(({ extent }) =>
    extent.case === "symbol" ? extent.value : Number(extent.value ?? 0),
  );
  const byElement = message.layout === Leaf_Layout.ELEMENTS;
  const count = byElement ? sizeOf(axes.map(Number)) : 1;
  return {
    kind,
    name: message.name,
    dataType: type.dataType,
    axes,
    byElement,
    first,
    count,
    message,
  };
}

function constantLabel(leaf: Leaf): string {
  const shape = leaf.axes.map(Number);
  const elements = decoded(leaf.dataType, bytesOf(leaf.message.value));
  const floating = isFloating(leaf.dataType);
  if (!elements?.length || elements.length > 6) return leaf.name || "constant";
  return shape.length ? shownTensor(elements, shape, floating) : shown(elements[0], floating);
}
