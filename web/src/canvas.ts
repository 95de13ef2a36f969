/** The circuit on two canvases, for more than SVG can move: wires below, items above. */

import type { Groups } from "./groups";
import type { Layout } from "./layout";
import type { Renderer } from "./picture";
import type { Item, Scene } from "./scene";
import { cornerOf } from "./shapes";
import { isBad, NOT_COMPUTED, nowOf, type State } from "./state";

const TEXT_FROM = 0.45; // scale from which numbers can be read
const SYMBOLS_FROM = 0.22;

interface Colours {
  [name: string]: string;
}

export class CanvasPicture implements Renderer {
  readonly element = document.createElement("div");
  private readonly back = document.createElement("canvas");
  private readonly front = document.createElement("canvas");
  private x = 0;
  private y = 0;
  private scale = 1;
  private wiresAreOld = true;
  private frame = 0;
  private colours: Colours | undefined;

  constructor(
    private readonly scene: Scene,
    private readonly layout: Layout,
    private readonly groups: Groups,
    private readonly state: State,
  ) {
    this.element.className = "circuit canvases";
    this.element.setAttribute("aria-hidden", "true");
    this.element.append(this.back, this.front);
  }

  look(x: number, y: number, scale: number): void {
    [this.x, this.y, this.scale, this.wiresAreOld] = [x, y, scale, true];
    this.refresh();
  }

  recolour(): void {
    this.colours = undefined;
    this.wiresAreOld = true;
    this.refresh();
  }

  refresh(): void {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  private draw(): void {
    const colours = (this.colours ??= coloursOf(this.element));
    if (this.wiresAreOld || this.state.path.size) this.drawWires(this.ready(this.back), colours);
    this.wiresAreOld = this.state.path.size > 0;
    this.drawItems(this.ready(this.front), colours);
  }

  private ready(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
    const { clientWidth, clientHeight } = this.element;
    const density = Math.min(2, devicePixelRatio);
    const [width, height] = [Math.round(clientWidth * density), Math.round(clientHeight * density)];
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(
      this.scale * density,
      0,
      0,
      this.scale * density,
      this.x * density,
      this.y * density,
    );
    return context;
  }

  /** What is in sight, in the circuit's units. */
  private get sight() {
    const { clientWidth, clientHeight } = this.element;
    const [left, top] = [-this.x / this.scale, -this.y / this.scale];
    return {
      left,
      top,
      right: left + clientWidth / this.scale,
      bottom: top + clientHeight / this.scale,
    };
  }

  private drawWires(context: CanvasRenderingContext2D, colours: Colours): void {
    const { left, top, right, bottom } = this.sight;
    const marked = new Path2D();
    const plain = new Path2D();
    const curved = this.scale > SYMBOLS_FROM;
    this.layout.paths.forEach((path, i) => {
      const last = path.length - 2;
      const [x0, y0, x1, y1] = [path[0], path[1], path[last], path[last + 1]];
      if (Math.max(x0, x1) < left || Math.min(x0, x1) > right) return;
      if (Math.max(y0, y1) < top || Math.min(y0, y1) > bottom) return;
      const { id, to } = this.scene.wires[i];
      const { ids } = this.scene.items[to];
      const into = this.state.path.has(id) && ids.some((each) => this.state.path.has(each));
      const lines = into ? marked : plain;
      lines.moveTo(x0, y0);
      if (!curved) lines.lineTo(x1, y1);
      for (let k = 2; curved && k + 5 < path.length; k += 6) {
        lines.bezierCurveTo(
          path[k],
          path[k + 1],
          path[k + 2],
          path[k + 3],
          path[k + 4],
          path[k + 5],
        );
      }
    });
    context.lineWidth = Math.max(0.6 / this.scale, curved ? 1.2 : 0);
    context.strokeStyle = colours.wire;
    context.globalAlpha = curved ? 0.8 : 0.35;
    context.stroke(plain);
    context.globalAlpha = 1;
    context.lineWidth = 4 / Math.min(1, this.scale);
    context.strokeStyle = colours.gradient;
    context.stroke(marked);
    this.drawBoxes(context, colours);
  }

  private drawBoxes(context: CanvasRenderingContext2D, colours: Colours): void {
    context.lineWidth = 1 / Math.min(1, this.scale);
    context.strokeStyle = context.fillStyle = colours.muted;
    context.font = "13px system-ui, sans-serif";
    for (const { x, y, width, height, group } of this.layout.boxes) {
      context.strokeRect(x, y, width, height);
      if (this.scale > SYMBOLS_FROM) context.fillText(this.groups.all[group].name, x + 10, y + 16);
    }
  }

  private drawItems(context: CanvasRenderingContext2D, colours: Colours): void {
    const { left, top, right, bottom } = this.sight;
    const now = nowOf(this.state, this.scene);
    context.textAlign = "center";
    for (const item of this.scene.items) {
      const [x, y] = cornerOf(item, this.layout);
      if (x > right || y - item.height > bottom || y + item.height < top) continue;
      if (x + item.width + item.stub < left) continue;
      if (this.scale > SYMBOLS_FROM) this.drawItem(context, colours, item, x, y);
      else this.drawDot(context, colours, item, x, y);
      const pass = now.pass === "forward" ? colours.value : colours.gradient;
      if (now.items.has(item.index)) this.ring(context, item, x, y, pass);
      else if (item.index === this.state.selected) this.ring(context, item, x, y, colours.focus);
    }
  }

  private ring(
    context: CanvasRenderingContext2D,
    item: Item,
    x: number,
    y: number,
    colour: string,
  ): void {
    context.lineWidth = 3 / Math.min(1, this.scale);
    context.strokeStyle = colour;
    context.beginPath();
    context.roundRect(x, y - 18, item.width, 36, item.kind === "gate" ? 18 : 4);
    context.stroke();
  }

  /** Far away: a box, its left half green where there is a value, its right half red for a gradient. */
  private drawDot(
    context: CanvasRenderingContext2D,
    colours: Colours,
    item: Item,
    x: number,
    y: number,
  ): void {
    const { state } = this;
    const [id] = item.ids;
    const width = item.width + item.stub;
    const [value, gradient] = [
      state.isLit(item) && colours.value,
      state.isLitBack(item) && colours.gradient,
    ];
    context.fillStyle = isBad(state.valueOf(id)) ? colours.bad : value || colours.gate;
    context.fillRect(x, y - 18, width / 2, 36);
    context.fillStyle = isBad(state.gradientOf(id)) ? colours.bad : gradient || colours.gate;
    context.fillRect(x + width / 2, y - 18, width / 2, 36);
  }

  private drawItem(
    context: CanvasRenderingContext2D,
    colours: Colours,
    item: Item,
    x: number,
    y: number,
  ): void {
    const { kind, width, stub, ids } = item;
    context.lineWidth = 1.4;
    context.strokeStyle = colours.wire;
    if (stub) line(context, x + width, y, x + width + stub);
    if (kind === "gate" || kind === "group") {
      context.fillStyle = colours.gate;
      context.beginPath();
      context.roundRect(x, y - 18, width, 36, kind === "gate" ? 18 : 2);
      context.fill();
      context.stroke();
    }
    context.fillStyle = colours.ink;
    context.font = "14px system-ui, sans-serif";
    context.fillText(item.text, x + width / 2, y + 5);
    if (this.scale < TEXT_FROM || !stub || ids[0] === undefined) return;
    const middle = x + width + stub / 2;
    const [value, gradient] = [this.state.valueText(item), this.state.gradientText(item)];
    const badValue = isBad(this.state.valueOf(ids[0])) && colours.bad;
    const badGradient = isBad(this.state.gradientOf(ids[0])) && colours.bad;
    this.label(context, value, middle, y - 6, badValue || colours.value, colours.muted);
    this.label(context, gradient, middle, y + 18, badGradient || colours.gradient, colours.muted);
  }

  private label(
    context: CanvasRenderingContext2D,
    text: string,
    x: number,
    y: number,
    colour: string,
    muted: string,
  ): void {
    const computed = !text.endsWith(NOT_COMPUTED);
    context.font = `${computed ? 600 : 400} 13px system-ui, sans-serif`;
    context.fillStyle = computed ? colour : muted;
    context.fillText(text, x, y);
  }
}

function line(context: CanvasRenderingContext2D, x: number, y: number, to: number): void {
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(to, y);
  context.stroke();
}

function coloursOf(element: Element): Colours {
  const style = getComputedStyle(element);
  const names = ["wire", "gate", "ink", "muted", "value", "gradient", "bad", "focus"];
  return Object.fromEntries(
    names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
  );
}
