/** Where a graph is evaluated: a value for each leaf that has none, or another than its own. */

import { create } from "@bufbuild/protobuf";
import type { Circuit, Leaf } from "./circuit";
import {
  BindingSchema,
  Detail,
  EvaluationSchema,
  SelectionSchema,
  type Binding,
  type Evaluation,
} from "./gen/gradwire/v1/service_pb";
import { NamedTensorSchema } from "./gen/gradwire/v1/tensor_pb";
import type { Reading } from "./readings";
import { bytesOf, decoded, isFloating, sizeOf, tensorOf } from "./tensors";

const SYMBOL_SIZE = 2;
const LARGEST = 4_000_000; // elements of a value that the page makes up

export interface LeafPoint {
  leaf: Leaf;
  shape: number[];
  /** Undefined where the page cannot show the type; the stored value then stays. */
  elements: number[] | undefined;
  /** It is not the stored value. */
  changed: boolean;
  /** Nobody gave it. */
  madeUp: boolean;
}

export class Point {
  readonly leaves: LeafPoint[];
  /** The output whose gradient is taken, or "" before outputs are known. */
  output: string;

  constructor(circuit: Circuit, settings: ReadonlyMap<string, number[]>) {
    let scalars = 0;
    this.leaves = circuit.leaves
      .filter(({ kind }) => kind !== "constant")
      .map((leaf) => {
        const point = pointOf(leaf, settings.get(leaf.name), scalars);
        if (point.madeUp && point.shape.length === 0) scalars++;
        return point;
      });
    this.output = circuit.outputs[0]?.name ?? "";
  }

  /** Settings that give this point again, for the address. */
  get settings(): Map<string, number[]> {
    const changed = this.leaves.filter(({ changed, madeUp }) => changed && !madeUp);
    return new Map(changed.map(({ leaf, elements }) => [leaf.name, elements ?? []]));
  }

  set(place: number, element: number, x: number): void {
    const point = this.leaves[place];
    if (!point.elements) return;
    point.elements[element] = x;
    point.changed = true;
    point.madeUp = false;
  }

  /** Takes the signs off made-up numbers, where these make NaN; returns what brings them back. */
  withoutSigns(): (() => void) | undefined {
    if (!this.leaves.some(({ madeUp }) => madeUp)) return undefined;
    const before = this.leaves.map(({ elements }) => elements);
    for (const leaf of this.leaves) {
      if (leaf.madeUp) leaf.elements = leaf.elements?.map(Math.abs);
    }
    return () => this.leaves.forEach((leaf, i) => (leaf.elements = before[i]));
  }

  bindingOf(place: number): Binding | undefined {
    const { leaf, shape, elements } = this.leaves[place];
    const tensor = elements && tensorOf(leaf.dataType, shape, elements);
    return tensor && create(BindingSchema, { leaf: leaf.name, tensor });
  }

  private get bindings(): Binding[] {
    return this.leaves.flatMap(({ changed }, place) => (changed && this.bindingOf(place)) || []);
  }

  /** Forward only, in figures: what shapes there are. */
  survey(): Evaluation {
    return create(EvaluationSchema, {
      bindings: this.bindings,
      forwardOnly: true,
      values: create(SelectionSchema, { all: true, detail: Detail.SUMMARY }),
    });
  }

  /** Every value and every gradient. */
  everything(detail: Detail, outputs: ReadonlyMap<string, Reading>): Evaluation {
    const selection = create(SelectionSchema, { all: true, detail });
    return create(EvaluationSchema, {
      bindings: this.bindings,
      seeds: this.seeds(outputs),
      values: selection,
      gradients: selection,
    });
  }

  /** Every element of some values and gradients. */
  some(values: number[], gradients: number[], outputs: ReadonlyMap<string, Reading>): Evaluation {
    return create(EvaluationSchema, {
      bindings: this.bindings,
      seeds: this.seeds(outputs),
      values: create(SelectionSchema, { valueIds: values }),
      gradients: create(SelectionSchema, { valueIds: gradients }),
    });
  }

  /** 1 for each element of the chosen output; the server does it for an only one that is a scalar. */
  private seeds(outputs: ReadonlyMap<string, Reading>) {
    const chosen = outputs.get(this.output);
    if (!chosen || !isFloating(chosen.dataType)) return [];
    if (outputs.size === 1 && sizeOf(chosen.shape) === 1) return [];
    const tensor = tensorOf(chosen.dataType, chosen.shape, new Array(sizeOf(chosen.shape)).fill(1));
    return tensor ? [create(NamedTensorSchema, { name: this.output, tensor })] : [];
  }
}

function pointOf(leaf: Leaf, given: number[] | undefined, scalars: number): LeafPoint {
  const shape = leaf.axes.map((axis) => (typeof axis === "string" ? SYMBOL_SIZE : axis));
  const size = sizeOf(shape);
  if (given && given.length === size) {
    return { leaf, shape, elements: [...given], changed: true, madeUp: false };
  }
  const stored = leaf.message.value;
  if (stored) {
    const elements = decoded(leaf.dataType, bytesOf(stored))?.map(Number);
    return { leaf, shape: stored.shape.map(Number), elements, changed: false, madeUp: false };
  }
  const elements = size <= LARGEST ? madeUp(leaf, size, scalars) : undefined;
  return { leaf, shape, elements, changed: true, madeUp: true };
}

/** Of scalars that nobody gave a value: they differ, so that max(x, y) and (x + y)*z tell something. */
const SCALARS = [-2, 5, -4, 3, -1, 4, -5, 2, -3, 1];

/** Numbers between -1 and 1 for a tensor, always the same; zeros for integers. */
function madeUp(leaf: Leaf, size: number, scalars: number): number[] {
  if (!isFloating(leaf.dataType)) return new Array(size).fill(0);
  if (leaf.axes.length === 0) {
    const x = SCALARS[scalars % SCALARS.length];
    return [x + (Math.sign(x) * Math.floor(scalars / SCALARS.length)) / 10];
  }
  let seed = [...leaf.name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) >>> 0, 7);
  return Array.from({ length: size }, () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.round((seed / 2 ** 31 - 1) * 1000) / 1000;
  });
}
