/** Which step computes what: the leaves, each node forward, the seed, each node backward. */

import type { Circuit } from "./circuit";

export type Step =
  | { kind: "nothing" }
  | { kind: "given" }
  | { kind: "forward"; node: number }
  | { kind: "seed" }
  | { kind: "backward"; node: number };

export class Playback {
  /** Steps until every value, and until every gradient, is there. */
  readonly forwardEnd: number;
  readonly end: number;
  /** The steps done; not whole while playing. */
  position = 0;
  playing = false;
  speed = 1;
  /** By value id: the step that makes its value, and the one that completes its gradient. */
  private readonly valueSteps: Uint32Array;
  private readonly gradientSteps: Uint32Array;
  private clock = 0;
  private until = 0;

  constructor(circuit: Circuit) {
    const nodes = circuit.nodeCount;
    this.forwardEnd = 1 + nodes;
    this.end = this.forwardEnd + 1 + nodes;
    this.valueSteps = new Uint32Array(circuit.valueCount + 1).fill(1);
    this.gradientSteps = new Uint32Array(circuit.valueCount + 1).fill(this.forwardEnd + 1);
    // the first node that uses a value is the last one that adds to its gradient
    for (let node = nodes - 1; node >= 0; node--) {
      const first = circuit.firstOutputOf(node);
      this.valueSteps.fill(node + 2, first, first + circuit.outputCountOf(node));
      for (const id of circuit.inputsOf(node)) {
        this.gradientSteps[id] = this.gradientSteps[circuit.insideOf(id)] = this.backwardStep(node);
      }
    }
    for (const id of circuit.usedValues)
      this.valueSteps[id] = this.valueSteps[circuit.insideOf(id)];
  }

  private backwardStep(node: number): number {
    return this.end - node;
  }

  /** The step after which all of some values, and all of their gradients, are there. */
  lastSteps(ids: readonly number[]): [values: number, gradients: number] {
    let [values, gradients] = [0, 0];
    for (const id of ids) {
      values = Math.max(values, this.valueSteps[id]);
      gradients = Math.max(gradients, this.gradientSteps[id]);
    }
    return [values, gradients];
  }

  hasValue(id: number): boolean {
    return this.valueSteps[id] <= this.position;
  }

  hasGradient(id: number): boolean {
    return this.gradientSteps[id] <= this.position;
  }

  /** What the last step did. */
  step(at = Math.floor(this.position)): Step {
    if (at === 0) return { kind: "nothing" };
    if (at === 1) return { kind: "given" };
    if (at <= this.forwardEnd) return { kind: "forward", node: at - 2 };
    if (at === this.forwardEnd + 1) return { kind: "seed" };
    return { kind: "backward", node: this.end - at };
  }

  moveTo(position: number): void {
    this.position = Math.min(this.end, Math.max(0, position));
  }

  /** Plays to a step; from the beginning where it is there already. */
  start(now: number, until = this.end): void {
    if (this.position >= until) this.position = 0;
    this.until = until;
    this.playing = true;
    this.clock = now;
  }

  /** Steps a second: all of it takes fourteen seconds, unless it is short. */
  get rate(): number {
    return Math.max(1.5, this.end / 14) * this.speed;
  }

  /** Goes on as the time has; `ready` says whether a step's numbers have arrived. */
  advance(now: number, ready: (step: Step) => boolean): void {
    const seconds = Math.min(Math.max(0, now - this.clock), 250) / 1000; // a frame may begin before
    let target = Math.min(this.until, this.position + seconds * this.rate);
    this.clock = now;
    for (let at = Math.floor(this.position) + 1; at <= target; at++) {
      if (!ready(this.step(at))) target = at - 0.001;
    }
    this.position = target;
    if (this.position >= this.until) this.playing = false;
  }
}
