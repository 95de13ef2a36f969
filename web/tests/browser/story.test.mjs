// The seed's story: a sigmoid neuron, forward and backward, step by step.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  addressOf,
  close,
  command,
  find,
  GATE_BY_GATE,
  NEURON,
  number,
  open,
  ready,
  screenshot,
  SETTINGS,
  shows,
  site,
} from "./setup.mjs";

const gradwire = site();

test("a newcomer sees the sigmoid gate and its gradient at once", async () => {
  const page = await open(gradwire);
  await shows(page, "σ", ["0.731", "∂ 1"]);
  await number(page, "product").waitFor();
  assert.match(
    await number(page, "local").textContent(),
    /d out\/dX = \(1 - out\) \* out = \(1 - 0\.731059\) \* 0\.731059 = 0\.196612/,
  );
  assert.equal(await number(page, "product").textContent(), "1 × 0.196612 = 0.196612");
  await screenshot(page, "first-light");
  await page.emulateMedia({ colorScheme: "dark" });
  await screenshot(page, "first-dark");
  await close(page);
});

test("a typed expression is drawn", async () => {
  const page = await open(gradwire);
  await page.fill("#expression", "tanh(a * b)");
  await page.press("#expression", "Enter");
  await page.getByText("2 nodes").waitFor();
  await ready(page);
  await shows(page, "a", ["−2"]);
  assert.match(await page.evaluate(() => location.href), /expression=tanh/);
  await close(page);
});

test("a mistake in an expression is marked at its column", async () => {
  const page = await open(gradwire);
  await page.fill("#expression", "sigmoid(w*x + )");
  await page.press("#expression", "Enter");
  const error = page.locator("#expression-error");
  await error.waitFor();
  const [, line, mark] = (await error.textContent()).split("\n");
  assert.equal(line[mark.indexOf("^")], ")");
  await shows(page, "σ", ["0.731", "∂ 1"], "the circuit before is still there");
  await screenshot(page, "mistake");
  await close(page);
});

test("steps forward and backward reveal one gate after the other, and nothing is 0 before", async () => {
  const page = await open(gradwire, addressOf(GATE_BY_GATE));
  await page.click("#first");
  await shows(page, "exp", ["–", "∂ –"]);
  await shows(page, "w0", ["–", "∂ –"]);
  await page.click("#forward");
  await shows(page, "w0", ["2", "∂ –"]);
  for (let step = 0; step < 6; step++) await page.click("#forward");
  await shows(page, "exp", ["0.368", "∂ –"]);
  await shows(page, "1/x", ["–", "∂ –"]);
  for (let step = 0; step < 3; step++) await page.click("#forward");
  await shows(page, "1/x", ["0.731", "∂ 1"]);
  await shows(page, "+1", ["1.37", "∂ –"]);
  await page.click("#forward");
  await shows(page, "+1", ["1.37", "∂ −0.534"]);
  await screenshot(page, "backward-step");
  await page.click("#back");
  await shows(page, "+1", ["1.37", "∂ –"]);
  await close(page);
});

test("playing goes forward, then backward, to the end", async () => {
  const page = await open(gradwire);
  await page.selectOption("#speed", "4");
  const captions = page.evaluate(() => {
    const caption = document.getElementById("caption");
    const seen = [];
    return new Promise((resolve) => {
      const note = () => {
        seen.push(caption.textContent);
        if (caption.textContent.includes("Backward 5 of 5")) resolve(seen);
      };
      const everything = { childList: true, characterData: true, subtree: true };
      new MutationObserver(note).observe(caption, everything);
    });
  });
  await page.click("#play");
  const passes = (await captions).map((each) => /Forward|Backward/.exec(each)?.[0]);
  assert.ok(passes.includes("Forward"));
  assert.ok(passes.lastIndexOf("Forward") < passes.indexOf("Backward"));
  await shows(page, "w1", ["−3", "∂ −0.393"]);
  await close(page);
});

test("numbers are those of the command line, digit by digit", async () => {
  for (const expression of [NEURON, GATE_BY_GATE, "log(a + 1e-9) * (b / 7) ** 2 - tanh(-a * 3)"]) {
    const settings = expression.includes("w0") ? SETTINGS : { a: 0.3, b: 1234.5678 };
    const words = Object.entries(settings).flatMap(([name, x]) => ["--set", `${name}=${x}`]);
    const table = (await command("eval", expression, ...words)).split("\n");
    const rows = table.slice(1).filter((row) => row && !row.startsWith("output"));
    const page = await open(gradwire, addressOf(expression, settings));
    for (const row of rows) {
      const [name, , value, gradient] = row.trim().split(/ {2,}/);
      await find(page, name);
      await page.locator("#details h2", { hasText: name }).waitFor();
      assert.equal(await number(page, "value").textContent(), value, row);
      assert.equal(await number(page, "gradient").textContent(), gradient, row);
    }
    assert.ok(rows.length >= 5);
    await close(page);
  }
});

test("the tour tells the story in five steps", async () => {
  const page = await open(gradwire);
  await page.click("#start-tour");
  for (const [title, check] of [
    ["Gates", () => shows(page, "exp", ["–", "∂ –"])],
    ["Forward", () => page.locator("#caption", { hasText: "Forward 8 of 8" }).waitFor()],
    ["Local gradients", () => page.locator("#stage .local", { hasText: "× −0.534" }).waitFor()],
    ["Backward", () => page.locator("#caption", { hasText: "Backward 8 of 8" }).waitFor()],
    [
      "One gate instead of four",
      async () => {
        await page.locator("#stage .local", { hasText: "× 0.197" }).waitFor();
        await shows(page, "w1", ["−3", "∂ −0.393"]);
      },
    ],
  ]) {
    await page.locator("#tour-title", { hasText: title }).waitFor();
    await page.locator("#stage .circuit").waitFor();
    await check();
    await screenshot(page, `tour-${title.toLowerCase().replaceAll(" ", "-")}`);
    await page.click("#tour-next");
  }
  assert.ok(await page.locator("#tour").isHidden());
  await close(page);
});

test("it works at a telephone's width", async () => {
  const page = await open(gradwire, "", { width: 400 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 400, `the page is ${wide} wide`);
  await page.click("#first");
  await page.click("#forward");
  await shows(page, "w0", ["2", "∂ –"]);
  await screenshot(page, "narrow", { fullPage: true });
  await close(page);
});

async function draw(page, expression) {
  await page.fill("#expression", expression);
  await page.press("#expression", "Enter");
  await page.waitForURL(
    (url) => new URLSearchParams(url.hash.slice(1)).get("expression") === expression,
  );
  await ready(page);
}

test("inputs differ, so that max and (x + y)*z tell something", async () => {
  const page = await open(gradwire);
  await draw(page, "max(x, y)");
  await shows(page, "x", ["−2", "∂ 0"]);
  await shows(page, "y", ["5", "∂ 1"]);
  await draw(page, "(x + y)*z");
  await shows(page, "x", ["−2", "∂ −4"]);
  await shows(page, "z", ["−4", "∂ 3"]);
  await shows(page, "×", ["−12", "∂ 1"]);
  await draw(page, "log(a)*b");
  await shows(page, "a", ["2", "∂ 2.5"], "numbers that make no NaN");
  await close(page);
});

test("at a fork the sum is written out", async () => {
  const page = await open(gradwire, addressOf("x*y + x*z - x**2/4", { x: -2, y: -1.7, z: -1.7 }));
  await find(page, "x");
  await page.locator("#details h2", { hasText: "x" }).waitFor();
  await page
    .locator('#details [data-number="sum"]', { hasText: "-1.7 - 1.7 + 1 = -2.4" })
    .waitFor();
  await page.click("#first");
  assert.equal(await page.locator('#details [data-number="sum"]').count(), 0, "not before");
  await page.click("#last");
  await find(page, "Pow");
  await page.locator("#details .backward", { hasText: "-1.7 - 1.7 + 1 = -2.4" }).waitFor();
  await screenshot(page, "fork");
  await close(page);
});

test("a value without a name is called by its formula", async () => {
  const page = await open(gradwire);
  await find(page, "%8");
  await page.locator("#details h2", { hasText: "Add" }).waitFor();
  await page.locator("#details .backward button", { hasText: "w0*x0" }).first().waitFor();
  await find(page, "out");
  await page.locator("#details .backward button", { hasText: "w0*x0 + w1*x1 + w2" }).click();
  await page.locator("#details h2", { hasText: "%9" }).waitFor();
  await close(page);
});
