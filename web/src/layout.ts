/** Where the items of a scene go, from left to right. */

import type { Groups } from "./groups";
import type { Scene } from "./scene";

export interface Box {
  group: number;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface LayoutRequest {
  engine: "dot" | "levels";
  /** Room between columns for local gradients. */
  roomy: boolean;
  /** Width and height of each item, its wire's label included. */
  sizes: Float64Array;
  /** Pairs of items. */
  wires: Uint32Array;
  /** By item: which column it must stand in, of a summary; or -1. */
  columns: Int32Array;
  /** Open groups, outer ones first: their parent's place in this list or -1. */
  parents: number[];
  /** By item: place of its group in that list, or -1. */
  inside: Int32Array;
}

export interface Positions {
  /** Centres: x, y of each item. */
  centres: Float64Array;
  /** By wire: x, y of a start and of three points for each Bezier curve. */
  paths: Float64Array[];
  boxes: Box[];
  width: number;
  height: number;
}

export interface Layout extends Positions {
  milliseconds: number;
}

/** dot takes a third of a second for a thousand items, and much longer for some of ten thousand. */
const DOT_ITEMS = 2500;
const DOT_WIRES = 6000;
const DOT_PATIENCE = 5000;

export class Layouts {
  private worker = start();
  private latest = 0;

  /** Positions, or undefined where a later call has begun meanwhile. */
  async of(scene: Scene, groups: Groups, roomy: boolean): Promise<Layout | undefined> {
    const call = ++this.latest;
    const small = scene.items.length <= DOT_ITEMS && scene.wires.length <= DOT_WIRES;
    const request = { ...requestOf(scene, groups), roomy };
    let found: Layout | undefined;
    if (small) found = await this.run({ ...request, engine: "dot" });
    found ??= await this.run({ ...request, engine: "levels" });
    if (call !== this.latest || !found) return undefined;
    const open = scene.open;
    found.boxes = found.boxes.map((box) => ({ ...box, group: open[box.group] }));
    return found;
  }

  private run(request: LayoutRequest): Promise<Layout | undefined> {
    return new Promise((resolve) => {
      const giveUp = () => {
        this.worker.terminate();
        this.worker = start();
        resolve(undefined);
      };
      const timer = setTimeout(giveUp, request.engine === "dot" ? DOT_PATIENCE : 60_000);
      this.worker.onmessage = ({ data }: MessageEvent<Layout>) => {
        clearTimeout(timer);
        resolve(data);
      };
      this.worker.onerror = () => {
        clearTimeout(timer);
        giveUp();
      };
      this.worker.postMessage(request);
    });
  }
}

function start(): Worker {
  return new Worker(new URL("./layout.worker.ts", import.meta.url), { type: "module" });
}

function requestOf(scene: Scene, groups: Groups): Omit<LayoutRequest, "engine" | "roomy"> {
  const open = scene.open.sort((a, b) => a - b); // a parent's number is lower than its parts'
  const place = new Map(open.map((group, i) => [group, i]));
  return {
    sizes: Float64Array.from(scene.items.flatMap((it) => [it.width + it.stub, it.height])),
    wires: Uint32Array.from(scene.wires.flatMap(({ from, to }) => [from, to])),
    columns: Int32Array.from(scene.items, ({ group }) => groups.all[group]?.column ?? -1),
    parents: open.map((group) => place.get(groups.all[group].parent) ?? -1),
    inside: Int32Array.from(scene.items, (item) => place.get(item.inside) ?? -1),
  };
}
