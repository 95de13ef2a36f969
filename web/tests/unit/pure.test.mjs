// Functions without a page, loaded through Vite as the build does.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createServer } from "vite";

let vite;
const load = (name) => vite.ssrLoadModule(`/src/${name}.ts`);
before(async () => {
  vite = await createServer({
    server: { middlewareMode: true },
    appType: "custom",
    logLevel: "error",
  });
});
after(() => vite.close());

test("six digits are those of Python's .6g", async () => {
  const { general } = await load("format");
  for (const [x, text] of [
    [0, "0"],
    [-0, "-0"],
    [1, "1"],
    [0.1, "0.1"],
    [1 / 3, "0.333333"],
    [123456, "123456"],
    [1234567, "1.23457e+06"],
    [1e-4, "0.0001"],
    [1.5e-5, "1.5e-05"],
    [1e100, "1e+100"],
    [100000.5, "100000"],
    [100001.5, "100002"],
    [999999.5, "1e+06"],
    [NaN, "nan"],
    [-Infinity, "-inf"],
    [0.19661193324148185, "0.196612"],
    [2 ** -1074, "4.94066e-324"],
  ])
    assert.equal(general(x, 6), text);
});

test("pictures have three digits, by the rules of docs/pictures.md", async () => {
  const { brief } = await load("format");
  for (const [x, text] of [
    [-3, "−3"],
    [1024, "1024"],
    [0.731058, "0.731"],
    [-0.196612, "−0.197"],
    [0.2, "0.2"],
    [1234.6, "1235"],
    [1.2e-5, "1.2e−05"],
    [1e6, "1e+06"],
    [-3.14e100, "−3.14e+100"],
    [NaN, "NaN"],
    [Infinity, "inf"],
    [true, "true"],
    [-0, "0"],
    [999.7, "1000"],
    [999999.7, "1e+06"],
    [0.00009999, "0.0001"],
  ])
    assert.equal(brief(x), text);
});

test("tensors are cut as the command line cuts them", async () => {
  const { shownTensor } = await load("format");
  assert.equal(shownTensor([1, 2, 3, 4], [2, 2], true), "[[1, 2], [3, 4]]");
  assert.equal(shownTensor([1, 2, 3, 4, 5, 6, 7], [7], true), "[1, 2, 3, 4, 5, 6, ...]");
  assert.equal(shownTensor(new Array(12).fill(0.333333333), [12], true).length, 60);
});

test("a gradient's text is taken apart by input, whatever commas it has", async () => {
  const { partials, partialOf } = await load("formula");
  assert.deepEqual(partials("d out/dA = B,  d out/dB = A"), [
    ["A", "B"],
    ["B", "A"],
  ]);
  const swish = "d out/dX = 0 if X <= -3, 1 if X >= 3, else X / 3 + 1 / 2";
  assert.equal(partialOf(swish, "X"), "0 if X <= -3, 1 if X >= 3, else X / 3 + 1 / 2");
  assert.equal(partialOf("d out/d data_i = 1", "data_2"), "1");
  assert.equal(partialOf("to A = grad @ B^T,  to B = A^T @ grad", "A"), undefined);
});

test("numbers replace names, negative ones in brackets where that matters", async () => {
  const { substituted } = await load("formula");
  const numbers = new Map([
    ["out", "0.73"],
    ["X", "-2"],
    ["Y", "3"],
  ]);
  assert.equal(substituted("(1 - out) * out", numbers), "(1 - 0.73) * 0.73");
  assert.equal(substituted("Y * X ** (Y - 1)", numbers), "3 * (-2) ** (3 - 1)");
  assert.equal(substituted("X", numbers), "-2");
  assert.equal(substituted("cos(X)", numbers), "cos(-2)");
});

test("half precision is read and written exactly, ties to even", async () => {
  const { decoded, tensorOf, bytesOf } = await load("tensors");
  const [FLOAT16, BFLOAT16] = [10, 16];
  for (const x of [0, 1, -2, 0.5, 65504, 2 ** -24, 2 ** -14, 3 * 2 ** -24, Infinity, -Infinity]) {
    assert.equal(decoded(FLOAT16, bytesOf(tensorOf(FLOAT16, [1], [x])))[0], x);
  }
  assert.equal(decoded(FLOAT16, bytesOf(tensorOf(FLOAT16, [1], [2049])))[0], 2048);
  for (const x of [1, -2.5, 2 ** 100, Infinity]) {
    assert.equal(decoded(BFLOAT16, bytesOf(tensorOf(BFLOAT16, [1], [x])))[0], x);
  }
});

test("an address brings back what it was made of", async () => {
  const { readFragment, writeFragment } = await load("url");
  const shared = {
    expression: "a=b & c#+ü",
    graph: undefined,
    output: "f&g",
    at: 3,
    settings: new Map([
      ["w=0", [1.5]],
      ["x&y", [-1, NaN, Infinity]],
    ]),
  };
  assert.deepEqual(readFragment(writeFragment(shared)), shared);
  assert.equal(readFragment("#graph=../../etc").graph, undefined);
  assert.equal(readFragment("#set=x=oops").settings.size, 0);
});

test("levels lay out circuits, and survive the cycles that closed groups make", async () => {
  const { levelLayout } = await load("levels");
  const request = {
    sizes: Float64Array.from({ length: 8 }, () => 40),
    wires: Uint32Array.of(0, 1, 1, 2, 2, 1, 2, 3),
  };
  const { centres, paths } = levelLayout(request);
  assert.ok(centres[0] < centres[2] && centres[2] < centres[6]);
  assert.equal(paths.length, 4);
  assert.ok(centres.every(Number.isFinite));
});

test("options of a model are lines of the command line", async () => {
  const { queryOf } = await load("options");
  assert.equal(queryOf(""), "");
  assert.equal(
    queryOf(" --size batch=4\n\nat x=[1, -2]\n--fix n=3 "),
    "&size=batch%3D4&at=x%3D%5B1%2C%20-2%5D&fix=n%3D3",
  );
  assert.throws(() => queryOf("--set x=1"), /write --size, --at or --fix, not --set x=1/);
});
