// A thousand nodes, and ten thousand: laid out and played. What was measured is printed, and nothing
// depends on it: other programs run beside the tests. The goals are a second and 50 ms a frame.
import assert from "node:assert/strict";
import { test } from "node:test";
import { close, find, open, screenshot, site } from "./setup.mjs";

const gradwire = site();
const files = process.env.FILES;
const skip = !files && "FILES is not set";
/** How long each circuit is played: PLAY_SECONDS=8 gives figures that can be compared. */
const seconds = Number(process.env.PLAY_SECONDS ?? 0.5);

async function openLarge(page, nodes) {
  await page.setInputFiles("#file", `${files}/chain${nodes}.gate`);
  await page.locator("#facts", { hasText: new RegExp(`^${nodes} nodes`) }).waitFor();
  await page.locator("#caption", { hasText: `Backward ${nodes} of ${nodes}` }).waitFor();
  return Number(await page.locator("#stage").getAttribute("data-layout-milliseconds"));
}

/** How long each frame took while it was played from the beginning. */
function playedFrames(page) {
  return page.evaluate(async (limit) => {
    document.getElementById("first").click();
    document.getElementById("play").click();
    const frames = [];
    let last = performance.now();
    const end = last + 1000 * limit;
    while (last < end || frames.length < 10) {
      await new Promise(requestAnimationFrame);
      const now = performance.now();
      frames.push(now - last);
      last = now;
    }
    document.getElementById("play").click();
    return frames.slice(2).sort((a, b) => a - b);
  }, seconds);
}

function report(t, what, layout, frames) {
  const [median, longest] = [frames[frames.length >> 1], frames.at(-1)];
  const over = frames.filter((each) => each > 50).length;
  t.diagnostic(
    `${what}: laid out in ${layout} ms; ${frames.length} frames, median ` +
      `${median.toFixed(1)} ms, longest ${longest.toFixed(1)} ms, ${over} over 50 ms`,
  );
}

test("a thousand nodes are laid out and played", { skip }, async (t) => {
  const page = await open(gradwire);
  const layout = await openLarge(page, 1000);
  report(t, "1,000 nodes", layout, await playedFrames(page));
  await page.click("#last");
  await screenshot(page, "thousand");
  await find(page, "%500");
  await page.locator("#details h2", { hasText: "%500" }).waitFor();
  await screenshot(page, "thousand-near");
  await close(page);
});

test("ten thousand nodes open as a summary, and all of them on a canvas", { skip }, async (t) => {
  const page = await open(gradwire);
  const layout = await openLarge(page, 10_000);
  report(t, "10,000 nodes, summary", layout, await playedFrames(page));
  await page.click("#last");
  await page
    .locator("#stage .group .gradient", { hasText: /max \S/ })
    .first()
    .waitFor({ state: "attached" });
  await screenshot(page, "ten-thousand-summary");
  await page.click("#open-groups");
  await page.locator("#stage canvas").first().waitFor();
  const all = Number(await page.locator("#stage").getAttribute("data-layout-milliseconds"));
  report(t, "10,000 nodes, all", all, await playedFrames(page));
  await screenshot(page, "ten-thousand");
  await find(page, "%5000");
  await page.locator("#details h2", { hasText: "%5000" }).waitFor();
  await screenshot(page, "ten-thousand-near");
  await close(page);
});

test("a long chain with a parameter at each gate is laid out", { skip }, async (t) => {
  const page = await open(gradwire);
  await page.setInputFiles("#file", `${files}/long.gate`);
  await page.locator("#facts", { hasText: /^600 nodes, laid out in \d+ ms/ }).waitFor();
  t.diagnostic(await page.locator("#facts").textContent());
  await screenshot(page, "long");
  await find(page, "w150");
  await page.locator("#details h2", { hasText: "w150" }).waitFor();
  await page.locator("#stage").press("ArrowRight");
  await page.locator("#details h2", { hasText: "Mul" }).waitFor();
  await screenshot(page, "long-near");
  await close(page);
});

test("a circuit drawn while another is laid out has its own places", { skip }, async () => {
  const page = await open(gradwire);
  const draw = async () => {
    await page.fill("#expression", "sigmoid(w*x + b)");
    await page.press("#expression", "Enter");
    await page.locator("#facts", { hasText: /^3 nodes/ }).waitFor();
    return page
      .locator("#stage .item")
      .evaluateAll((items) => items.map((item) => item.getAttribute("transform")));
  };
  const alone = await draw();
  const asked = page.waitForRequest(/EvaluateStream|Evaluate$/); // the long circuit's shapes
  await page.setInputFiles("#file", `${files}/chain1000.gate`);
  await asked;
  assert.deepEqual(await draw(), alone);
  await close(page);
});

test("a layout worker that fails is said at once, and the circuit is drawn all the same", async () => {
  const page = await open(gradwire);
  await page.route(/layout\.worker/, (route) => route.abort());
  await page.reload();
  await page
    .locator("#facts", { hasText: /5 nodes, .* in plain columns \(Graphviz failed/ })
    .waitFor();
  assert.equal(await page.locator("#stage .item").count(), 11);
  await screenshot(page, "plain-columns");
  await page.context().close();
});
