/** Local gradients, computed by the server: the nodes alone, at their own inputs, with seeds of 1. */

import { create, toBinary } from "@bufbuild/protobuf";
import type { Circuit } from "./circuit";
import {
  CircuitSchema,
  GraphSchema,
  LeafSchema,
  OutputSchema,
  type Gate,
  type Leaf,
} from "./gen/gradwire/v1/graph_pb";
import { EvaluationSchema } from "./gen/gradwire/v1/service_pb";
import {
  AxisSchema,
  NamedTensorSchema,
  TensorTypeSchema,
  type NamedTensor,
} from "./gen/gradwire/v1/tensor_pb";
import { readingOfTensor, type Reading } from "./readings";
import { evaluate } from "./server";
import { isFloating, sizeOf, tensorFromBytes, tensorOf } from "./tensors";

export interface LocalRequest {
  node: number;
  /** One for each input; undefined where it is omitted. */
  inputs: (Reading | undefined)[];
  outputs: Reading[];
  /** Inputs whose elements must be known before evaluation. */
  known: boolean[];
  /** Gradients of the outputs; without them each element of the first has 1. */
  seeds?: (Reading | undefined)[];
}

/** By "node:slot": what the node hands back to an input. Throws the server's Failure. */
export async function localGradients(
  circuit: Circuit,
  requests: LocalRequest[],
): Promise<Map<string, Reading>> {
  const inputs: Leaf[] = [];
  const constants: Leaf[] = [];
  const uses: [request: LocalRequest, leaves: (Leaf | undefined)[]][] = [];
  for (const request of requests) {
    const leaves = request.inputs.map((reading, slot) => {
      const leaf = reading && leafOf(`${request.node}:${slot}`, reading);
      if (leaf) (request.known[slot] ? constants : inputs).push(leaf);
      return leaf;
    });
    uses.push([request, leaves]);
  }
  const ids = new Map([...inputs, ...constants].map((leaf, i) => [leaf, i + 1]));
  const message = create(CircuitSchema, { inputs, constants });
  const rows = new Map<Gate, number>();
  const seeds: NamedTensor[] = [];
  let next = ids.size + 1;
  for (const [request, leaves] of uses) {
    const gate = circuit.gateOf(request.node);
    if (!rows.has(gate)) rows.set(gate, rows.size);
    message.nodeGates.push(rows.get(gate)!);
    message.nodeInputs.push(...leaves.map((leaf) => (leaf ? ids.get(leaf)! : 0)));
    request.outputs.forEach((output, i) => {
      const name = `${request.node}/${i}`;
      message.outputs.push(create(OutputSchema, { name, valueIds: [next++] }));
      const seed = seedOf(request, output, i);
      if (seed) seeds.push(create(NamedTensorSchema, { name, tensor: seed }));
    });
  }
  const { formatVersion, operatorSetVersion } = circuit.message;
  const gates = [...rows.keys()];
  const graph = create(GraphSchema, { formatVersion, operatorSetVersion, gates, circuit: message });
  const result = await evaluate(toBinary(GraphSchema, graph), create(EvaluationSchema, { seeds }));
  return new Map(
    result.gradients.flatMap(({ name, tensor }) =>
      tensor ? [[name, readingOfTensor(tensor)]] : [],
    ),
  );
}

function seedOf({ seeds }: LocalRequest, output: Reading, i: number) {
  if (!isFloating(output.dataType)) return undefined;
  const given = seeds?.[i];
  if (given?.bytes) return tensorFromBytes(given.dataType, given.shape, given.bytes);
  if (given?.elements) return tensorOf(given.dataType, given.shape, given.elements.map(Number));
  if (seeds || i > 0) return undefined;
  return tensorOf(output.dataType, output.shape, new Array(sizeOf(output.shape)).fill(1));
}

function leafOf(name: string, { dataType, shape, bytes, elements }: Reading): Leaf | undefined {
  const value = bytes
    ? tensorFromBytes(dataType, shape, bytes)
    : tensorOf(dataType, shape, (elements ?? []).map(Number));
  const axes = shape.map((size) =>
    create(AxisSchema, { extent: { case: "size", value: BigInt(size) } }),
  );
  return create(LeafSchema, { name, type: create(TensorTypeSchema, { dataType, axes }), value });
}
