/** Everything that is asked of the server, but for sessions. */

import { create } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import {
  DescribeServerRequestSchema,
  GradientService,
  GraphSourceSchema,
  type Column,
  type DescribeServerResponse,
  type Evaluation,
  type GateDescription,
  type Result,
  type SavedGraph,
} from "./gen/gradwire/v1/service_pb";

export interface Fact {
  [key: string]: string;
}

/** A sentence that the server, or the way to it, has for the reader. */
export class Failure extends Error {
  constructor(
    message: string,
    readonly facts: Fact = {},
    /** It lies with the way to the server: another try may succeed. */
    readonly away = false,
  ) {
    super(message);
  }
}

export function failureOf(error: unknown): Failure {
  if (error instanceof Failure) return error;
  if (error instanceof ConnectError) {
    const away = error.rawMessage === "Failed to fetch" || error.rawMessage === "";
    return away ? noAnswer() : new Failure(error.rawMessage);
  }
  if (error instanceof TypeError) return noAnswer();
  return new Failure(error instanceof Error ? error.message : String(error));
}

function noAnswer(): Failure {
  return new Failure("the server does not answer; is it running?", {}, true);
}

const client = createClient(
  GradientService,
  createGrpcWebTransport({ baseUrl: location.origin, useBinaryFormat: true }),
);

export class Catalogue {
  private readonly gates: Map<string, GateDescription>;

  constructor(readonly server: DescribeServerResponse) {
    this.gates = new Map(server.gates.map((gate) => [gate.operator, gate]));
  }

  gate(operator: string): GateDescription | undefined {
    return this.gates.get(operator);
  }
}

export async function describe(): Promise<Catalogue> {
  return new Catalogue(await client.describeServer(create(DescribeServerRequestSchema)));
}

function sourceOf(graph: Uint8Array) {
  return create(GraphSourceSchema, { source: { case: "graph", value: graph } });
}

export async function evaluate(
  graph: Uint8Array,
  evaluation: Evaluation,
  signal?: AbortSignal,
): Promise<Result> {
  const answer = await client.evaluate({ graph: sourceOf(graph), evaluation }, { signal });
  if (!answer.result) throw new Failure("the server's answer has no result");
  return answer.result;
}

export interface Columns {
  values(column: Column): void;
  gradients(column: Column): void;
}

/** Hands on columns as they come; throws where the stream is cut. */
export async function evaluateStream(
  graph: Uint8Array,
  evaluation: Evaluation,
  columns: Columns,
  signal: AbortSignal,
): Promise<void> {
  for await (const { event } of client.evaluateStream(
    { graph: sourceOf(graph), evaluation },
    { signal },
  )) {
    if (event.case === "nodeValues") columns.values(event.value);
    if (event.case === "nodeGradients") columns.gradients(event.value);
    if (event.case === "finished") return;
  }
  throw new Failure("the server's answer was cut");
}

/** The graphs that are saved, names first; a thousand at most. */
export async function savedGraphs(): Promise<SavedGraph[]> {
  return (await client.listGraphs({ pageSize: 1000 })).graphs;
}

export async function savedGraph(digest: Uint8Array): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const { part } of client.getGraph({ graph: { case: "digest", value: digest } })) {
    if (part.case === "data") parts.push(part.value);
  }
  return new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
}

/** Saves a graph without a name; returns its digest. */
export async function saveGraph(graph: Uint8Array): Promise<Uint8Array> {
  const answer = await client.saveGraph({ graph: sourceOf(graph) });
  return answer.graph?.digest ?? new Uint8Array();
}

/** The serialized Graph of a .gate or .onnx file; options are further parts of the query. */
export function openFile(name: string, file: Blob, options = ""): Promise<Uint8Array> {
  return read(`open?name=${encodeURIComponent(name)}${options}`, file);
}

/** The serialized Graph of an expression; a Failure has the facts "line" and "column". */
export function parseExpression(text: string): Promise<Uint8Array> {
  return read("parse", new TextEncoder().encode(text));
}

async function read(path: string, body: Blob | Uint8Array): Promise<Uint8Array> {
  const answer = await fetch(path, {
    method: "POST",
    body: body as BodyInit,
    headers: { "Content-Type": "application/octet-stream" },
  });
  if (answer.ok) return new Uint8Array(await answer.arrayBuffer());
  const text = await answer.text();
  let found: { message?: string; facts?: Fact } = {};
  try {
    found = JSON.parse(text);
  } catch {
    found = { message: text.trim() };
  }
  throw new Failure(found.message || `the server answered ${answer.status}`, found.facts);
}
