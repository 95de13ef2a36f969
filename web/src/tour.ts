/** Five steps that tell the story of a neuron's gradient. */

import type { App } from "./app";
import { byId } from "./dom";
import { writeFragment } from "./url";

export const SETTINGS = new Map([
  ["w0", [2]],
  ["x0", [-1]],
  ["w1", [-3]],
  ["x1", [-2]],
  ["w2", [-3]],
]);
export const GATE_BY_GATE = "1/(1+exp(-(w0*x0+w1*x1+w2)))";
export const ONE_GATE = "sigmoid(w0*x0 + w1*x1 + w2)";

interface Scene {
  title: string;
  text: string;
  expression: string;
  locals: boolean;
  show(app: App): void;
}

const STEPS: readonly Scene[] = [
  {
    title: "Gates",
    text:
      "A formula is a circuit. Each pill is a gate that knows one small operation and nothing " +
      "of the rest. This one is a neuron: it weighs two inputs, adds them, and squashes the sum.",
    expression: GATE_BY_GATE,
    locals: false,
    show: (app) => app.moveTo(0),
  },
  {
    title: "Forward",
    text:
      "Values flow to the right. A gate computes as soon as its inputs are there: the green " +
      "numbers above the wires. At the end, the neuron says 0.731.",
    expression: GATE_BY_GATE,
    locals: false,
    show: (app) => playFrom(app, 0, app.playback.forwardEnd),
  },
  {
    title: "Local gradients",
    text:
      "While it is there, each gate also knows how its output would move if one input moved: " +
      "its local gradient, violet below the wire that comes in. For × it is simply the other input.",
    expression: GATE_BY_GATE,
    locals: true,
    show: (app) => app.moveTo(app.playback.forwardEnd),
  },
  {
    title: "Backward",
    text:
      "Now to the left. The output's gradient is 1. Every gate multiplies what comes back with " +
      "its local gradients and hands it on: the red numbers below. That is the whole chain rule.",
    expression: GATE_BY_GATE,
    locals: true,
    show: (app) => playFrom(app, app.playback.forwardEnd, app.playback.end),
  },
  {
    title: "One gate instead of four",
    text:
      "The last four gates are one: the sigmoid σ. If its output is s, its local gradient is " +
      "(1 − s) · s. Here s is 0.73, so the gradient is (1 − 0.73) · 0.73 = 0.20. The same numbers " +
      "arrive at the weights. Move a slider and watch.",
    expression: ONE_GATE,
    locals: true,
    show: (app) => {
      app.moveTo(app.playback.end);
      const circuit = app.circuit!;
      for (let node = 0; node < circuit.nodeCount; node++) {
        if (circuit.operatorOf(node) !== "Sigmoid") continue;
        const item = app.scene?.itemOfValue(circuit.firstOutputOf(node));
        if (item !== undefined) app.select(item, false);
      }
    },
  },
];

export class Tour {
  private at = -1;
  private expression = "";
  private readonly card = byId("tour");

  constructor(
    private readonly app: App,
    private readonly open: (fragment: string) => Promise<void>,
  ) {
    byId("tour-next").addEventListener("click", () => void this.go(this.at + 1));
    byId("tour-back").addEventListener("click", () => void this.go(this.at - 1));
    byId("tour-close").addEventListener("click", () => this.close());
    this.card.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
  }

  async start(): Promise<void> {
    this.expression = "";
    await this.go(0);
    byId("tour-next").focus();
  }

  close(): void {
    this.card.hidden = true;
    byId("stage").focus();
  }

  private async go(at: number): Promise<void> {
    const step = STEPS[at];
    if (!step) {
      this.close();
      return;
    }
    this.at = at;
    this.card.hidden = false;
    byId("tour-count").textContent = `${at + 1} of ${STEPS.length}`;
    byId("tour-title").textContent = step.title;
    byId("tour-text").textContent = step.text;
    byId<HTMLButtonElement>("tour-back").disabled = at === 0;
    byId("tour-next").textContent = at === STEPS.length - 1 ? "Finish" : "Next";
    if (this.expression !== step.expression) {
      this.expression = step.expression;
      const settings = SETTINGS;
      await this.open(writeFragment({ expression: step.expression, settings }));
    }
    this.app.playback.playing = false;
    if (this.app.showsLocals !== step.locals) await this.app.toggleLocals();
    if (this.at === at) step.show(this.app);
  }
}

function playFrom(app: App, from: number, to: number): void {
  app.moveTo(from);
  app.play(to);
}
