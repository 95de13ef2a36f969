/** Wires the page's controls to the circuit that it shows. */

import { App } from "./app";
import { captionOf, itemSentence } from "./caption";
import { Circuit } from "./circuit";
import { detailsOf } from "./details";
import { byId, h } from "./dom";
import { download, svgFile } from "./export";
import { firstBad, matches } from "./insights";
import { inputRows } from "./inputs";
import { KEYS, press, type Commands } from "./keys";
import { openModel } from "./model";
import {
  describe,
  Failure,
  failureOf,
  openFile,
  parseExpression,
  savedGraph,
  savedGraphs,
  saveGraph,
} from "./server";
import { GATE_BY_GATE, ONE_GATE, SETTINGS, Tour } from "./tour";
import { bytesOfHex, hexOf, readFragment, writeFragment, type Shared } from "./url";

const stage = byId("stage");
const app = new App(stage, {
  loaded: () => {
    drawInputs();
    drawTools();
  },
  changed: () => drawNumbers(),
  failure: (failure) => report("evaluation", failure),
  connected: (yes, refused) => {
    const connection = byId("connection");
    const lost = refused ? "not live" : "the server is away; trying again";
    connection.textContent = yes ? "connected, live" : lost;
    connection.classList.toggle("lost", !yes);
    if (yes) forgetAway();
    if (yes && !app.catalogue) bringCatalogue();
  },
});

const TITLE = document.title;
/** What the address says is shown; a file has no address. */
let shown: Pick<Shared, "expression" | "graph"> = {};
let fileName = "";
let loads = 0;

// what went wrong: each cause has one sentence, which goes when the cause goes

type Cause = "expression" | "opening" | "evaluation" | "catalogue" | "sharing";

const failures = new Map<Cause, Failure>();

function report(cause: Cause, failure: Failure | undefined): void {
  if (failure) failures.set(cause, failure);
  else failures.delete(cause);
  say("expression-error", failures.get("expression")?.message);
  const others = [...failures].filter(([each]) => each !== "expression");
  const texts = new Set(others.map(([, { message }]) => message));
  say("failure-text", [...texts].join("\n"));
  byId("failure").hidden = texts.size === 0;
}

/** The server answers again. */
function forgetAway(): void {
  for (const [cause, { away }] of [...failures]) if (away) report(cause, undefined);
}

// loading

async function openFragment(fragment: string): Promise<void> {
  const shared = readFragment(fragment);
  if (shared.graph) return openSaved(shared.graph, shared);
  if (shared.expression !== undefined) return openExpression(shared.expression, shared);
  return openExpression(ONE_GATE, { ...shared, settings: SETTINGS });
}

async function openExpression(text: string, shared: Shared): Promise<void> {
  byId<HTMLInputElement>("expression").value = text;
  await load(() => parseExpression(text), { ...shared, expression: text, graph: undefined }, text);
}

async function openSaved(graph: string, shared: Shared): Promise<void> {
  const name = savedNames.get(graph) ?? `saved graph ${graph.slice(0, 12)}`;
  const bring = () => savedGraph(bytesOfHex(graph));
  await load(bring, { ...shared, graph, expression: undefined }, undefined, name);
}

async function load(
  bring: () => Promise<Uint8Array>,
  shared: Shared,
  expression?: string,
  file = "",
): Promise<void> {
  const call = ++loads;
  for (const cause of ["expression", "opening", "sharing"] as const) report(cause, undefined);
  try {
    const circuit = new Circuit(await bring()); // a graph that cannot be drawn leaves all as it is
    if (call !== loads) return;
    [shown, fileName] = [{ expression: shared.expression, graph: shared.graph }, file];
    if (expression === undefined) byId<HTMLInputElement>("expression").value = "";
    say("source", file);
    document.title = file ? `${file}: Gradwire` : TITLE;
    await app.load(circuit, shared);
    if (call === loads) selectFirst();
  } catch (error) {
    if (call !== loads) return;
    const failure = failureOf(error);
    if (expression === undefined) report("opening", failure);
    else showMistake(failure);
  }
}

/** A newcomer sees the details of a gate at once: of a sigmoid, if there is one. */
function selectFirst(): void {
  const { circuit, scene } = app;
  if (!circuit || !scene || app.state.selected >= 0) return;
  const gates = scene.items.filter(({ kind }) => kind === "gate");
  const sigmoid = gates.find(({ node }) => circuit.operatorOf(node) === "Sigmoid");
  const chosen = sigmoid ?? gates.at(-1);
  if (chosen) app.select(chosen.index, false);
}

/** The sentence has the line and a mark below the column; the cursor goes there too. */
function showMistake(failure: Failure): void {
  report("expression", failure);
  const input = byId<HTMLInputElement>("expression");
  const column = Number(failure.facts.column);
  if (column) input.setSelectionRange(column - 1, column);
  input.focus();
}

function say(id: string, text: string | undefined): void {
  const element = byId(id);
  element.hidden = !text;
  element.textContent = text ?? "";
}

function announce(text: string): void {
  byId("status").textContent = text;
}

/** Formulas and gradients of gates, for the details. */
function bringCatalogue(): void {
  void describe().then(
    (catalogue) => {
      app.catalogue = catalogue;
      report("catalogue", undefined);
      app.refreshSoon();
    },
    (error) => report("catalogue", failureOf(error)),
  );
}

// panels

const ADDRESS_WAIT = 300; // milliseconds: browsers let the address change so often only
let addressTimer = 0;

function drawInputs(): void {
  const change = (place: number) => {
    app.changeLeaf(place);
    clearTimeout(addressTimer);
    addressTimer = window.setTimeout(rememberAddress, ADDRESS_WAIT);
  };
  byId("inputs").replaceChildren(...inputRows(app.point, change));
  const names = app.circuit!.outputs.map(({ name }) => name);
  byId("output-choice").hidden = names.length < 2;
  const choice = byId<HTMLSelectElement>("output");
  choice.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  choice.value = app.point.output;
}

function drawTools(): void {
  const { circuit, groups, layout } = app;
  byId("group-tools").hidden = groups.all.length === 0;
  const milliseconds = Math.round(layout?.milliseconds ?? 0);
  const plain = layout?.plainBecause ? ` in plain columns (${layout.plainBecause})` : "";
  byId("facts").textContent =
    `${circuit!.nodeCount} ${circuit!.nodeCount === 1 ? "node" : "nodes"}, ` +
    `laid out in ${milliseconds} ms${plain}` +
    (groups.summarized ? "; a summary: open a group to see its nodes" : "");
  byId<HTMLInputElement>("position").max = String(app.playback.end);
  stage.dataset.layoutMilliseconds = String(milliseconds);
  rememberAddress();
}

function drawNumbers(): void {
  const { playback } = app;
  if (!app.scene) return;
  const play = byId("play");
  play.classList.toggle("playing", playback.playing);
  play.setAttribute("aria-label", playback.playing ? "Pause" : "Play");
  const position = byId<HTMLInputElement>("position");
  position.value = String(Math.floor(playback.position));
  position.setAttribute("aria-valuetext", captionOf(app));
  byId("caption").textContent = captionOf(app);
  byId("locals").setAttribute("aria-pressed", String(app.showsLocals));
  byId("path").setAttribute("aria-pressed", String(app.showsPath));
  byId("legend-local").hidden = !app.showsLocals;
  drawDetails();
}

let detailed = "";

/** Only where something that it says has changed: a focused link stays focused. */
function drawDetails(): void {
  const content = detailsOf(app);
  if (content.outerHTML === detailed) return;
  detailed = content.outerHTML;
  byId("details").replaceChildren(content);
  announce(itemSentence(app));
}

// tools

let found: number[] = [];
let foundAt = -1;

function searchNext(): void {
  const text = byId<HTMLInputElement>("search").value;
  if (!app.circuit) return;
  found = matches(app.circuit, text);
  foundAt = found.length ? (foundAt + 1) % found.length : -1;
  if (foundAt < 0) announce(text ? `nothing is called ${text}` : "");
  else
    void app
      .jump(found[foundAt])
      .then(() => announce(`${foundAt + 1} of ${found.length}: ${itemSentence(app)}`));
}

const commands: Commands = {
  search: () => byId("search").focus(),
  firstBad: () => {
    const { circuit, state } = app;
    const bad = circuit && firstBad(circuit, state.values, state.gradients);
    if (!bad) announce("no value and no gradient is NaN");
    else
      void app
        .jump(bad.id)
        .then(() => announce(`the first NaN is the ${bad.kind} of ${circuit.labelOf(bad.id)}`));
  },
  listKeys: () => byId<HTMLDialogElement>("keys").showModal(),
  toggleLocals: () => void app.toggleLocals(),
  togglePath: () => app.togglePath(),
};

/** Names of saved graphs by digest, as far as they were listed. */
const savedNames = new Map<string, string>();

async function listSaved(): Promise<void> {
  const dialog = byId<HTMLDialogElement>("saved");
  const list = byId("saved-list");
  list.replaceChildren(h("p", { class: "muted" }, "…"));
  dialog.showModal();
  try {
    const graphs = await savedGraphs();
    list.replaceChildren(
      ...graphs.map(({ digest, name, size }) => {
        const hex = hexOf(digest);
        if (name) savedNames.set(hex, name);
        const open = () => {
          dialog.close();
          location.hash = writeFragment({ graph: hex, settings: new Map() });
        };
        return h(
          "button",
          { type: "button", click: open },
          name ? `${name} ` : "",
          h("span", { class: "muted mono" }, `${hex.slice(0, 12)}, ${size} bytes`),
        );
      }),
    );
    if (!graphs.length)
      list.replaceChildren(h("p", {}, "None yet: gradwire save FILE --name NAME --server ADDRESS"));
  } catch (error) {
    list.replaceChildren(h("p", {}, failureOf(error).message));
  }
}

/** The address of what is shown; a file is saved on the server first. */
async function share(): Promise<void> {
  try {
    if (shown.expression === undefined && !shown.graph && app.circuit) {
      shown = { graph: hexOf(await saveGraph(app.circuit.bytes)) };
    }
    report("sharing", undefined);
    rememberAddress(true);
    await navigator.clipboard?.writeText(location.href);
    announce("the link is in the address bar, and copied");
  } catch (error) {
    if (error instanceof DOMException) announce("the link is in the address bar");
    else report("sharing", failureOf(error));
  }
}

/** The step stays in an address that has one, as after sharing: it may be on its way to somebody. */
function rememberAddress(withPosition = readFragment(location.hash).at !== undefined): void {
  const { point, playback, circuit } = app;
  if (!circuit || (shown.expression === undefined && !shown.graph)) {
    history.replaceState(null, "", location.pathname);
    return;
  }
  const at =
    withPosition && playback.position < playback.end ? Math.floor(playback.position) : undefined;
  const output = circuit.outputs.length > 1 ? point.output : undefined;
  history.replaceState(null, "", writeFragment({ ...shown, settings: point.settings, output, at }));
}

function openLocalFile(file: File | undefined): void {
  if (!file) return;
  const bring = () => openModel((options) => openFile(file.name, file, options));
  void load(bring, { settings: new Map() }, undefined, file.name);
}

const THEMES = ["", "light", "dark"];

function setTheme(theme: string): void {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  byId("theme").title = `Theme: ${theme || "as the system's"}`;
  app.renderer?.recolour();
}

// controls

byId("expression-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId<HTMLInputElement>("expression").value;
  const settings =
    text === ONE_GATE || text === GATE_BY_GATE ? SETTINGS : new Map<string, number[]>();
  const before = app.circuit && shown.expression !== undefined ? app.point.settings : settings;
  void openExpression(text, { settings: new Map([...settings, ...before]) });
});
byId("expression").addEventListener("input", () => report("expression", undefined));
byId("failure-close").addEventListener("click", () => {
  for (const cause of [...failures.keys()]) if (cause !== "expression") report(cause, undefined);
});
byId("open-file").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => {
  const input = event.target as HTMLInputElement;
  openLocalFile(input.files?.[0]);
  input.value = "";
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").hidden = false;
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").hidden = true;
  openLocalFile(event.dataTransfer?.files[0]);
});
byId("open-saved").addEventListener("click", () => void listSaved());
byId("share").addEventListener("click", () => void share());
byId("export").addEventListener("click", () => {
  if (app.scene) download(`${fileName.replace(/\.\w+$/, "") || "circuit"}.svg`, svgFile(app));
});
byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  setTheme(next);
  localStorage.setItem("theme", next);
});
byId("locals").addEventListener("click", commands.toggleLocals);
byId("path").addEventListener("click", commands.togglePath);
byId("nan").addEventListener("click", commands.firstBad);
byId("open-groups").addEventListener("click", () => void app.setAllGroups(false));
byId("close-groups").addEventListener("click", () => void app.setAllGroups(true));
byId("zoom-in").addEventListener("click", () => app.view.zoom(1.25));
byId("zoom-out").addEventListener("click", () => app.view.zoom(0.8));
byId("fit").addEventListener("click", () => app.fit());
byId("search").addEventListener("input", () => (foundAt = -1));
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") searchNext();
  if (event.key === "Escape") stage.focus();
});
byId("first").addEventListener("click", () => app.moveTo(0));
byId("back").addEventListener("click", () => app.stepBy(-1));
byId("play").addEventListener("click", () => (app.playback.playing ? app.pause() : app.play()));
byId("forward").addEventListener("click", () => app.stepBy(1));
byId("last").addEventListener("click", () => app.moveTo(app.playback.end));
byId("position").addEventListener("input", (event) =>
  app.moveTo(Number((event.target as HTMLInputElement).value)),
);
byId("speed").addEventListener("change", (event) => {
  app.playback.speed = Number((event.target as HTMLSelectElement).value);
});
byId("output").addEventListener("change", (event) => {
  void app.chooseOutput((event.target as HTMLSelectElement).value).then(() => rememberAddress());
});
stage.addEventListener("keydown", (event) => {
  if (event.target === stage && press(event, app, commands)) event.preventDefault();
});
stage.addEventListener("pointerdown", () => stage.focus({ preventScroll: true }));
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target instanceof HTMLInputElement) return;
  event.preventDefault();
  commands.search();
});
window.addEventListener("hashchange", () => void openFragment(location.hash));
byId("key-list").append(
  ...KEYS.filter(({ says }) => says !== "pan").flatMap(({ keys, says }) => [
    h("dt", { class: "mono" }, keys[0] === " " ? "space" : keys[0].replace("Arrow", "")),
    h("dd", {}, says),
  ]),
  h("dt", { class: "mono" }, "Shift + arrows"),
  h("dd", {}, "pan"),
);
const tour = new Tour(app, openFragment);
byId("start-tour").addEventListener("click", () => void tour.start());

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  app.renderer?.recolour(),
);
setTheme(localStorage.getItem("theme") ?? "");
void openFragment(location.hash);
bringCatalogue();
