/** Elements of tensors: from little-endian bytes, and back. */

import { create } from "@bufbuild/protobuf";
import type { Element } from "./format";
import { DataType, TensorSchema, type Tensor } from "./gen/gradwire/v1/tensor_pb";

type Reader = (view: DataView, at: number) => Element;

const READERS: Partial<Record<DataType, [width: number, read: Reader]>> = {
  [DataType.FLOAT64]: [8, (view, at) => view.getFloat64(at, true)],
  [DataType.FLOAT32]: [4, (view, at) => view.getFloat32(at, true)],
  [DataType.FLOAT16]: [2, (view, at) => half(view.getUint16(at, true), 5)],
  [DataType.BFLOAT16]: [2, (view, at) => half(view.getUint16(at, true), 8)],
  [DataType.INT64]: [8, (view, at) => view.getBigInt64(at, true)],
  [DataType.UINT64]: [8, (view, at) => view.getBigUint64(at, true)],
  [DataType.INT32]: [4, (view, at) => view.getInt32(at, true)],
  [DataType.UINT32]: [4, (view, at) => view.getUint32(at, true)],
  [DataType.INT16]: [2, (view, at) => view.getInt16(at, true)],
  [DataType.UINT16]: [2, (view, at) => view.getUint16(at, true)],
  [DataType.INT8]: [1, (view, at) => view.getInt8(at)],
  [DataType.UINT8]: [1, (view, at) => view.getUint8(at)],
  [DataType.BOOL]: [1, (view, at) => view.getUint8(at) !== 0],
};

type Writer = (view: DataView, at: number, x: number) => void;

const WRITERS: Partial<Record<DataType, Writer>> = {
  [DataType.FLOAT64]: (view, at, x) => view.setFloat64(at, x, true),
  [DataType.FLOAT32]: (view, at, x) => view.setFloat32(at, x, true),
  [DataType.FLOAT16]: (view, at, x) => view.setUint16(at, toHalf(x), true),
  [DataType.BFLOAT16]: (view, at, x) => view.setUint16(at, toBrain(x), true),
  [DataType.INT64]: (view, at, x) => view.setBigInt64(at, BigInt(Math.trunc(x)), true),
  [DataType.UINT64]: (view, at, x) => view.setBigUint64(at, BigInt(Math.trunc(x)), true),
  [DataType.INT32]: (view, at, x) => view.setInt32(at, x, true),
  [DataType.UINT32]: (view, at, x) => view.setUint32(at, x, true),
  [DataType.INT16]: (view, at, x) => view.setInt16(at, x, true),
  [DataType.UINT16]: (view, at, x) => view.setUint16(at, x, true),
  [DataType.INT8]: (view, at, x) => view.setInt8(at, x),
  [DataType.UINT8]: (view, at, x) => view.setUint8(at, x),
  [DataType.BOOL]: (view, at, x) => view.setUint8(at, x === 0 ? 0 : 1),
};

const FLOATING = new Set([DataType.FLOAT64, DataType.FLOAT32, DataType.FLOAT16, DataType.BFLOAT16]);

export function isFloating(type: DataType): boolean {
  return FLOATING.has(type);
}

/** "float64", as the command line names it. */
export function typeName(type: DataType): string {
  return DataType[type]?.toLowerCase() ?? `type ${type}`;
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, 1);
}

/** Bytes of an element; undefined for the types that are only stored (8 and 4 bits). */
export function widthOf(type: DataType): number | undefined {
  return READERS[type]?.[0];
}

export function decoded(type: DataType, data: Uint8Array): Element[] | undefined {
  const reader = READERS[type];
  if (!reader) return undefined;
  const [width, read] = reader;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Array.from({ length: Math.floor(data.byteLength / width) }, (_, i) =>
    read(view, i * width),
  );
}

/** A message; undefined where the page cannot write the type. */
export function tensorOf(
  dataType: DataType,
  shape: readonly number[],
  elements: ArrayLike<number>,
): Tensor | undefined {
  const width = widthOf(dataType);
  const write = WRITERS[dataType];
  if (width === undefined || !write) return undefined;
  const data = new Uint8Array(elements.length * width);
  const view = new DataView(data.buffer);
  for (let i = 0; i < elements.length; i++) write(view, i * width, elements[i]);
  return tensorFromBytes(dataType, shape, data);
}

export function tensorFromBytes(dataType: DataType, shape: readonly number[], data: Uint8Array) {
  return create(TensorSchema, {
    dataType,
    shape: shape.map(BigInt),
    content: { case: "data", value: data.slice() },
  });
}

export function bytesOf(tensor: Tensor | undefined): Uint8Array {
  return tensor?.content.case === "data" ? tensor.content.value : new Uint8Array();
}

/** A float of 16 bits with so many exponent bits: 5 is binary16, 8 is bfloat16. */
function half(bits: number, exponentBits: number): number {
  const fractionBits = 15 - exponentBits;
  const sign = bits & 0x8000 ? -1 : 1;
  const largest = 2 ** exponentBits - 1;
  const exponent = (bits >> fractionBits) & largest;
  const fraction = (bits & (2 ** fractionBits - 1)) / 2 ** fractionBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === largest) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** (1 - bias);
  return sign * (1 + fraction) * 2 ** (exponent - bias);
}

/** binary16, rounded to nearest even. */
function toHalf(x: number): number {
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const size = Math.abs(x);
  if (Number.isNaN(x)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 2 ** -15)));
  const steps = evenly(size / 2 ** (exponent - 10)); // 1024 to 2048, or less where subnormal
  return sign | (steps + (exponent + 14) * 1024);
}

function toBrain(x: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setFloat32(0, x);
  const bits = view.getUint32(0);
  if (Number.isNaN(x)) return 0x7fc0;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

function evenly(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}
