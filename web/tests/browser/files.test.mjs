// Files that are dropped and chosen, broken and hostile ones; another origin.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { close, find, open, ready, repository, screenshot, shows, site } from "./setup.mjs";

const gradwire = site();
const files = process.env.FILES;

async function drop(page, name, bytes) {
  const transfer = await page.evaluateHandle(
    ([file, base64]) => {
      const data = new DataTransfer();
      const content = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      data.items.add(new File([content], file));
      return data;
    },
    [name, bytes.toString("base64")],
  );
  await page.dispatchEvent("#stage", "dragenter", { dataTransfer: transfer });
  await page.dispatchEvent("#stage", "drop", { dataTransfer: transfer });
}

test("a dropped .gate file is drawn", async () => {
  const page = await open(gradwire);
  await drop(page, "neuron.gate", readFileSync(repository("examples/sigmoid_neuron.gate")));
  await page.locator("#facts", { hasText: "laid out" }).waitFor();
  await page.locator("#stage .symbol", { hasText: "exp" }).waitFor();
  await ready(page);
  assert.equal(await page.evaluate(() => location.hash), "", "a file has no address");
  await close(page);
});

test("an .onnx model is drawn, with shapes and norms, and its numbers are right", async () => {
  const page = await open(gradwire);
  await page.setInputFiles("#file", repository("tests/models/resnet_block.onnx"));
  await page.locator("#stage .symbol", { hasText: "Conv" }).first().waitFor();
  await page
    .locator("#stage .value", { hasText: /2×4×4×4 \|\d/ })
    .first()
    .waitFor();
  await page
    .locator("#stage .gradient", { hasText: /∂ 2×4×4×4 \|\d/ })
    .first()
    .waitFor();
  await screenshot(page, "onnx");
  await close(page);
});

test("a broken file's error is told, and the circuit before stays", async () => {
  const page = await open(gradwire);
  const bytes = readFileSync(repository("examples/sigmoid_neuron.gate"));
  bytes[40] ^= 1;
  await drop(page, "broken.gate", bytes);
  await page.locator("#failure", { hasText: "broken.gate" }).waitFor();
  await shows(page, "σ", ["0.731", "∂ 1"]);
  await drop(page, "broken.onnx", Buffer.from("this is no model"));
  const failure = page.locator("#failure", {
    hasText: "broken.onnx: is no ONNX model: it is text",
  });
  await failure.waitFor();
  await screenshot(page, "broken-file");
  await close(page);
});

test("a file that is no graph is named as what it is, and the error goes with the next circuit", async () => {
  const page = await open(gradwire);
  const failure = page.locator("#failure");
  await drop(page, "photo.png", Buffer.from("\x89PNG\r\n\x1a\n0000", "latin1"));
  await page.getByText("photo.png: is not a graph file: it is a PNG image").waitFor();
  await drop(page, "neuron.gate", readFileSync(repository("examples/sigmoid_neuron.gate")));
  await page.locator("#source", { hasText: "neuron.gate" }).waitFor();
  await failure.waitFor({ state: "hidden" });
  await drop(page, "photo.png", Buffer.from("\x89PNG\r\n\x1a\n0000", "latin1"));
  await failure.waitFor();
  await page.getByLabel("Close the message").click();
  await failure.waitFor({ state: "hidden" });
  await page.fill("#expression", "sqrt(");
  await page.press("#expression", "Enter");
  await page.locator("#expression-error").waitFor();
  await page.fill("#expression", "sqrt(x)");
  await page.locator("#expression-error").waitFor({ state: "hidden" });
  await close(page);
});

test("the opened file's name is shown until an expression is drawn", async () => {
  const page = await open(gradwire);
  const source = page.locator("#source");
  await page.setInputFiles("#file", repository("tests/models/resnet_block.onnx"));
  await page.locator("#source", { hasText: "resnet_block.onnx" }).waitFor();
  assert.match(await page.title(), /^resnet_block\.onnx/);
  await page.fill("#expression", "a*b");
  await page.press("#expression", "Enter");
  await source.waitFor({ state: "hidden" });
  assert.doesNotMatch(await page.title(), /resnet/);
  await close(page);
});

test("Fit shows all of a circuit that opens at its beginning", async () => {
  const page = await open(gradwire);
  await page.setInputFiles("#file", repository("tests/models/resnet_block.onnx"));
  await page.locator("#stage .symbol", { hasText: "Relu" }).first().waitFor({ state: "attached" });
  const inSight = () =>
    page.evaluate(() => {
      const stage = document.getElementById("stage").getBoundingClientRect();
      const items = [...document.querySelectorAll("#stage .item")];
      return items.every((item) => {
        const { left, right, top, bottom } = item.getBoundingClientRect();
        return (
          left >= stage.left && right <= stage.right && top >= stage.top && bottom <= stage.bottom
        );
      });
    });
  assert.equal(await inSight(), false);
  await page.click("#fit");
  assert.equal(await inSight(), true);
  await close(page);
});

test("hostile names are text, never markup", { skip: !files && "FILES is not set" }, async () => {
  const page = await open(gradwire);
  await page.setInputFiles("#file", `${files}/hostile.gate`);
  await page.locator("#stage .name", { hasText: "<img src=x" }).first().waitFor();
  await find(page, "<script>");
  await page.locator("#details h2", { hasText: "<script>" }).waitFor();
  await page.click("#close-groups");
  await page.locator("#stage .group").first().waitFor();
  await page.click("#export");
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(
    await page.locator("#stage img, #stage script, #details img, #details script").count(),
    0,
  );
  await screenshot(page, "hostile");
  await close(page);
});

test(
  "modules are boxes that close to one gate and open again",
  { skip: !files && "FILES is not set" },
  async () => {
    const page = await open(gradwire);
    await page.setInputFiles("#file", `${files}/layers.gate`);
    await page.locator("#stage .module", { hasText: "layer1" }).waitFor();
    await screenshot(page, "modules-open");
    await page.click("#close-groups");
    const group = page.locator("#stage .group", { hasText: "layer1" });
    await group.waitFor();
    assert.equal(await page.locator("#stage .module").count(), 0);
    await screenshot(page, "modules-closed");
    await page.fill("#search", "layer2/scores");
    await page.press("#search", "Enter");
    await page.locator("#details h2", { hasText: "layer2/scores" }).waitFor();
    assert.equal(
      await page.locator("#stage .group", { hasText: "layer2" }).count(),
      0,
      "a jump opens the group",
    );
    await close(page);
  },
);

test("a module with its own gradient is one box, and shows its inside when it is opened", async () => {
  const page = await open(gradwire);
  await page.setInputFiles("#file", repository("examples/sigmoid_neuron_module.gate"));
  await page.locator("#stage .group", { hasText: "own gradient" }).waitFor();
  await ready(page);
  await shows(page, "f · sigmoid", ["0.731", "∂ 1"]);
  await page.click("#open-groups");
  await page.locator("#stage .module").waitFor();
  await shows(page, "exp", ["0.368", "∂ –"], "none is computed inside");
  await shows(page, "1/x", ["0.731", "∂ 1"], "the module's own");
  await shows(page, "w1", ["−3", "∂ −0.393"]);
  await screenshot(page, "module-with-gradient");
  await close(page);
});

test(
  "gradients are taken of the output that is chosen",
  { skip: !files && "FILES is not set" },
  async () => {
    const page = await open(gradwire);
    await page.setInputFiles("#file", `${files}/layers.gate`);
    await page.locator("#stage .name", { hasText: "twice" }).waitFor();
    await page.getByLabel("x", { exact: true }).fill("1");
    await page.locator("#stage .label", { hasText: "∂ 2.18" }).waitFor();
    await page.selectOption("#output", "twice");
    await page.locator("#stage .label", { hasText: "∂ 4.35" }).waitFor();
    await ready(page);
    await page.getByLabel("layer1.w", { exact: true }).fill("0");
    await page.locator("#stage .label", { hasText: "∂ 3.64" }).first().waitFor();
    await close(page);
  },
);

test("another origin cannot call the service", async () => {
  const page = await open(gradwire);
  const port = new URL(gradwire.url).port;
  await page.goto(`http://localhost:${port}/`);
  const answer = await page.evaluate(async (url) => {
    const headers = { "Content-Type": "application/octet-stream" };
    try {
      return (await fetch(`${url}parse`, { method: "POST", body: "a+b", headers })).status;
    } catch (error) {
      return error.name;
    }
  }, gradwire.url);
  assert.equal(answer, "TypeError");
  await page.context().close();
});
