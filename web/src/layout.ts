/** Where the items of a scene go, from left to right. */

import type { Groups } from "./groups";
import { crossedColumns, levelLayout } from "./levels";
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

/** What the worker answers. */
export type LayoutAnswer = Positions | { failure: string };

export interface Layout extends Positions {
  /** How long it was waited for. */
  milliseconds: number;
  /** Why it is in plain columns, where dot would have been better; or "". */
  plainBecause: string;
}

/** dot takes a third of a second for a thousand items, and much longer where wires are long. */
const DOT_ITEMS = 2500;
const DOT_WIRES = 6000;
const DOT_CROSSED = 12_000; // columns, by all wires; a second
const [DOT_PATIENCE, PATIENCE] = [5000, 60_000]; // milliseconds

/**
 * A worker that does one request at a time. A newer one ends that before, and its worker with it,
 * so no answer can reach another request than its own.
 */
export class Layouts {
  private worker: Worker | undefined = start();
  private latest = 0;
  private supersede = (): void => {};

  /** Positions, or undefined where a later call has begun meanwhile. */
  async of(scene: Scene, groups: Groups, roomy: boolean): Promise<Layout | undefined> {
    const [call, began] = [++this.latest, performance.now()];
    this.supersede();
    const request = { ...requestOf(scene, groups), roomy };
    let plainBecause = "";
    let answer: LayoutAnswer | undefined;
    if (suitsDot(request)) {
      answer = await this.ask({ ...request, engine: "dot" }, DOT_PATIENCE);
      if ("failure" in answer) plainBecause = `Graphviz failed: ${answer.failure}`;
    }
    if (call !== this.latest) return undefined;
    if (!answer || "failure" in answer) {
      answer = await this.ask({ ...request, engine: "levels" }, PATIENCE);
    }
    if (call !== this.latest) return undefined;
    // without a worker the page lays out by itself, and stands still meanwhile
    const found = "failure" in answer ? levelLayout(request) : answer;
    const boxes = found.boxes.map((box) => ({ ...box, group: scene.open[box.group] }));
    return { ...found, boxes, plainBecause, milliseconds: performance.now() - began };
  }

  private ask(request: LayoutRequest, patience: number): Promise<LayoutAnswer> {
    return new Promise((resolve) => {
      const worker = (this.worker ??= start());
      const settle = (answer: LayoutAnswer) => {
        clearTimeout(timer);
        this.supersede = () => {};
        resolve(answer);
      };
      const fail = (failure: string) => {
        worker?.terminate();
        this.worker = undefined;
        settle({ failure });
      };
      const timer = setTimeout(() => fail(`it took over ${patience / 1000} s`), patience);
      this.supersede = () => fail("a newer request came");
      if (!worker) return fail("the browser starts no worker");
      worker.onmessage = ({ data }: MessageEvent<LayoutAnswer>) =>
        "failure" in data ? fail(data.failure) : settle(data);
      worker.onerror = ({ message }) => fail(message || "its program could not be loaded");
      worker.postMessage(request);
    });
  }
}

function suitsDot({ sizes, wires }: Omit<LayoutRequest, "engine">): boolean {
  return (
    sizes.length / 2 <= DOT_ITEMS &&
    wires.length / 2 <= DOT_WIRES &&
    crossedColumns(sizes.length / 2, wires) <= DOT_CROSSED
  );
}

function start(): Worker | undefined {
  try {
    return new Worker(new URL("./layout.worker.ts", import.meta.url), { type: "module" });
  } catch {
    return undefined; // a browser's policy may forbid it
  }
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
