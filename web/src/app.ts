/** One circuit on the page: loaded, evaluated, drawn, played, changed. */

import { CanvasPicture } from "./canvas";
import type { Circuit } from "./circuit";
import { State } from "./state";
import { Detail, type Binding, type Result } from "./gen/gradwire/v1/service_pb";
import { Groups } from "./groups";
import { largestPath } from "./insights";
import { Layouts, type Layout } from "./layout";
import { Locals, MOST_NODES } from "./locals";
import { Picture, type Renderer } from "./picture";
import { Playback, type Step } from "./playback";
import { Point } from "./point";
import { readingOfTensor, Readings, type Reading } from "./readings";
import { buildScene, type Item, type Scene } from "./scene";
import { evaluate, evaluateStream, failureOf, type Catalogue, type Failure } from "./server";
import { Session } from "./session";
import { sizeOf } from "./tensors";
import type { Shared } from "./url";
import { View, type Rectangle } from "./view";

const SVG_ITEMS = 400; // more take a browser without a graphics card over 50 ms to paint again
const OPEN_BELOW = 160; // nodes: a small circuit shows the inside of its groups
const ALL_LOCALS_BELOW = 60; // nodes: their local gradients are always at hand
const FOLLOWED = 5; // steps a second that one can follow
const FULL_BELOW = 65_536; // elements that are sent whole; figures stand for tensors of more

export interface Listener {
  /** Another circuit, or other groups are open: inputs and tools are drawn again. */
  loaded(): void;
  /** Numbers, the selection or the position changed. */
  changed(): void;
  /** What is wrong with the evaluation; undefined where nothing is any more. */
  failure(failure: Failure | undefined): void;
  connected(yes: boolean, refused: boolean): void;
}

export class App {
  circuit: Circuit | undefined;
  catalogue: Catalogue | undefined;
  groups!: Groups;
  closed = new Set<number>();
  point!: Point;
  state!: State;
  playback!: Playback;
  scene: Scene | undefined;
  layout: Layout | undefined;
  renderer: Renderer | undefined;
  readonly locals = new Locals(
    () =>
      this.circuit && {
        circuit: this.circuit,
        state: this.state,
        nodes: this.localNodes,
        catalogue: this.catalogue,
        fetch: this.fetchSome,
      },
    () => this.localsFound(),
  );
  showsLocals = false;
  showsPath = false;
  /** Elements of all values; those of large circuits come as figures. */
  private detail = Detail.UNSPECIFIED;
  private outputs = new Map<string, Reading>();
  private session: Session | undefined;
  private stopped = new AbortController();
  /** A change that came before there was a session. */
  private changedBefore: Binding | undefined;
  private streaming = false;
  /** The stream did not bring its numbers. */
  private behind = false;
  private frame = 0;
  private readonly layouts = new Layouts();
  readonly view: View;

  constructor(
    private readonly stage: HTMLElement,
    private readonly listener: Listener,
  ) {
    this.view = new View(
      stage,
      () => this.look(),
      (event) => this.click(event),
    );
    new ResizeObserver(() => this.resized()).observe(stage);
  }

  /** Shows a circuit in the place of the one before. */
  async load(circuit: Circuit, shared: Shared): Promise<void> {
    this.leave();
    [this.circuit, this.scene, this.renderer] = [circuit, undefined, undefined];
    this.groups = new Groups(circuit);
    const open = circuit.nodeCount <= OPEN_BELOW && !this.groups.summarized;
    const shut = this.groups.all.filter(({ ownGradient }) => !open || ownGradient);
    this.closed = new Set(shut.map(({ id }) => id));
    this.point = new Point(circuit, shared.settings);
    if (circuit.outputs.some(({ name }) => name === shared.output))
      this.point.output = shared.output!;
    this.playback = new Playback(circuit);
    this.state = new State(
      circuit,
      this.playback,
      new Readings(circuit.valueCount),
      new Readings(circuit.valueCount),
    );
    this.playback.moveTo(shared.at ?? this.playback.end);
    this.locals.clear();
    this.showsPath = false;
    const { signal } = this.stopped;
    await this.survey(signal);
    if (!signal.aborted) await this.draw();
    if (!signal.aborted) await this.stream(signal);
    if (!signal.aborted) this.openSession();
  }

  private leave(): void {
    this.changedBefore = undefined;
    this.stopped.abort();
    this.stopped = new AbortController();
    this.session?.close();
    this.session = undefined;
  }

  /** Shapes, which sizes of labels and seeds depend on. */
  private async survey(signal: AbortSignal): Promise<void> {
    const { circuit, state } = this;
    let [values, outputs] = [new Readings(circuit!.valueCount), new Map<string, Reading>()];
    let failed: Failure | undefined;
    try {
      ({ values, outputs } = await this.surveyed(signal));
      const signed = values.anyBad() ? this.point.withoutSigns() : undefined;
      const positive = signed && (await this.surveyed(signal));
      if (positive?.values.anyBad()) signed!();
      else if (positive) ({ values, outputs } = positive);
    } catch (error) {
      failed = failureOf(error);
    }
    if (signal.aborted) return;
    let size = 0;
    for (let id = 1; id <= circuit!.valueCount; id++) size += sizeOf(values.shapeOf(id));
    this.detail = size <= FULL_BELOW ? Detail.UNSPECIFIED : Detail.SUMMARY;
    [this.state.values, this.outputs, state.output] = [values, outputs, this.point.output];
    this.listener.failure(failed);
  }

  private async surveyed(signal: AbortSignal) {
    const { bytes, valueCount } = this.circuit!;
    const [values, outputs] = [new Readings(valueCount), new Map<string, Reading>()];
    const result = await evaluate(bytes, this.point.survey(), signal);
    result.nodeValues.forEach((column) => values.add(column));
    for (const { name, tensor } of result.outputs) {
      if (tensor) outputs.set(name, readingOfTensor(tensor));
    }
    return { values, outputs };
  }

  /** Values and gradients as they come. */
  private async stream(signal: AbortSignal): Promise<void> {
    const { circuit, state } = this;
    [state.values, state.gradients] = [
      new Readings(circuit!.valueCount),
      new Readings(circuit!.valueCount),
    ];
    this.streaming = true;
    this.behind = false;
    try {
      await evaluateStream(
        circuit!.bytes,
        this.everything(),
        {
          values: (column) => {
            state.values.add(column);
            this.refreshSoon();
          },
          gradients: (column) => {
            state.gradients.add(column);
            this.refreshSoon();
          },
        },
        signal,
      );
    } catch (error) {
      if (!signal.aborted) {
        this.behind = true;
        this.listener.failure(failureOf(error));
      }
    }
    if (signal.aborted) return;
    this.streaming = false;
    this.numbersChanged();
  }

  private everything() {
    return this.point.everything(this.detail, this.outputs);
  }

  private openSession(): void {
    this.session?.close();
    const listener = {
      result: (result: Result) => this.take(result),
      failure: (failure: Failure) => this.listener.failure(failure),
      connected: (yes: boolean, refused: boolean) => this.listener.connected(yes, refused),
    };
    const { bytes } = this.circuit!;
    this.session = new Session(bytes, () => this.everything(), listener, this.behind);
    if (this.changedBefore) this.session.step(this.changedBefore);
    this.changedBefore = undefined;
  }

  private take({ nodeValues, nodeGradients }: Result): void {
    const { valueCount } = this.circuit!;
    const [values, gradients] = [new Readings(valueCount), new Readings(valueCount)];
    nodeValues.forEach((column) => values.add(column));
    nodeGradients.forEach((column) => gradients.add(column));
    [this.state.values, this.state.gradients] = [values, gradients];
    this.listener.failure(undefined);
    this.numbersChanged();
  }

  /** A leaf has another value. */
  changeLeaf(place: number): void {
    const binding = this.point.bindingOf(place);
    if (!binding) return;
    if (this.session) this.session.step(binding);
    else this.changedBefore = binding;
  }

  /** Gradients are taken of another output. */
  async chooseOutput(name: string): Promise<void> {
    this.point.output = this.state.output = name;
    this.leave();
    const { signal } = this.stopped;
    await this.stream(signal);
    if (!signal.aborted) this.openSession();
  }

  /** Lays the circuit out anew, as its groups are open and closed. */
  async draw(keepView = false): Promise<void> {
    const { circuit, groups, closed, state, stage } = this;
    const scene = buildScene(circuit!, groups, closed, (id) => state.values.shapeOf(id));
    const layout = await this.layouts.of(scene, groups, this.showsLocals);
    if (!layout || this.circuit !== circuit) return;
    const before = this.selectedId;
    [this.scene, this.layout] = [scene, layout];
    const small = scene.items.length <= SVG_ITEMS;
    this.renderer = small
      ? new Picture(scene, layout, groups, state)
      : new CanvasPicture(scene, layout, groups, state);
    stage.querySelector(".circuit")?.remove();
    stage.prepend(this.renderer.element);
    state.selected = before === undefined ? -1 : (scene.itemOfValue(before) ?? -1);
    if (keepView) this.look();
    else this.begin(layout);
    this.listener.loaded();
    this.refresh();
  }

  /** Shows all of the circuit. */
  fit(): void {
    if (this.layout) this.view.fit(this.whole(this.layout));
  }

  private resized(): void {
    if (this.view.sight === "all") this.fit();
    else if (this.view.sight === "beginning" && this.layout) this.begin(this.layout);
    else this.look();
  }

  private begin(layout: Layout): void {
    const { centres } = layout;
    let first = 0;
    for (let i = 0; i < centres.length; i += 2) if (centres[i] < centres[first]) first = i;
    this.view.begin(this.whole(layout), centres[first + 1] ?? 0);
  }

  private whole({ width, height }: Layout): Rectangle {
    return { x: 0, y: -10, width: Math.max(width, 1), height: Math.max(height + 20, 1) };
  }

  private look(): void {
    this.renderer?.look(this.view.x, this.view.y, this.view.scale);
  }

  refreshSoon(): void {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.refresh();
    });
  }

  refresh(): void {
    this.renderer?.refresh();
    this.listener.changed();
  }

  private numbersChanged(): void {
    this.markPath();
    this.locals.want();
    this.refreshSoon();
  }

  // what is looked at

  get selectedItem(): Item | undefined {
    return this.scene?.items[this.state.selected];
  }

  get selectedId(): number | undefined {
    return this.selectedItem?.ids[0];
  }

  select(index: number, reveal = true): void {
    if (!this.scene || !this.layout) return;
    this.state.selected = index;
    if (reveal && index >= 0) {
      this.view.reveal(this.layout.centres[2 * index], this.layout.centres[2 * index + 1]);
    }
    this.locals.want();
    this.refresh();
  }

  /** Goes to a value, and opens the groups that it is in; of a leaf drawn at each use to the nearest. */
  async jump(id: number): Promise<void> {
    const node = this.circuit!.makerOf(id);
    const user = this.selectedItem?.index;
    let item = this.scene?.itemOfValue(id, user);
    const within = node < 0 && item === undefined ? this.circuit!.usesOf(id)[0]?.[0] : node;
    const around =
      within === undefined || within < 0
        ? []
        : this.groups.around(within).filter((group) => this.closed.delete(group));
    if (around.length) {
      await this.draw(true);
      item = this.scene?.itemOfValue(id);
    }
    if (item === undefined || !this.layout) return;
    this.view.reveal(this.layout.centres[2 * item], this.layout.centres[2 * item + 1], 0.8);
    this.select(item, false);
  }

  async toggleGroup(group: number): Promise<void> {
    if (!this.closed.delete(group)) this.closed.add(group);
    await this.draw();
  }

  async setAllGroups(closed: boolean): Promise<void> {
    this.closed = new Set(closed ? this.groups.all.map(({ id }) => id) : []);
    await this.draw();
  }

  private click(event: PointerEvent): void {
    if (!this.scene || !this.layout) return;
    const [x, y] = this.view.inside(event);
    const index = this.scene.items.findIndex((item) => {
      const [centreX, centreY] = [
        this.layout!.centres[2 * item.index],
        this.layout!.centres[2 * item.index + 1],
      ];
      const [wide, high] = [(item.width + item.stub) / 2, Math.max(20, item.height / 2)];
      return Math.abs(x - centreX) <= wide && Math.abs(y - centreY) <= high;
    });
    if (index >= 0) {
      this.select(index, false);
      return;
    }
    const box = this.layout.boxes.findLast(
      (each) => x >= each.x && x <= each.x + each.width && y >= each.y && y <= each.y + 22,
    );
    if (box) void this.toggleGroup(box.group);
    else this.select(-1);
  }

  togglePath(): void {
    this.showsPath = !this.showsPath;
    this.markPath();
    this.refresh();
  }

  private markPath(): void {
    const output = this.circuit!.outputs.find(({ name }) => name === this.point.output);
    this.state.path =
      this.showsPath && output
        ? largestPath(this.circuit!, this.state.gradients, output.ids)
        : new Set();
  }

  // local gradients

  async toggleLocals(): Promise<void> {
    this.showsLocals = !this.showsLocals;
    await this.draw();
    this.locals.want();
  }

  /** The chosen gate; and those that are drawn, where all of them are wanted or they are few. */
  private get localNodes(): number[] {
    const items = this.scene?.items ?? [];
    const most = this.showsLocals ? MOST_NODES : ALL_LOCALS_BELOW;
    if (this.circuit!.nodeCount <= most) {
      return items.map(({ node }) => node).filter((node) => node >= 0);
    }
    const chosen = this.selectedItem;
    if (!chosen || chosen.bundle) return [];
    const users = chosen.ids.flatMap((id) => this.circuit!.usesOf(id).map(([node]) => node));
    const few = users.length <= ALL_LOCALS_BELOW ? users : [];
    return [...new Set([chosen.node, ...few])].filter((node) => node >= 0);
  }

  private localsFound(): void {
    this.state.localGradients = this.showsLocals ? this.locals.scalars() : new Map();
    this.refreshSoon();
  }

  private readonly fetchSome = async (wantedValues: number[], wantedGradients: number[]) => {
    const { bytes, valueCount } = this.circuit!;
    const [values, gradients] = [new Readings(valueCount), new Readings(valueCount)];
    const result = await evaluate(
      bytes,
      this.point.some(wantedValues, wantedGradients, this.outputs),
    );
    result.nodeValues.forEach((column) => values.add(column));
    result.nodeGradients.forEach((column) => gradients.add(column));
    return { values, gradients };
  };

  // playing

  play(until?: number): void {
    this.playback.start(performance.now(), until);
    const tick = (now: number) => {
      if (!this.playback.playing) return;
      const before = Math.floor(this.playback.position);
      this.playback.advance(now, (step) => this.isReady(step));
      if (Math.floor(this.playback.position) !== before) {
        if (this.playback.rate < FOLLOWED) this.follow();
        this.refresh();
      } else if (!this.playback.playing) this.refresh();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.refresh();
  }

  pause(): void {
    this.playback.playing = false;
    this.playback.moveTo(Math.floor(this.playback.position));
    this.refresh();
  }

  moveTo(position: number): void {
    this.playback.playing = false;
    this.playback.moveTo(position);
    this.refresh();
  }

  stepBy(steps: number): void {
    this.playback.playing = false;
    this.playback.moveTo(Math.floor(this.playback.position) + steps);
    this.follow();
    this.refresh();
  }

  /** Chooses the gate that is at work, so that its numbers are beside it. */
  private follow(): void {
    const step = this.playback.step();
    const id = "node" in step ? this.circuit!.firstOutputOf(step.node) : undefined;
    const item = id === undefined ? undefined : this.scene?.itemOfValue(id);
    if (item !== undefined && item !== this.state.selected) this.select(item);
  }

  /** While events stream in, a step waits for its numbers. */
  private isReady(step: Step): boolean {
    if (!this.streaming) return true;
    const { circuit, state } = this;
    if (step.kind === "forward") return state.values.has(circuit!.firstOutputOf(step.node));
    if (step.kind === "seed") return state.gradients.count > 0;
    if (step.kind !== "backward") return true;
    return circuit!
      .inputsOf(step.node)
      .every((id) => !id || !state.hasGradients(id) || state.gradients.has(id));
  }
}
