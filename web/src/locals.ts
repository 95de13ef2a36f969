/** Keeps the local gradients that are looked at up to date with the values. */

import type { Circuit } from "./circuit";
import type { Readings, Reading } from "./readings";
import { localGradients, type LocalRequest } from "./local";
import type { Catalogue } from "./server";
import type { State } from "./state";
import { isFloating, sizeOf } from "./tensors";

const MOST_ELEMENTS = 65_536;
/** Of the local gradients that are shown on wires. */
export const MOST_NODES = 400;

export interface Source {
  circuit: Circuit;
  state: State;
  nodes: number[];
  catalogue: Catalogue | undefined;
  /** Brings elements that are not here yet. */
  fetch(values: number[], gradients: number[]): Promise<{ values: Readings; gradients: Readings }>;
}

/** A node's local gradients (a scalar's), or what it hands back to its inputs (a tensor's). */
export interface Found {
  scalar: boolean;
  bySlot: Map<number, Reading>;
}

export class Locals {
  private found = new Map<number, Found>();
  private wanted = false;
  private running = false;

  constructor(
    private readonly source: () => Source | undefined,
    private readonly changed: () => void,
  ) {}

  get(node: number): Found | undefined {
    return this.found.get(node);
  }

  clear(): void {
    this.found.clear();
  }

  /** By "node:slot", of gates of scalars. */
  scalars(): Map<string, number> {
    const found = new Map<string, number>();
    for (const [node, { scalar, bySlot }] of this.found) {
      if (!scalar) continue;
      for (const [slot, { elements }] of bySlot)
        found.set(`${node}:${slot}`, Number(elements?.[0]));
    }
    return found;
  }

  /** Asks for them anew: once more after what is on its way, however often it is called meanwhile. */
  want(): void {
    this.wanted = true;
    if (!this.running) void this.bring();
  }

  private async bring(): Promise<void> {
    this.running = true;
    while (this.wanted) {
      this.wanted = false;
      const source = this.source();
      if (!source) break;
      try {
        const found = await localsOf(source);
        if (this.source()?.state !== source.state) continue; // another circuit is shown by now
        this.found = found;
      } catch {
        this.found.clear(); // the details then have the formula without a result
      }
      this.changed();
    }
    this.running = false;
  }
}

async function localsOf(source: Source): Promise<Map<number, Found>> {
  const { circuit, state, nodes, catalogue } = source;
  const [scalars, tensors] = [[], []] as [number[], number[]];
  for (const node of nodes) {
    const ids = [...idsOf(circuit, node)];
    const readings = ids.map((id) => state.everyValue(id));
    if (readings.some((reading) => reading === undefined)) continue;
    const size = readings.reduce((sum, reading) => sum + sizeOf(reading!.shape), 0);
    if (readings.every((reading) => reading!.shape.length === 0)) scalars.push(node);
    else if (size <= MOST_ELEMENTS) tensors.push(node);
  }
  const found = new Map<number, Found>();
  const take = (scalar: boolean, results: Map<string, Reading>) => {
    for (const [key, reading] of results) {
      const [node, slot] = key.split(":").map(Number);
      const known = found.get(node) ?? { scalar, bySlot: new Map<number, Reading>() };
      found.set(node, known);
      known.bySlot.set(slot, reading);
    }
  };
  const differentiable = (node: number) =>
    isFloating(state.everyValue(circuit.firstOutputOf(node))!.dataType);
  const requests = scalars
    .filter(differentiable)
    .map((node) => requestOf(circuit, node, catalogue, (id) => state.everyValue(id)));
  if (requests.length) take(true, await localGradients(circuit, requests));
  for (const node of tensors.filter(differentiable)) {
    const request = await tensorRequest(source, node);
    if (request) take(false, await localGradients(circuit, [request]));
  }
  return found;
}

function* idsOf(circuit: Circuit, node: number): Iterable<number> {
  for (const id of circuit.inputsOf(node)) if (id) yield id;
  yield circuit.firstOutputOf(node);
}

function requestOf(
  circuit: Circuit,
  node: number,
  catalogue: Catalogue | undefined,
  valueOf: (id: number) => Reading | undefined,
): LocalRequest {
  const described = catalogue?.gate(circuit.operatorOf(node))?.inputs ?? [];
  const ids = circuit.inputsOf(node);
  const first = circuit.firstOutputOf(node);
  const outputs = Array.from({ length: circuit.outputCountOf(node) }, (_, i) =>
    valueOf(first + i)!,
  );
  return {
    node,
    outputs,
    inputs: Array.from(ids, (id) => (id ? valueOf(id) : undefined)),
    known: Array.from(ids, (_, slot) => described[slot]?.known ?? false),
  };
}

async function tensorRequest(
  { circuit, state, catalogue, fetch }: Source,
  node: number,
): Promise<LocalRequest | undefined> {
  const first = circuit.firstOutputOf(node);
  const outputs = Array.from({ length: circuit.outputCountOf(node) }, (_, i) => first + i);
  const gradients = outputs.filter((id) => state.gradients.has(id));
  const missing = [...idsOf(circuit, node)].filter((id) => !state.everyValue(id)?.elements);
  const fetched =
    missing.length || gradients.some((id) => !state.gradients.get(id)?.elements)
      ? await fetch(missing, gradients)
      : undefined;
  const valueOf = (id: number) => fetched?.values.get(id) ?? state.everyValue(id);
  const gradientOf = (id: number) => fetched?.gradients.get(id) ?? state.gradients.get(id);
  const seeds = outputs.map(gradientOf);
  if (seeds.every((seed) => seed === undefined)) return undefined;
  return { ...requestOf(circuit, node, catalogue, valueOf), seeds };
}
