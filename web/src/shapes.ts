/** Shapes of the picture, from numbers and text: a name of a graph is never markup. */

import type { Box, Layout } from "./layout";
import type { Item, Scene } from "./scene";

const NAMESPACE = "http://www.w3.org/2000/svg";

export function make<Tag extends keyof SVGElementTagNameMap>(
  tag: Tag,
  attributes: Record<string, string | number> = {},
  text = "",
): SVGElementTagNameMap[Tag] {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text) element.textContent = text;
  return element;
}

/** Where an item's body begins, and its middle height. */
export function cornerOf(item: Item, { centres }: Layout): [x: number, y: number] {
  const x = centres[2 * item.index] - (item.width + item.stub) / 2;
  return [x, centres[2 * item.index + 1]];
}

export function curve(points: Float64Array): string {
  if (points.length < 4) return "";
  let text = `M${at(points, 0)}`;
  for (let i = 2; i + 5 < points.length; i += 6) {
    text += `C${at(points, i)} ${at(points, i + 2)} ${at(points, i + 4)}`;
  }
  return text;
}

function at(points: Float64Array, i: number): string {
  return `${points[i].toFixed(1)} ${points[i + 1].toFixed(1)}`;
}

/** Wires spread over the height of what they lead to, in the order they come in. */
export function enteringPaths(scene: Scene, { paths }: Layout): Float64Array[] {
  const into = new Map<number, number[]>();
  scene.wires.forEach(({ to }, i) => {
    const known = into.get(to);
    if (known) known.push(i);
    else into.set(to, [i]);
  });
  const found = paths.map((path) => path.slice());
  for (const [to, wires] of into) {
    const { kind, height } = scene.items[to];
    const radius = kind === "gate" || kind === "output" ? 18 : height / 2;
    wires.sort((a, b) => paths[a].at(-3)! - paths[b].at(-3)! || paths[a][1] - paths[b][1]);
    wires.forEach((wire, i) => {
      const path = found[wire];
      const step = Math.min(13, (2 * radius - 8) / wires.length);
      const down = (i - (wires.length - 1) / 2) * step;
      const inward = kind === "gate" ? radius - Math.sqrt(radius ** 2 - down ** 2) : 0;
      path[path.length - 3] += down;
      path[path.length - 1] += down;
      path[path.length - 2] += inward;
    });
  }
  return found;
}

const LABEL = 32; // half the width of a local gradient, and a bit

/** A point a good way along a wire, but before the gate, for its local gradient. */
export function labelPoint(path: Float64Array): [x: number, y: number] {
  const last = path.subarray(-8);
  const t = path.length > 8 ? 0.4 : 0.6;
  const mix = (k: number) =>
    (1 - t) ** 3 * last[k] +
    3 * (1 - t) ** 2 * t * last[2 + k] +
    3 * (1 - t) * t ** 2 * last[4 + k] +
    t ** 3 * last[6 + k];
  return [Math.min(mix(0), last[6] - LABEL), mix(1)];
}

/** An input begins with a ring, a parameter with a square, a gate is a pill, a group has two borders. */
export function bodyOf(item: Item): SVGElement[] {
  const { kind, width, text, caption } = item;
  const middle = width / 2;
  if (kind === "gate") {
    const name = make("text", { class: "caption", x: middle, y: -24 }, caption);
    return [
      make("rect", { class: "body", x: 0, y: -18, width, height: 36, rx: 18 }),
      make("text", { class: "symbol", x: middle, y: 5 }, text),
      ...(caption ? [name] : []),
    ];
  }
  if (kind === "group") {
    return [
      make("rect", { class: "body", x: 0, y: -24, width, height: 48 }),
      make("rect", { class: "inner", x: 3, y: -21, width: width - 6, height: 42 }),
      make("text", { class: "symbol", x: middle, y: -1 }, text),
      make("text", { class: "caption", x: middle, y: 14 }, caption),
    ];
  }
  const end =
    kind === "output" ? { x: 6, "text-anchor": "start" } : { x: width - 7, "text-anchor": "end" };
  const plain = make("text", { class: "name", y: 5, ...end }, text);
  const area = make("rect", { class: "area", x: 0, y: -15, width, height: 30, rx: 5 });
  if (kind === "input")
    return [area, plain, make("circle", { class: "mark", cx: width + 3, cy: 0, r: 4.5 })];
  if (kind === "parameter") {
    return [area, plain, make("rect", { class: "mark", x: width - 1, y: -4, width: 8, height: 8 })];
  }
  return [area, plain];
}

export function boxOf(box: Box, name: string): SVGGElement {
  const group = make("g", { class: "module", "data-group": box.group });
  const { x, y, width, height } = box;
  group.append(
    make("rect", { x, y, width, height, rx: 10 }),
    make("text", { x: x + 10, y: y + 17 }, fitting(name, width - 20)),
  );
  return group;
}

function fitting(text: string, width: number): string {
  const most = Math.max(3, Math.floor(width / 7.2));
  return [...text].length <= most ? text : `${[...text].slice(0, most - 1).join("")}…`;
}

/** A small head, for gradients: they go to the left. */
export function arrowHead(): SVGDefsElement {
  const definitions = make("defs");
  const marker = make("marker", {
    id: "back-head",
    viewBox: "0 0 8 8",
    refX: 0,
    refY: 4,
    markerWidth: 8,
    markerHeight: 8,
    orient: "0",
    markerUnits: "userSpaceOnUse",
  });
  marker.append(make("path", { d: "M8 0L0 4L8 8z" }));
  definitions.append(marker);
  return definitions;
}

/** Pixels of a gradient's wire: a hundredth of the largest is still seen. */
export function thickness(size: number, largest: number): number {
  if (!Number.isFinite(size) || size === 0 || largest === 0) return 1;
  const part = 1 + Math.log10(Math.abs(size) / largest) / 3; // 1 at the largest, 0 at a thousandth
  return Math.round((1 + 3 * Math.max(0, part)) * 2) / 2;
}
