// Evaluates a .gate file on a gradient server with nothing but the proto files:
//
//   node evaluate.mjs ../../examples/sigmoid_neuron.gate localhost:50051 w0=1.5
//
// Prints every value and gradient as they are streamed, then outputs and leaf gradients.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const contract = grpc.loadPackageDefinition(
  protoLoader.loadSync(["gradwire/v1/service.proto", "gradwire/v1/graph.proto"], {
    includeDirs: [protos],
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
  }),
).gradwire.v1;

const FLOAT64 = "DATA_TYPE_FLOAT64";
const [path, address = "localhost:50051", ...settings] = process.argv.slice(2);
if (!path) {
  console.error("usage: node evaluate.mjs FILE [ADDRESS] [NAME=NUMBER ...]");
  process.exit(2);
}

function scalar(number) {
  const data = Buffer.alloc(8);
  data.writeDoubleLE(number);
  return { data_type: FLOAT64, data };
}

function numbers({ data_type: type, data }) {
  if (type !== FLOAT64) return `${data.length} bytes of ${type}`;
  return Array.from({ length: data.length / 8 }, (_, i) => data.readDoubleLE(8 * i)).join(", ");
}

// A file is one message: a constant format, the serialized graph, and its SHA-256. Protobuf fields
// are (number, length, bytes), short enough to read by hand: no GraphFile method is in the service.
function readGraph(bytes) {
  const fields = {};
  for (let at = 0; at < bytes.length; ) {
    const number = bytes[at++] >> 3;
    let length = 0;
    for (let shift = 0, byte = 128; byte & 128; shift += 7) {
      byte = bytes[at++];
      length += (byte & 127) * 2 ** shift;
    }
    fields[number] = bytes.subarray(at, (at += length));
  }
  const { 1: format, 2: graph, 3: digest } = fields;
  const whole = graph && digest?.equals(createHash("sha256").update(graph).digest());
  if (format?.toString() !== "gradwire graph" || !whole) {
    throw new Error(`${path} is not a whole graph file`);
  }
  return graph;
}

const client = new contract.GradientService(address, grpc.credentials.createInsecure());
const call = client.EvaluateStream({
  graph: { graph: readGraph(readFileSync(path)) },
  evaluation: {
    bindings: settings.map((setting) => {
      const [leaf, number] = setting.split("=");
      return { leaf, tensor: scalar(Number(number)) };
    }),
  },
});

call.on("data", ({ node_values: values, node_gradients: gradients, finished }) => {
  for (const [kind, column] of Object.entries({ values, gradients })) {
    if (!column) continue;
    const ids = column.value_ids.length ? column.value_ids : [column.first_value_id];
    console.log(`${kind}, ids from ${ids[0]}: ${numbers(column)}`);
  }
  for (const { name, tensor } of finished?.result.outputs ?? []) {
    console.log(`output ${name} = ${numbers(tensor)}`);
  }
  for (const { name, tensor } of finished?.result.gradients ?? []) {
    console.log(`gradient ${name} = ${numbers(tensor)}`);
  }
});
call.on("error", (error) => {
  console.error(`gradwire: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
