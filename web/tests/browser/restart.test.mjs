// A server that goes away and comes back.
import assert from "node:assert/strict";
import { test } from "node:test";
import { close, open, screenshot, shows, site, startServer, stopServer } from "./setup.mjs";

const gradwire = site();

test("the page connects again after a restart, and goes on from the same point", async () => {
  const page = await open(gradwire);
  await page.getByLabel("w2", { exact: true }).fill("-1");
  await page.locator("#stage .label", { hasText: "0.953" }).waitFor();
  const port = new URL(gradwire.url).port;
  await stopServer(gradwire);
  await page.getByText("the server is away").waitFor();
  await shows(page, "σ", ["0.953", "∂ 1"], "the last numbers stay");
  await screenshot(page, "server-away");
  await page.getByLabel("w0", { exact: true }).fill("1");
  Object.assign(gradwire, await startServer(port));
  await page.getByText("connected, live").waitFor();
  await page.locator("#stage .label", { hasText: "0.982" }).waitFor();
  await close(page);
});
