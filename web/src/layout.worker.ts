/** Lays a scene out beside the page's own thread: Graphviz's dot, or plain levels for many items. */

import { dotSource, positionsOf } from "./dot";
import { levelLayout } from "./levels";
import type { LayoutRequest } from "./layout";

const PLAIN_JSON = "json0" as "json"; // positions without drawing; the library's types lack it
const graphviz = import("@hpcc-js/wasm-graphviz").then(({ Graphviz }) => Graphviz.load());

self.onmessage = async ({ data: request }: MessageEvent<LayoutRequest>) => {
  const before = performance.now();
  const found =
    request.engine === "dot"
      ? positionsOf(
          request,
          JSON.parse((await graphviz).layout(dotSource(request), PLAIN_JSON, "dot")),
        )
      : levelLayout(request);
  self.postMessage({ ...found, milliseconds: performance.now() - before });
};
