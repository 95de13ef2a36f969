// Sliders, keys, tools, sharing: what one does with a circuit.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  addressOf,
  close,
  command,
  emptyPage,
  find,
  GATE_BY_GATE,
  load,
  NEURON,
  number,
  open,
  ready,
  repository,
  screenshot,
  shows,
  site,
} from "./setup.mjs";

const gradwire = site();

test("a slider moves every number at once, to what the command line says", async () => {
  const page = await open(gradwire);
  const slider = page.getByLabel("w0, slider");
  await slider.focus();
  for (let i = 0; i < 40; i++) await page.keyboard.press("ArrowLeft");
  const w0 = Number(await page.getByLabel("w0", { exact: true }).inputValue());
  assert.ok(w0 < 1.7, `w0 is ${w0}`);
  const table = await command(
    "eval",
    NEURON,
    "--set",
    `w0=${w0}`,
    "--set",
    "x0=-1",
    "--set",
    "w1=-3",
    "--set",
    "x1=-2",
    "--set",
    "w2=-3",
  );
  const expected = /Sigmoid +([^ ]+)/.exec(table)[1];
  await page.locator('#details [data-number="value"]', { hasText: expected }).waitFor();
  await close(page);
});

test("a number typed into a field counts, and what is no number is marked", async () => {
  const page = await open(gradwire);
  const field = page.getByLabel("w2", { exact: true });
  await field.fill("7.5");
  await page.locator('#details [data-number="value"]', { hasText: /^0.99999$/ }).waitFor();
  await field.fill("seven");
  assert.equal(await field.getAttribute("aria-invalid"), "true");
  await close(page);
});

test("the circuit can be used with keys alone", async () => {
  const page = await open(gradwire, addressOf(GATE_BY_GATE));
  await page.focus("#stage");
  await page.keyboard.press("Escape");
  await page.keyboard.press("ArrowRight");
  const heading = page.locator("#details h2");
  assert.match(await heading.textContent(), /w0/);
  await page.keyboard.press("ArrowDown");
  assert.match(await heading.textContent(), /x0/);
  await page.keyboard.press("ArrowRight");
  assert.match(await heading.textContent(), /Mul/);
  await page.keyboard.press("ArrowLeft");
  assert.match(await heading.textContent(), /[wx]0/);
  const before = await page.locator("#stage .world").getAttribute("transform");
  await page.keyboard.press("+");
  assert.notEqual(await page.locator("#stage .world").getAttribute("transform"), before);
  await page.keyboard.press("0");
  await page.keyboard.press("Home");
  await shows(page, "exp", ["–", "∂ –"]);
  await page.keyboard.press(".");
  await shows(page, "w0", ["2", "∂ –"]);
  await page.keyboard.press("End");
  await page.keyboard.press("l");
  await page.locator("#stage .local", { hasText: "× −0.534" }).waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type("exp");
  await page.keyboard.press("Enter");
  await page.locator("#details h2", { hasText: "Exp" }).waitFor();
  await page.focus("#stage");
  await page.keyboard.press("?");
  await page.locator("#keys").waitFor();
  await page.keyboard.press("Escape");
  await close(page);
});

test("every control can be reached with the tab key", async () => {
  const page = await open(gradwire);
  const reached = new Set();
  await page.focus("#expression");
  for (let i = 0; i < 60; i++) {
    reached.add(await page.evaluate(() => document.activeElement.id));
    await page.keyboard.press("Tab");
  }
  for (const id of [
    "open-file",
    "open-saved",
    "share",
    "export",
    "theme",
    "start-tour",
    "search",
    "locals",
    "path",
    "nan",
    "fit",
    "stage",
    "play",
    "position",
    "speed",
  ])
    assert.ok(reached.has(id), id);
  await close(page);
});

test("axe finds no serious problem, in light and dark, wide and narrow", async () => {
  const axe = readFileSync(repository("web/node_modules/axe-core/axe.min.js"), "utf8");
  const page = await emptyPage(gradwire, { bypassCSP: true });
  for (const options of [{ colorScheme: "light" }, { colorScheme: "dark" }, { width: 400 }]) {
    await load(page, gradwire, addressOf(GATE_BY_GATE), options);
    await page.locator("#details .product").first().waitFor();
    await page.click("#start-tour");
    await page.locator("#caption", { hasText: "Nothing is computed yet" }).waitFor();
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run());
    const serious = violations.filter(
      ({ impact }) => impact === "serious" || impact === "critical",
    );
    assert.deepEqual(
      serious.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]),
      [],
    );
  }
  assert.deepEqual([page.mistakes, page.elsewhere], [[], []]);
  await page.context().close();
});

test("the path of the largest gradient leads to the leaf that matters most", async () => {
  const page = await open(gradwire);
  await page.click("#path");
  const marked = await page
    .locator("#stage .item.on-path .symbol, #stage .item.on-path .name")
    .allTextContents();
  assert.ok(marked.includes("σ") && marked.includes("x1"), marked.join());
  assert.ok(!marked.includes("w2"), marked.join());
  await screenshot(page, "largest-path");
  await close(page);
});

test("the first NaN is found, and its gate is shown", async () => {
  const page = await open(gradwire, addressOf("sqrt(a) + exp(b)", { a: -4, b: 1 }));
  await page.click("#nan");
  await page.locator("#details h2", { hasText: "Sqrt" }).waitFor();
  assert.equal(await number(page, "value").textContent(), "nan");
  await shows(page, "√", ["NaN"]);
  assert.match(await page.locator("#status").textContent(), /first NaN is the value/);
  await close(page);
});

test("a link brings the same expression, settings and step", async () => {
  const page = await open(gradwire, addressOf(GATE_BY_GATE));
  await page.getByLabel("w2", { exact: true }).fill("-1");
  await page.click("#first");
  await page.click("#forward");
  await page.click("#share");
  const link = await page.evaluate(() => location.href);
  await close(page);
  const other = await open(gradwire, link.slice(link.indexOf("#")));
  assert.equal(await other.getByLabel("w2", { exact: true }).inputValue(), "-1");
  await shows(other, "w2", ["−1", "∂ –"]);
  await shows(other, "exp", ["–", "∂ –"]);
  await close(other);
});

test("the exported picture is a whole SVG with the numbers in it", async () => {
  const page = await open(gradwire);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
  const text = readFileSync(await download.path(), "utf8");
  const file = await page.context().newPage();
  await file.setContent(text);
  await file.locator("svg .value", { hasText: "0.731" }).waitFor();
  await screenshot(file, "exported");
  await file.close();
  assert.doesNotMatch(text, /var\(--/);
  await close(page);
});

test("a saved graph is chosen from the list, and has an address", async () => {
  await command(
    "save",
    repository("examples/sigmoid_neuron.gate"),
    "--name",
    "neuron",
    "--server",
    gradwire.grpc,
  );
  const page = await open(gradwire);
  await page.click("#open-saved");
  await page.locator("#saved-list button", { hasText: "neuron" }).click();
  await page.locator("#facts", { hasText: /^1\d nodes|^[6-9] nodes/ }).waitFor();
  await ready(page);
  assert.match(await page.evaluate(() => location.href), /graph=[0-9a-f]{64}/);
  await close(page);
});
