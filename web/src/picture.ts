/** The circuit as SVG: drawn once, then only what changed is written. */

import { brief } from "./format";
import type { Groups } from "./groups";
import type { Layout } from "./layout";
import type { Item, Scene } from "./scene";
import {
  arrowHead,
  bodyOf,
  boxOf,
  cornerOf,
  curve,
  enteringPaths,
  labelPoint,
  make,
  thickness,
} from "./shapes";
import { isBad, NOT_COMPUTED, nowOf, type Now, type State } from "./state";

export interface Renderer {
  readonly element: HTMLElement | SVGSVGElement;
  /** Brings numbers and marks up to date. */
  refresh(): void;
  /** The theme is another one. */
  recolour(): void;
  /** x and y of the circuit's origin, and how many pixels one of its units has. */
  look(x: number, y: number, scale: number): void;
}

interface DrawnItem {
  group: SVGGElement;
  value: SVGTextElement;
  gradient: SVGTextElement;
  before: string;
}

interface DrawnWire {
  path: SVGPathElement;
  back?: SVGPathElement;
  local?: SVGTextElement;
  before: string;
}

const FAR = 0.45; // labels cannot be read any more

export class Picture implements Renderer {
  readonly element = make("svg", { class: "circuit", "aria-hidden": "true", focusable: "false" });
  private readonly world = make("g", { class: "world" });
  private readonly wires: DrawnWire[];
  private readonly items: DrawnItem[];
  private readonly paths: Float64Array[];

  constructor(
    private readonly scene: Scene,
    private readonly layout: Layout,
    groups: Groups,
    private readonly state: State,
  ) {
    this.element.append(arrowHead(), this.world);
    this.paths = enteringPaths(scene, layout);
    this.world.append(...layout.boxes.map((box) => boxOf(box, groups.all[box.group].name)));
    this.wires = this.paths.map((path) => {
      const drawn = make("path", { class: "wire", d: curve(path) });
      this.world.append(drawn);
      return { path: drawn, before: "" };
    });
    this.items = scene.items.map((item) => this.drawItem(item));
    this.refresh();
  }

  look(x: number, y: number, scale: number): void {
    this.world.setAttribute("transform", `translate(${x} ${y}) scale(${scale})`);
    this.element.classList.toggle("far", scale < FAR);
  }

  recolour(): void {} // its style sheet does it

  refresh(): void {
    const { state, scene } = this;
    const now = nowOf(state, scene);
    for (const item of scene.items) this.refreshItem(item, now);
    const largest = largestGradient(state, scene);
    for (let i = 0; i < scene.wires.length; i++) this.refreshWire(i, now, largest);
  }

  private refreshItem(item: Item, now: Now): void {
    const { state } = this;
    const [value, gradient] = [state.valueText(item), state.gradientText(item)];
    const classes = itemClasses(state, item, now);
    const after = `${value} ${gradient} ${classes}`;
    const drawn = this.items[item.index];
    if (after === drawn.before) return;
    drawn.before = after;
    drawn.group.setAttribute("class", classes);
    if (!item.stub) return;
    drawn.value.textContent = value;
    drawn.gradient.textContent = gradient;
    const [first] = item.ids;
    drawn.value.setAttribute("class", labelClass("value", value, isBad(state.valueOf(first))));
    drawn.gradient.setAttribute(
      "class",
      labelClass("gradient", gradient, isBad(state.gradientOf(first))),
    );
  }

  private refreshWire(i: number, now: Now, largest: number): void {
    const { state } = this;
    const { id, to, slot } = this.scene.wires[i];
    const pass = now.wires.has(i) ? now.pass : "";
    const gradient = state.gradientOf(id);
    const width = gradient ? thickness(gradient.figures.norm, largest) : 0;
    const onPath = state.path.has(id) && (slot < 0 || state.path.has(this.scene.items[to].ids[0]));
    const classes = joined(
      "wire",
      state.valueOf(id) !== undefined && "lit",
      pass,
      onPath && "on-path",
    );
    const local = state.localGradients.get(`${this.scene.items[to].node}:${slot}`);
    const after = `${classes} ${width} ${local}`;
    const drawn = this.wires[i];
    if (after === drawn.before) return;
    drawn.before = after;
    drawn.path.setAttribute("class", classes);
    this.drawBack(i, width, joined("back", !width && "hidden", pass, onPath && "on-path"));
    this.drawLocal(i, local);
  }

  /** The gradient's own line, below the wire: it goes to the left, the thicker the larger. */
  private drawBack(i: number, width: number, classes: string): void {
    const drawn = this.wires[i];
    if (width && !drawn.back) {
      drawn.back = make("path", { d: curve(this.paths[i]), transform: "translate(0 3.5)" });
      drawn.path.after(drawn.back);
    }
    drawn.back?.setAttribute("class", classes);
    drawn.back?.setAttribute("stroke-width", String(width));
  }

  private drawLocal(i: number, local: number | undefined): void {
    const drawn = this.wires[i];
    if (local !== undefined && !drawn.local) {
      const [x, y] = labelPoint(this.paths[i]);
      drawn.local = make("text", { class: "local", x, y: y + 17 });
      this.world.append(drawn.local);
    }
    if (drawn.local) drawn.local.textContent = local === undefined ? "" : `× ${brief(local)}`;
  }

  private drawItem(item: Item): DrawnItem {
    const [x, y] = cornerOf(item, this.layout);
    const group = make("g", { "data-item": item.index, transform: `translate(${x} ${y})` });
    const middle = item.width + item.stub / 2 + (item.kind === "gate" ? 0 : 4);
    const value = make("text", { x: middle, y: -7 });
    const gradient = make("text", { x: middle, y: 20 });
    if (item.stub) {
      group.append(make("path", { class: "stub", d: `M${item.width} 0h${item.stub}` }));
      group.append(
        make("path", {
          class: "stub back",
          d: `M${item.width + (item.kind === "gate" ? 2 : 9)} 3.5H${item.width + item.stub}`,
        }),
      );
    }
    group.append(...bodyOf(item), value, gradient);
    this.world.append(group);
    return { group, value, gradient, before: "" };
  }
}

function itemClasses(state: State, item: Item, now: Now): string {
  return joined(
    "item",
    item.kind,
    state.isLit(item) && "lit",
    state.isLitBack(item) && item.stub > 0 && "has-gradient",
    now.items.has(item.index) && `now ${now.pass}`,
    state.selected === item.index && "selected",
    item.ids.some((id) => state.path.has(id)) && "on-path",
  );
}

function labelClass(kind: string, text: string, bad: boolean): string {
  return joined("label", kind, text.endsWith(NOT_COMPUTED) && "not-computed", bad && "bad");
}

function joined(...classes: (string | false)[]): string {
  return classes.filter(Boolean).join(" ");
}

function largestGradient(state: State, scene: Scene): number {
  let largest = 0;
  for (const { ids } of scene.items) {
    for (const id of ids) {
      const size = Math.abs(state.gradients.sizeOf(id) ?? 0);
      if (size > largest && Number.isFinite(size)) largest = size;
    }
  }
  return largest;
}
