/** What was computed, by value id: scalars in columns, tensors in a map. */

import type { Element } from "./format";
import type { Column, Summary } from "./gen/gradwire/v1/service_pb";
import { DataType, type Tensor } from "./gen/gradwire/v1/tensor_pb";
import { bytesOf, decoded, sizeOf, widthOf } from "./tensors";

export interface Figures {
  minimum: number;
  maximum: number;
  mean: number;
  norm: number;
  nanCount: number;
  infinityCount: number;
}

/** One value or gradient: elements where they were sent, figures of a tensor otherwise. */
export interface Reading {
  dataType: DataType;
  shape: number[];
  elements?: Element[];
  bytes?: Uint8Array;
  figures: Figures;
}

export class Readings {
  /** 0: not there. It differs from a value of 0. */
  private readonly types: Uint8Array;
  private readonly scalars: Float64Array;
  private readonly tensors = new Map<number, Reading>();
  private readonly pieces = new Map<number, Uint8Array>();
  count = 0;

  constructor(valueCount: number) {
    this.types = new Uint8Array(valueCount + 1);
    this.scalars = new Float64Array(valueCount + 1);
  }

  has(id: number): boolean {
    return this.types[id] !== 0;
  }

  get(id: number): Reading | undefined {
    if (!this.has(id)) return undefined;
    return this.tensors.get(id) ?? scalarReading(this.types[id], this.scalars[id]);
  }

  /** The number of a scalar, the norm of a tensor, undefined where nothing is. */
  sizeOf(id: number): number | undefined {
    if (!this.has(id)) return undefined;
    const figures = this.tensors.get(id)?.figures;
    return figures ? normOf(figures) : this.scalars[id];
  }

  /** Empty for a scalar, and where nothing is. */
  shapeOf(id: number): number[] {
    return this.tensors.get(id)?.shape ?? [];
  }

  isBad(id: number): boolean {
    if (!this.has(id)) return false;
    const figures = this.tensors.get(id)?.figures;
    return figures ? figures.nanCount > 0 : Number.isNaN(this.scalars[id]);
  }

  anyBad(): boolean {
    return this.types.some((_, id) => this.isBad(id));
  }

  set(id: number, reading: Reading): void {
    if (!this.has(id)) this.count++;
    this.types[id] = reading.dataType;
    const only = reading.elements?.[0];
    if (reading.shape.length === 0 && typeof only === "number") {
      this.tensors.delete(id);
      this.scalars[id] = only;
    } else {
      this.tensors.set(id, reading);
    }
  }

  /** Takes what a message brings; returns the ids that are whole now, ascending. */
  add(column: Column): number[] {
    const ids = column.valueIds.length
      ? column.valueIds
      : Array.from({ length: column.count }, (_, i) => column.firstValueId + i);
    const shape = column.shape.map(Number);
    const { dataType, summary } = column;
    if (summary) {
      ids.forEach((id, i) =>
        this.set(id, readingOfFigures(dataType, shape, figuresAt(summary, i))),
      );
      return ids;
    }
    const size = sizeOf(shape);
    const bytes = size * (widthOf(dataType) ?? 1);
    if (ids.length === 1 && column.data.length < bytes) {
      return this.addPiece(ids[0], column, shape, bytes);
    }
    ids.forEach((id, i) => {
      this.set(id, readingOf(dataType, shape, column.data.subarray(i * bytes, (i + 1) * bytes)));
    });
    return ids;
  }

  private addPiece(id: number, column: Column, shape: number[], bytes: number): number[] {
    const whole = this.pieces.get(id) ?? new Uint8Array(bytes);
    this.pieces.set(id, whole);
    const at = Number(column.firstElement) * (widthOf(column.dataType) ?? 1);
    whole.set(column.data, at);
    if (at + column.data.length < bytes) return [];
    this.pieces.delete(id);
    this.set(id, readingOf(column.dataType, shape, whole));
    return [id];
  }
}

export function readingOfTensor(tensor: Tensor): Reading {
  return readingOf(tensor.dataType, tensor.shape.map(Number), bytesOf(tensor));
}

function readingOf(dataType: DataType, shape: number[], bytes: Uint8Array): Reading {
  const elements = decoded(dataType, bytes);
  return { dataType, shape, elements, bytes, figures: figuresOf(elements ?? []) };
}

/** A scalar's figures say all of it. */
function readingOfFigures(dataType: DataType, shape: number[], figures: Figures): Reading {
  if (shape.length) return { dataType, shape, figures };
  const number = figures.nanCount ? NaN : figures.minimum;
  const element = dataType === DataType.BOOL ? number !== 0 : number;
  return { dataType, shape, elements: [element], figures };
}

function scalarReading(dataType: DataType, x: number): Reading {
  return { dataType, shape: [], elements: [x], figures: figuresOf([x]) };
}

function figuresAt(summary: Summary, i: number): Figures {
  return {
    minimum: summary.minimum[i],
    maximum: summary.maximum[i],
    mean: summary.mean[i],
    norm: summary.norm[i],
    nanCount: Number(summary.nanCount[i]),
    infinityCount: Number(summary.infinityCount[i]),
  };
}

/** NaN where any element is. */
export function normOf({ norm, nanCount }: Figures): number {
  return nanCount ? NaN : norm;
}

function figuresOf(elements: Element[]): Figures {
  let [minimum, maximum, largest, nanCount, infinityCount] = [Infinity, -Infinity, 0, 0, 0];
  for (const element of elements) {
    const x = Number(element);
    if (Number.isNaN(x)) {
      nanCount++;
      continue;
    }
    if (!Number.isFinite(x)) infinityCount++;
    minimum = Math.min(minimum, x);
    maximum = Math.max(maximum, x);
    largest = Math.max(largest, Math.abs(x));
  }
  // scaled first, so that neither the squares nor the sum of large elements overflow
  const scale = largest > 0 && Number.isFinite(largest) ? largest : 1;
  let [sum, squares] = [0, 0];
  for (const element of elements) {
    const part = Number(element) / scale;
    if (Number.isNaN(part)) continue;
    sum += part;
    squares += part * part;
  }
  const counted = elements.length - nanCount;
  if (!counted) [minimum, maximum] = [NaN, NaN];
  return {
    minimum,
    maximum,
    mean: scale * (sum / counted),
    norm: scale * Math.sqrt(squares),
    nanCount,
    infinityCount,
  };
}
