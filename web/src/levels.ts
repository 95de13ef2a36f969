/** A plain layout for very many items: columns by longest way from the leaves, wires as curves. */

import type { LayoutRequest, Positions } from "./layout";

const [ACROSS, DOWN] = [34, 10];
const SWEEPS = 4;

export function levelLayout({ sizes, wires }: Pick<LayoutRequest, "sizes" | "wires">): Positions {
  const count = sizes.length / 2;
  const [sources, targets] = neighbours(count, wires);
  const columns = columnsOf(count, sources, targets);
  const place = new Float64Array(count);
  columns.forEach((column) => column.forEach((item, i) => (place[item] = i)));
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const [near, order] = sweep % 2 ? [targets, columns.toReversed()] : [sources, columns];
    for (const column of order) untangle(column, near, place);
  }
  return placed(columns, sizes, wires);
}

function neighbours(count: number, wires: Uint32Array): [number[][], number[][]] {
  const sources: number[][] = Array.from({ length: count }, () => []);
  const targets: number[][] = Array.from({ length: count }, () => []);
  for (let i = 0; i < wires.length; i += 2) {
    sources[wires[i + 1]].push(wires[i]);
    targets[wires[i]].push(wires[i + 1]);
  }
  return [sources, targets];
}

/** Columns that wires cross between those of their ends: dot has a point in each. */
export function crossedColumns(count: number, wires: Uint32Array): number {
  const levels = levelsOf(count, ...neighbours(count, wires));
  let crossed = 0;
  for (let i = 0; i < wires.length; i += 2) {
    crossed += Math.max(0, Math.abs(levels[wires[i + 1]] - levels[wires[i]]) - 1);
  }
  return crossed;
}

function columnsOf(count: number, sources: number[][], targets: number[][]): number[][] {
  const columns: number[][] = [];
  levelsOf(count, sources, targets).forEach((level, item) => (columns[level] ??= []).push(item));
  return columns.filter((column) => column !== undefined);
}

/**
 * The column of each item: the longest way from the leaves, which stand beside what uses them first.
 * Closed groups can make cycles of what has none: what is left over then goes on the right.
 */
function levelsOf(count: number, sources: number[][], targets: number[][]): Int32Array {
  const level = new Int32Array(count);
  const waiting = Int32Array.from(sources, ({ length }) => length);
  const ready: number[] = [];
  waiting.forEach((left, item) => left === 0 && ready.push(item));
  const done = new Uint8Array(count);
  let next = 0;
  let deepest = 0;
  for (let taken = 0; taken < count; taken++) {
    let item = ready[taken];
    if (item === undefined) {
      while (done[next]) next++;
      item = ready[taken] = next;
      level[item] = Math.max(level[item], deepest);
      waiting[item] = -1;
    }
    done[item] = 1;
    deepest = Math.max(deepest, level[item]);
    for (const target of targets[item]) {
      if (done[target]) continue;
      level[target] = Math.max(level[target], level[item] + 1);
      if (--waiting[target] === 0) ready.push(target);
    }
  }
  for (let item = 0; item < count; item++) {
    if (sources[item].length > 0 || targets[item].length === 0) continue;
    const nearest = targets[item].reduce(
      (least, target) => Math.min(least, level[target]),
      Infinity,
    );
    level[item] = Math.max(0, nearest - 1);
  }
  return level;
}

/** Orders a column by the mean place of what its items are wired to. */
function untangle(column: number[], near: number[][], place: Float64Array): void {
  const mean = new Map(
    column.map((item) => {
      const others = near[item];
      const sum = others.reduce((total, other) => total + place[other], 0);
      return [item, others.length ? sum / others.length : place[item]];
    }),
  );
  column.sort((a, b) => mean.get(a)! - mean.get(b)!);
  column.forEach((item, i) => (place[item] = i));
}

function placed(columns: number[][], sizes: Float64Array, wires: Uint32Array): Positions {
  const centres = new Float64Array(sizes.length);
  const heights = columns.map((column) =>
    column.reduce((sum, item) => sum + sizes[2 * item + 1] + DOWN, 0),
  );
  const height = heights.reduce((most, each) => Math.max(most, each), 0);
  let x = 0;
  columns.forEach((column, i) => {
    const widest = column.reduce((most, item) => Math.max(most, sizes[2 * item]), 0);
    let y = (height - heights[i]) / 2;
    for (const item of column) {
      centres[2 * item] = x + sizes[2 * item] / 2;
      centres[2 * item + 1] = y + sizes[2 * item + 1] / 2;
      y += sizes[2 * item + 1] + DOWN;
    }
    x += widest + ACROSS;
  });
  const paths = Array.from({ length: wires.length / 2 }, (_, i) => {
    const [from, to] = [wires[2 * i], wires[2 * i + 1]];
    const [x0, y0] = [centres[2 * from] + sizes[2 * from] / 2, centres[2 * from + 1]];
    const [x3, y3] = [centres[2 * to] - sizes[2 * to] / 2, centres[2 * to + 1]];
    const bend = Math.min(60, Math.abs(x3 - x0) / 2);
    return Float64Array.of(x0, y0, x0 + bend, y0, x3 - bend, y3, x3, y3);
  });
  return { centres, paths, boxes: [], width: x, height };
}
