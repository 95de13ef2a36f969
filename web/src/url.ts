/** What is shared by address: an expression or a saved graph, settings, and what is looked at. */

export interface Shared {
  expression?: string;
  /** Digest of a saved graph, in hex. */
  graph?: string;
  settings: Map<string, number[]>;
  output?: string;
  /** The step that the playback is at. */
  at?: number;
}

const LONGEST_SETTING = 64; // elements

export function readFragment(fragment: string): Shared {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const settings = new Map<string, number[]>();
  for (const setting of fields.getAll("set")) {
    const equals = setting.lastIndexOf("=");
    const numbers = setting
      .slice(equals + 1)
      .split(",")
      .map(numberOf);
    if (equals > 0 && numbers.length <= LONGEST_SETTING && numbers.every((x) => x !== undefined)) {
      settings.set(setting.slice(0, equals), numbers as number[]);
    }
  }
  const at = Number(fields.get("at") ?? NaN);
  const graph = fields.get("graph") ?? undefined;
  return {
    expression: fields.get("expression") ?? undefined,
    graph: graph && /^[0-9a-f]{64}$/.test(graph) ? graph : undefined,
    settings,
    output: fields.get("of") ?? undefined,
    at: Number.isInteger(at) && at >= 0 ? at : undefined,
  };
}

export function writeFragment({ expression, graph, settings, output, at }: Shared): string {
  const fields = new URLSearchParams();
  if (expression !== undefined) fields.set("expression", expression);
  else if (graph !== undefined) fields.set("graph", graph);
  for (const [name, numbers] of settings) {
    if (numbers.length <= LONGEST_SETTING) fields.append("set", `${name}=${numbers.join(",")}`);
  }
  if (output) fields.set("of", output);
  if (at !== undefined) fields.set("at", String(at));
  return `#${fields}`;
}

/** NaN and infinities are numbers here; an empty text is none. */
export function numberOf(text: string): number | undefined {
  const trimmed = text.trim();
  if (/^nan$/i.test(trimmed)) return NaN;
  const infinity = /^([+-]?)inf(inity)?$/i.exec(trimmed);
  if (infinity) return infinity[1] === "-" ? -Infinity : Infinity;
  const number = Number(trimmed);
  return trimmed === "" || Number.isNaN(number) ? undefined : number;
}

export function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function bytesOfHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}
