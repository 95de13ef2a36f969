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

const FLOAT64 = 11;

/** A circuit of scalars: leaves by name, then nodes as [operator, ids ...], then an output. */
async function circuitOf({ inputs = [], parameters = {}, constants = [], nodes, names = {} }) {
  const [{ create, toBinary }, graphs, { tensorOf }, { Circuit }] = await Promise.all([
    vite.ssrLoadModule("@bufbuild/protobuf"),
    load("gen/gradwire/v1/graph_pb"),
    load("tensors"),
    load("circuit"),
  ]);
  const leaf = (name, x) => ({
    name,
    type: { dataType: FLOAT64 },
    value: x === undefined ? undefined : tensorOf(FLOAT64, [], [x]),
  });
  const count = inputs.length + Object.keys(parameters).length + constants.length;
  const gates = nodes.map(([operator, ...ids]) => ({
    target: { case: "operator", value: operator },
    inputCount: ids.length,
    outputCount: 1,
  }));
  const circuit = {
    inputs: inputs.map((name) => leaf(name)),
    parameters: Object.entries(parameters).map(([name, x]) => leaf(name, x)),
    constants: constants.map((x) => leaf("", x)),
    nodeGates: nodes.map((_, i) => i),
    nodeInputs: nodes.flatMap(([, ...ids]) => ids),
    outputs: [{ name: "f", valueIds: [count + nodes.length] }],
    namedIds: Object.keys(names).map(Number),
    names: Object.values(names),
  };
  return new Circuit(toBinary(graphs.GraphSchema, create(graphs.GraphSchema, { gates, circuit })));
}

async function sceneOf(circuit, closed = []) {
  const [{ Groups }, { buildScene }] = await Promise.all([load("groups"), load("scene")]);
  const groups = new Groups(circuit);
  return buildScene(circuit, groups, new Set(closed), () => []);
}

/** tanh(... tanh(x * w) * w ...): the parameters of a chain, in turn. */
function chain(nodes, parameters) {
  const first = 2 + parameters; // of the values that nodes yield
  const rows = Array.from({ length: nodes }, (_, i) => {
    const before = i ? first + i - 1 : 1;
    return i % 2 ? ["Tanh", before] : ["Mul", before, 2 + ((i / 2) % parameters)];
  });
  const leaves = Array.from({ length: parameters }, (_, i) => [`w${i}`, 0.5]);
  return circuitOf({ inputs: ["x"], parameters: Object.fromEntries(leaves), nodes: rows });
}

async function crossed({ items, wires }) {
  const { crossedColumns } = await load("levels");
  return crossedColumns(
    items.length,
    Uint32Array.from(wires.flatMap(({ from, to }) => [from, to])),
  );
}

test("each of many parameters stands beside its gate", async () => {
  const scene = await sceneOf(await chain(600, 300));
  assert.equal(scene.items.filter(({ kind }) => kind === "parameter").length, 300);
  assert.ok(scene.items.every(({ bundle }) => !bundle));
  assert.equal(await crossed(scene), 0);
});

test("a parameter that a long chain shares is drawn at each use, and once in a short one", async () => {
  const long = await sceneOf(await chain(600, 1));
  assert.equal(long.items.filter(({ text }) => text === "w0").length, 300);
  assert.equal(await crossed(long), 0);
  const [, second] = long.wires.filter(({ from }) => long.items[from].text === "w0");
  assert.equal(long.itemOfValue(2, second.to), second.from, "the one beside the gate");
  assert.notEqual(long.itemOfValue(2), second.from);
  const short = await sceneOf(await chain(12, 1));
  assert.equal(short.items.filter(({ text }) => text === "w0").length, 1);
});

test("a constant is drawn at each use, as the command line does", async () => {
  const nodes = Array.from({ length: 24 }, (_, i) => ["Max", i ? i + 2 : 1, 2]);
  const scene = await sceneOf(await circuitOf({ inputs: ["x"], constants: [0.5], nodes }));
  assert.equal(scene.items.filter(({ kind }) => kind === "constant").length, 24);
  assert.equal(await crossed(scene), 0);
});

test("many leaves of one gate are drawn as one item", async () => {
  const inputs = Array.from({ length: 40 }, (_, i) => `x${i}`);
  const nodes = [["Sum", ...inputs.map((_, i) => i + 1)]];
  const { items, wires } = await sceneOf(await circuitOf({ inputs, nodes }));
  assert.deepEqual(
    items.map(({ text }) => text),
    ["40 inputs", "+", "f"],
  );
  assert.equal(wires.length, 2);
});

test("a closed group has its constants inside, and the parameters that begin with its path", async () => {
  const circuit = await circuitOf({
    inputs: ["x"],
    parameters: { "layer/w": 2, b: 1 },
    constants: [3],
    nodes: [
      ["Mul", 1, 2],
      ["Max", 5, 4],
      ["Add", 6, 3],
    ],
    names: { 5: "layer/scores", 6: "layer/most", 7: "layer/sum" },
  });
  const texts = ({ items }) => items.map(({ text }) => text);
  assert.deepEqual(texts(await sceneOf(circuit, [0])), ["x", "b", "layer", "f"]);
  assert.ok(texts(await sceneOf(circuit)).includes("layer/w"));
});

test("no wire leads from a constant outside of a closed group into it", async () => {
  const circuit = await circuitOf({
    inputs: ["x"],
    constants: [3],
    nodes: [
      ["Max", 1, 2],
      ["Max", 3, 2],
    ],
    names: { 3: "layer/most" },
  });
  const { items, wires } = await sceneOf(circuit, [0]);
  const named = wires.map(({ from, to }) => [items[from].text, items[to].text]);
  assert.deepEqual(named, [
    ["x", "layer"],
    ["layer", "max"],
    ["3", "max"],
    ["max", "f"],
  ]);
});

test("norms and means of large and small numbers neither overflow nor vanish", async () => {
  const { readingOfTensor } = await load("readings");
  const { tensorOf } = await load("tensors");
  const figures = (numbers) =>
    readingOfTensor(tensorOf(FLOAT64, [numbers.length], numbers)).figures;
  const close = (x, y) => assert.ok(Math.abs(x / y - 1) < 1e-12, `${x} is not ${y}`);
  close(figures([3e200, 4e200]).norm, 5e200);
  close(figures([3e-200, 4e-200]).norm, 5e-200);
  close(figures([1.5e308, 1.7e308]).mean, 1.6e308);
  assert.equal(figures([1, -Infinity]).norm, Infinity);
  assert.equal(figures([0, 0]).norm, 0);
  close(figures([3, NaN, 4]).norm, 5);
});

test("a value without a name is called by its formula, where that is short", async () => {
  const { titleOf } = await load("expression");
  const circuit = await circuitOf({
    inputs: ["w", "x", "b"],
    constants: [-2],
    nodes: [
      ["Mul", 1, 2],
      ["Add", 5, 3],
      ["Sigmoid", 6],
      ["Sub", 7, 6],
      ["Pow", 8, 4],
      ["Div", 7, 5],
      ["Neg", 10],
      ["Mul", 9, 9],
    ],
    names: { 8: "slack" },
  });
  const titles = [5, 6, 7, 8, 9, 10, 11].map((id) => titleOf(circuit, id));
  assert.deepEqual(titles, [
    "w*x",
    "w*x + b",
    "sigmoid(w*x + b)",
    "slack",
    "slack**(-2)",
    "sigmoid(w*x + b)/(w*x)",
    "-(sigmoid(w*x + b)/(w*x))",
  ]);
  const long = await chain(20, 1);
  assert.equal(titleOf(long, 20), "%20");
});

test("made-up numbers of scalars differ, however many there are", async () => {
  const { Point } = await load("point");
  const inputs = Array.from({ length: 25 }, (_, i) => `x${i}`);
  const circuit = await circuitOf({ inputs, nodes: [["Sum", 1, 2]] });
  const point = new Point(circuit, new Map([["x1", [7]]]));
  const numbers = point.leaves.map(({ elements }) => elements[0]);
  assert.deepEqual(numbers.slice(0, 4), [-2, 7, 5, -4], "one that was set takes no number");
  assert.equal(new Set(numbers).size, 25);
  const back = point.withoutSigns();
  assert.ok(point.leaves.every(({ elements: [x] }) => x > 0));
  back();
  assert.deepEqual(
    point.leaves.map(({ elements }) => elements[0]),
    numbers,
  );
});

test("a gradient of exactly 0 hands on 0, whatever the local gradient is", async () => {
  const { handedBack } = await load("shares");
  assert.equal(handedBack(0, Infinity), 0);
  assert.equal(handedBack(0, NaN), 0);
  assert.equal(handedBack(2, -3), -6);
});

test("a number of a variadic gate's input stands in its own gradient", async () => {
  const { partialOf } = await load("formula");
  assert.equal(partialOf("d out/d data_i = [data_i = out]", "data_2"), "[data_2 = out]");
});

/** Workers that answer when the test says so; `Layouts` starts one at once. */
function withWorkers() {
  const started = [];
  globalThis.Worker = class {
    constructor() {
      this.requests = [];
      started.push(this);
    }
    postMessage(request) {
      this.requests.push(request);
    }
    terminate() {
      this.ended = true;
    }
    answer() {
      const { sizes } = this.requests.at(-1);
      const data = { centres: new Float64Array(sizes.length), paths: [], boxes: [], height: 0 };
      this.onmessage?.({ data: { ...data, width: sizes.length / 2 } });
    }
  };
  return started;
}

const blank = (count) => ({
  items: Array.from({ length: count }, () => ({
    width: 1,
    stub: 0,
    height: 1,
    group: -1,
    inside: -1,
  })),
  wires: [],
  open: [],
});

test("a newer layout gets its own answer at once, and the one before gets none", async () => {
  const started = withWorkers();
  const layouts = new (await load("layout")).Layouts();
  const [first, second] = [3, 7].map((count) => layouts.of(blank(count), { all: [] }, false));
  assert.ok(started[0].ended);
  started[0].answer(); // too late
  started[1].answer();
  assert.equal(await first, undefined);
  assert.equal((await second).width, 7);
  const third = layouts.of(blank(5), { all: [] }, false);
  started[1].answer();
  assert.equal((await third).width, 5);
  assert.equal(started.length, 2, "a worker that has answered is asked again");
});

test("a layout that fails is said at once, and plain columns stand in", async () => {
  const started = withWorkers();
  const layouts = new (await load("layout")).Layouts();
  const failing = layouts.of(blank(3), { all: [] }, false);
  started[0].onmessage({ data: { failure: "memory access out of bounds" } });
  await Promise.resolve();
  started[1].answer();
  const { plainBecause, width } = await failing;
  assert.equal(plainBecause, "Graphviz failed: memory access out of bounds");
  assert.equal(width, 3);
});

test("without a worker the page lays out by itself", async () => {
  globalThis.Worker = class {
    constructor() {
      throw new Error("forbidden");
    }
  };
  const layouts = new (await load("layout")).Layouts();
  const { centres, plainBecause } = await layouts.of(blank(3), { all: [] }, false);
  assert.equal(centres.length, 6);
  assert.match(plainBecause, /starts no worker/);
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
