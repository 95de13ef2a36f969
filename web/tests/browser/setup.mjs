// A server, a browser and a page for all tests of a process. Environment: GRADWIRE is the command,
// CHROMIUM the browser, as tests/test_page.py sets them; SCREENSHOTS a folder, where some are wanted.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { after, before } from "node:test";
import { chromium } from "playwright-core";

const gradwire = process.env.GRADWIRE ?? "gradwire";
const screenshots = process.env.SCREENSHOTS;
/** Milliseconds after which a test gives up on what must come: more than any busy machine needs. */
const PATIENCE = 600_000;
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-software-rasterizer",
  "--disable-extensions",
  "--disable-features=BackForwardCache,MediaRouter,OptimizationHints,Translate",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export const repository = (path) => fileURLToPath(new URL(`../../../${path}`, import.meta.url));

export const SETTINGS = { w0: 2, x0: -1, w1: -3, x1: -2, w2: -3 };
export const NEURON = "sigmoid(w0*x0 + w1*x1 + w2)";
export const GATE_BY_GATE = "1/(1+exp(-(w0*x0+w1*x1+w2)))";

export function addressOf(expression, settings = SETTINGS) {
  const fields = new URLSearchParams({ expression });
  for (const [name, number] of Object.entries(settings)) fields.append("set", `${name}=${number}`);
  return `#${fields}`;
}

/** The gradwire command's standard output. */
export async function command(...words) {
  const environment = { ...process.env, COLUMNS: "300", NO_COLOR: "1" };
  const found = await promisify(execFile)(gradwire, words, { env: environment, maxBuffer: 1e8 });
  return found.stdout;
}

export async function startServer(port = 0, ...flags) {
  const words = ["serve", "--listen", "127.0.0.1:0", "--web-port", String(port), ...flags];
  const server = spawn(gradwire, words, { stdio: ["ignore", "pipe", "inherit"] });
  server.stdout.setEncoding("utf8");
  return new Promise((resolve, reject) => {
    let said = "";
    server.stdout.on("data", (text) => {
      said += text;
      const page = /(http:\/\/\S+)\n/.exec(said);
      const grpc = /listens on (\S+)\n/.exec(said);
      if (page && grpc) resolve({ server, url: page[1], grpc: grpc[1] });
    });
    server.on("error", reject);
    server.on("exit", () => reject(new Error(`the server ended: ${said}`)));
  });
}

export async function stopServer({ server }) {
  server.kill("SIGKILL");
  await once(server, "exit");
}

let running;

/** Starts them before the first test of the process; what it returns is filled in then. */
export function site() {
  if (running) return running;
  const found = (running = {});
  const store = mkdtempSync(join(tmpdir(), "gradwire-"));
  before(async () => {
    Object.assign(found, await startServer(0, "--store", store));
    found.browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  });
  after(async () => {
    await found.browser?.close();
    if (found.server) await stopServer(found);
    rmSync(store, { recursive: true });
  });
  return found;
}

/** A page that has loaded nothing yet, for `load`. */
export async function emptyPage(found, options = {}) {
  const context = await found.browser.newContext({
    reducedMotion: "reduce",
    ...options,
  });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.mistakes = [];
  page.elsewhere = [];
  page.on("pageerror", (error) => page.mistakes.push(error.message));
  page.on("console", (message) => {
    if (/Content Security Policy|Refused to/.test(message.text()))
      page.mistakes.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(found.url) && !request.url().startsWith("blob:")) {
      page.elsewhere.push(request.url());
    }
  });
  return page;
}

let loads = 0;

/** Loads the page anew: the query makes it another document, however much the address is the same. */
export async function load(
  page,
  found,
  fragment = "",
  { width = 1280, colorScheme = "light" } = {},
) {
  await page.setViewportSize({ width, height: 800 });
  await page.emulateMedia({ colorScheme });
  await page.goto(`${found.url}?load=${loads++}${fragment}`);
  await ready(page);
}

/** One that a test closed without a mistake: a new window takes longer than most tests do in it. */
let closed;

/** A page that shows a circuit; an error in its scripts, or what its policy forbids, fails the test. */
export async function open(found, fragment = "", options = {}) {
  const page = closed ?? (await emptyPage(found));
  closed = undefined;
  await load(page, found, fragment, options);
  return page;
}

/** Everything is computed, and the session is there. */
export async function ready(page) {
  await page.getByText("connected, live").waitFor();
  await page.locator("#stage .circuit").waitFor();
}

export async function close(page) {
  assert.deepEqual(page.mistakes, []);
  assert.deepEqual(page.elsewhere, []);
  await page.evaluate(() => localStorage.clear());
  closed = page;
}

export async function screenshot(page, name, options = {}) {
  if (!screenshots) return;
  mkdirSync(screenshots, { recursive: true });
  await page.screenshot({ path: `${screenshots}/${name}.png`, ...options });
}

/** Waits until the labels on the wire behind an item, found by what is written in it, begin so. */
export async function shows(page, text, expected, why) {
  const labels = ([wanted, these]) => {
    const items = [...document.querySelectorAll("#stage .item")];
    const item = items.find((it) => it.querySelector(".symbol, .name")?.textContent === wanted);
    const found = [...(item?.querySelectorAll(".label") ?? [])].map((it) => it.textContent);
    return these ? these.every((label, at) => label === found[at]) : found;
  };
  try {
    await page.waitForFunction(labels, [text, expected]);
  } catch {
    assert.deepEqual(await page.evaluate(labels, [text]), expected, why);
  }
}

export const number = (page, kind) => page.locator(`#details [data-number="${kind}"]`).first();

export async function find(page, text) {
  await page.fill("#search", text);
  await page.press("#search", "Enter");
}
