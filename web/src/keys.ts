/** Keys on the circuit: one table, which is also what the page lists. */

import type { App } from "./app";
import type { Item } from "./scene";

export interface Commands {
  search(): void;
  firstBad(): void;
  listKeys(): void;
  toggleLocals(): void;
  togglePath(): void;
}

interface Key {
  keys: string[];
  shift?: boolean;
  says: string;
  does(app: App, commands: Commands): void;
}

const [ZOOM, PAN] = [1.25, 80];

export const KEYS: readonly Key[] = [
  { keys: ["ArrowRight"], says: "along the wire, forward", does: (app) => along(app, true) },
  { keys: ["ArrowLeft"], says: "along the wire, back", does: (app) => along(app, false) },
  { keys: ["ArrowUp"], says: "to the item above", does: (app) => aside(app, -1) },
  { keys: ["ArrowDown"], says: "to the item below", does: (app) => aside(app, 1) },
  { keys: ["ArrowRight"], shift: true, says: "pan", does: (app) => app.view.pan(-PAN, 0) },
  { keys: ["ArrowLeft"], shift: true, says: "pan", does: (app) => app.view.pan(PAN, 0) },
  { keys: ["ArrowUp"], shift: true, says: "pan", does: (app) => app.view.pan(0, PAN) },
  { keys: ["ArrowDown"], shift: true, says: "pan", does: (app) => app.view.pan(0, -PAN) },
  { keys: ["+", "="], says: "larger", does: (app) => app.view.zoom(ZOOM) },
  { keys: ["-", "_"], says: "smaller", does: (app) => app.view.zoom(1 / ZOOM) },
  { keys: ["0"], says: "all of it", does: (app) => app.fit() },
  {
    keys: [" "],
    says: "play or pause",
    does: (app) => (app.playback.playing ? app.pause() : app.play()),
  },
  { keys: ["."], says: "step", does: (app) => app.stepBy(1) },
  { keys: [","], says: "step back", does: (app) => app.stepBy(-1) },
  { keys: ["Home"], says: "to the beginning", does: (app) => app.moveTo(0) },
  { keys: ["End"], says: "to the end", does: (app) => app.moveTo(app.playback.end) },
  {
    keys: ["Enter"],
    says: "open a module, or close the one around",
    does: (app) => openOrClose(app),
  },
  { keys: ["Escape"], says: "choose nothing", does: (app) => app.select(-1) },
  { keys: ["l", "L"], says: "local gradients", does: (_, commands) => commands.toggleLocals() },
  {
    keys: ["p", "P"],
    says: "path of the largest gradient",
    does: (_, commands) => commands.togglePath(),
  },
  { keys: ["n", "N"], says: "first NaN", does: (_, commands) => commands.firstBad() },
  { keys: ["/"], says: "find a node", does: (_, commands) => commands.search() },
  { keys: ["?"], says: "these keys", does: (_, commands) => commands.listKeys() },
];

/** True where the key meant something. */
export function press(event: KeyboardEvent, app: App, commands: Commands): boolean {
  if (event.ctrlKey || event.metaKey || event.altKey || !app.scene) return false;
  const arrow = event.key.startsWith("Arrow");
  const found = KEYS.find(
    ({ keys, shift }) => keys.includes(event.key) && (!arrow || Boolean(shift) === event.shiftKey),
  );
  found?.does(app, commands);
  return found !== undefined;
}

function along(app: App, forward: boolean): void {
  const at = app.state.selected;
  const { items, wires } = app.scene!;
  if (at < 0) {
    app.select(forward ? 0 : items.length - 1);
    return;
  }
  const wire = wires.find(({ from, to }) => (forward ? from : to) === at);
  if (wire) app.select(forward ? wire.to : wire.from);
}

/** The nearest item above or below; what stands in the same column is nearer. */
function aside(app: App, direction: 1 | -1): void {
  const { centres } = app.layout!;
  const at = Math.max(0, app.state.selected);
  const distance = ({ index }: Item) => {
    const [dx, dy] = [
      centres[2 * index] - centres[2 * at],
      centres[2 * index + 1] - centres[2 * at + 1],
    ];
    return dy * direction > 4 ? Math.abs(dy) + 2 * Math.abs(dx) : Infinity;
  };
  const best = app.scene!.items.reduce((a, b) => (distance(b) < distance(a) ? b : a));
  if (distance(best) < Infinity) app.select(best.index);
}

function openOrClose(app: App): void {
  const item = app.selectedItem;
  if (item?.kind === "group") void app.toggleGroup(item.group);
  else if (item && item.inside >= 0) void app.toggleGroup(item.inside);
}
