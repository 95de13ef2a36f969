/** What the picture shows of a circuit at one moment. */

import type { Circuit } from "./circuit";
import { brief, type Element } from "./format";
import type { Playback } from "./playback";
import { normOf, readingOfTensor, type Reading, type Readings } from "./readings";
import type { Item, Scene } from "./scene";
import { isFloating } from "./tensors";

export const NOT_COMPUTED = "–";

export class State {
  /** Of wires into gates, by "node:slot"; empty where they are not shown. */
  localGradients = new Map<string, number>();
  /** The item that is looked at, or -1. */
  selected = -1;
  /** The output whose gradient is taken. */
  output = "";
  /** Value ids on the path of the largest gradient. */
  path = new Set<number>();
  private readonly bundles = new WeakMap<Item, Bundle>();
  private readonly constants = new Map<number, Reading>();

  constructor(
    readonly circuit: Circuit,
    readonly playback: Playback,
    public values: Readings,
    public gradients: Readings,
  ) {
    for (const { kind, first, byElement, message } of circuit.everyLeaf) {
      if (kind !== "constant" || !message.value) continue;
      const whole = readingOfTensor(message.value);
      if (!byElement) this.constants.set(first, whole);
      else
        whole.elements?.forEach((x, i) => this.constants.set(first + i, elementReading(whole, x)));
    }
  }

  /** Undefined: not computed yet. */
  valueOf(id: number): Reading | undefined {
    return this.playback.hasValue(id) ? this.everyValue(id) : this.constants.get(id);
  }

  /** What has arrived, whether it is shown yet or not. */
  everyValue(id: number): Reading | undefined {
    return this.values.get(id) ?? this.constants.get(id);
  }

  gradientOf(id: number): Reading | undefined {
    return this.playback.hasGradient(id) ? this.gradients.get(id) : undefined;
  }

  /** A constant has no gradient, nor has an integer. */
  hasGradients(id: number): boolean {
    if (this.circuit.leafOf(id)?.kind === "constant" || this.circuit.isWithoutGradient(id))
      return false;
    const type = this.values.get(id)?.dataType;
    return type === undefined || isFloating(type);
  }

  valueText(item: Item): string {
    if (item.bundle) return this.bundleText(item, this.values, 0);
    const reading = this.valueOf(item.ids[0]);
    return reading ? briefReading(reading) : NOT_COMPUTED;
  }

  gradientText(item: Item): string {
    if (item.bundle)
      return item.kind === "constant" ? "" : `∂ ${this.bundleText(item, this.gradients, 1)}`;
    const id = this.circuit.outsideOf(item.ids[0]);
    if (this.circuit.isWithoutGradient(id)) return `∂ ${NOT_COMPUTED}`;
    if (!this.hasGradients(id)) return "";
    const reading = this.gradientOf(id);
    return `∂ ${reading ? briefReading(reading) : NOT_COMPUTED}`;
  }

  isLit(item: Item): boolean {
    return item.bundle
      ? !this.valueText(item).endsWith(NOT_COMPUTED)
      : this.valueOf(item.ids[0]) !== undefined;
  }

  isLitBack(item: Item): boolean {
    const text = item.bundle ? this.gradientText(item) : "";
    return item.bundle
      ? text !== "" && !text.endsWith(NOT_COMPUTED)
      : this.gradientOf(this.circuit.outsideOf(item.ids[0])) !== undefined;
  }

  /** The largest of many, once all are there: it is looked for once, not in every frame. */
  private bundleText(item: Item, readings: Readings, which: 0 | 1): string {
    const bundle = this.bundles.get(item) ?? {
      steps: this.playback.lastSteps(item.ids),
      texts: [],
    };
    this.bundles.set(item, bundle);
    if (this.playback.position < bundle.steps[which] || item.ids.length === 0) return NOT_COMPUTED;
    const known = bundle.texts[which];
    if (known?.readings === readings && known.count === readings.count) return known.text;
    let largest = -1;
    for (const id of item.ids) {
      const size = readings.sizeOf(id);
      if (size !== undefined) largest = Math.max(largest, Math.abs(size)); // NaN where one is
    }
    const text = largest === -1 ? NOT_COMPUTED : `max ${brief(largest)}`;
    bundle.texts[which] = { readings, count: readings.count, text };
    return text;
  }
}

interface Bundle {
  steps: [number, number];
  texts: { readings: Readings; count: number; text: string }[];
}

function elementReading({ dataType, figures }: Reading, x: Element): Reading {
  const [minimum, norm] = [Number(x), Math.abs(Number(x))];
  const own = { ...figures, minimum, maximum: minimum, mean: minimum, norm };
  return { dataType, shape: [], elements: [x], figures: own };
}

/** What the last step works on: items, and wires that lead to a gate or away from it. */
export interface Now {
  pass: "forward" | "backward" | "";
  items: Set<number>;
  wires: Set<number>;
}

export function nowOf(state: State, scene: Scene): Now {
  const step = state.playback.step();
  const now: Now = { pass: "", items: new Set(), wires: new Set() };
  const finished = state.playback.position >= state.playback.end;
  if (finished || step.kind === "nothing") return now;
  now.pass = step.kind === "given" || step.kind === "forward" ? "forward" : "backward";
  if (step.kind === "given") {
    for (const { index, kind } of scene.items) {
      if (kind === "input" || kind === "parameter") now.items.add(index);
    }
  } else if (step.kind === "seed") {
    for (const { index, kind } of scene.items) if (kind === "output") now.items.add(index);
  } else {
    const item = scene.itemOfValue(state.circuit.firstOutputOf(step.node));
    if (item !== undefined) now.items.add(item);
  }
  if (step.kind === "given") return now;
  scene.wires.forEach(({ to }, i) => {
    if (now.items.has(to)) now.wires.add(i);
  });
  return now;
}

/** A number, up to four in a row, or a tensor's shape and norm. */
export function briefReading({ shape, elements, figures }: Reading): string {
  if (shape.length === 0 && elements) return brief(elements[0]);
  if (shape.length === 1 && elements && elements.length <= 4)
    return `[${elements.map(brief).join(", ")}]`;
  return `${shape.join("×") || "scalar"} |${brief(normOf(figures))}|`;
}

export function isBad(reading: Reading | undefined): boolean {
  return reading !== undefined && reading.figures.nanCount + reading.figures.infinityCount > 0;
}
