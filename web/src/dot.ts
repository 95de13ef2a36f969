/** What dot is given, and what it answers. Only numbers go in: no name of a graph is ever parsed. */

import type { LayoutRequest, Positions } from "./layout";

const POINTS = 72; // dot's units of length in an inch
const PATIENT_BELOW = 300; // items; for more, dot stops sooner to improve
const WEIGHT_BETWEEN_GATES = 2; // which keeps what is computed straight; leaves hang beside it
const CURVES_BELOW = 1500; // items; more have straight wires

interface DotObject {
  name: string;
  pos?: string;
  bb?: string;
}

interface DotAnswer {
  bb: string;
  objects?: DotObject[];
  edges?: { pos: string; id: string }[];
}

export function dotSource({
  sizes,
  wires,
  columns,
  parents,
  inside,
  roomy,
}: LayoutRequest): string {
  const count = sizes.length / 2;
  const splines = count < CURVES_BELOW ? "spline" : "line";
  const lines = [
    `digraph{rankdir=LR;ranksep=${roomy ? 0.95 : 0.32};nodesep=0.16;splines=${splines};`,
    count < PATIENT_BELOW ? "" : "nslimit=0.3;nslimit1=0.3;mclimit=0.1;",
    'node[shape=box,fixedsize=true,label=""];edge[tailport=e,headport=w,dir=none];',
  ];
  const members: string[][] = parents.map(() => []);
  for (let i = 0; i < count; i++) {
    const [width, height] = [sizes[2 * i] / POINTS, sizes[2 * i + 1] / POINTS];
    const node = `n${i}[width=${width.toFixed(4)},height=${height.toFixed(4)}];`;
    (inside[i] >= 0 ? members[inside[i]] : lines).push(node);
  }
  const cluster = (group: number): string => {
    const inner = parents.flatMap((parent, i) => (parent === group ? [cluster(i)] : []));
    return `subgraph cluster${group}{margin=14;label=" ";labelloc=t;fontsize=12;${members[group].join("")}${inner.join("")}}`;
  };
  parents.forEach((parent, i) => parent < 0 && lines.push(cluster(i)));
  const isLeaf = new Uint8Array(count).fill(1);
  for (let i = 1; i < wires.length; i += 2) isLeaf[wires[i]] = 0;
  for (let i = 0; i < wires.length; i += 2) {
    const weight = isLeaf[wires[i]] ? 1 : WEIGHT_BETWEEN_GATES;
    lines.push(`n${wires[i]}->n${wires[i + 1]}[id=${i / 2},weight=${weight}];`);
  }
  const ranks: string[] = [];
  columns.forEach((column, item) => {
    if (column >= 0) ranks[column] = `${ranks[column] ?? ""}n${item};`;
  });
  for (const items of ranks) if (items) lines.push(`{rank=same;${items}}`);
  return lines.join("") + "}";
}

export function positionsOf(request: LayoutRequest, answer: DotAnswer): Positions {
  const [, , width, height] = answer.bb.split(",").map(Number);
  const centres = new Float64Array(request.sizes.length);
  const boxes = [];
  for (const { name, pos, bb } of answer.objects ?? []) {
    if (pos && name.startsWith("n")) {
      const [x, y] = pos.split(",").map(Number);
      const i = Number(name.slice(1));
      centres[2 * i] = x;
      centres[2 * i + 1] = height - y;
    } else if (bb && name.startsWith("cluster")) {
      const [left, low, right, high] = bb.split(",").map(Number);
      boxes.push({
        group: Number(name.slice(7)),
        x: left,
        y: height - high,
        width: right - left,
        height: high - low,
      });
    }
  }
  const paths: Float64Array[] = Array.from({ length: request.wires.length / 2 });
  for (const { id, pos } of answer.edges ?? []) {
    const numbers = pos
      .replace(/[es],[^ ]+ /g, "")
      .split(/[ ,]/)
      .map(Number);
    paths[Number(id)] = Float64Array.from(numbers, (x, i) => (i % 2 ? height - x : x));
  }
  return { centres, paths, boxes: boxes.sort((a, b) => a.group - b.group), width, height };
}
