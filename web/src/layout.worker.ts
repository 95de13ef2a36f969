/** Lays a scene out beside the page's own thread: Graphviz's dot, or plain levels for many items. */

import { dotSource, positionsOf } from "./dot";
import { levelLayout } from "./levels";
import type { LayoutAnswer, LayoutRequest } from "./layout";

const PLAIN_JSON = "json0" as "json"; // positions without drawing; the library's types lack it
const graphviz = import("@hpcc-js/wasm-graphviz").then(({ Graphviz }) => Graphviz.load());

self.onmessage = async ({ data }: MessageEvent<LayoutRequest>) => {
  self.postMessage(await answerTo(data));
};

/** A rejection here would be heard by nobody, so what went wrong is an answer too. */
async function answerTo(request: LayoutRequest): Promise<LayoutAnswer> {
  try {
    if (request.engine === "levels") return levelLayout(request);
    const text = (await graphviz).layout(dotSource(request), PLAIN_JSON, "dot");
    return positionsOf(request, JSON.parse(text));
  } catch (error) {
    return { failure: error instanceof Error ? error.message : String(error) };
  }
}
