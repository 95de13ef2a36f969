/** Where one looks: zoom and pan with pointer, wheel, fingers and keys. */

export interface Rectangle {
  x: number;
  y: number;
  width: number;
  height: number;
}

const [SMALLEST, LARGEST] = [0.005, 4];
const MARGIN = 28;
const [READABLE, LIFE] = [0.62, 1.25]; // scales
const THIN = 8; // so many times wider than high
const SCREENS = 3.2; // one pans over so many rather than squint

export class View {
  x = 0;
  y = 0;
  scale = 1;
  /** What is in sight, where nobody has looked elsewhere since. */
  sight: "all" | "beginning" | "elsewhere" = "elsewhere";
  private readonly pointers = new Map<number, PointerEvent>();
  private moved = 0;

  constructor(
    private readonly stage: HTMLElement,
    private readonly changed: () => void,
    private readonly clicked: (event: PointerEvent) => void,
  ) {
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    stage.addEventListener("pointerup", (event) => this.up(event));
    stage.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
  }

  /** All of a rectangle, as large as it can be. */
  fit({ x, y, width, height }: Rectangle): void {
    const { clientWidth, clientHeight } = this.stage;
    const across = (clientWidth - 2 * MARGIN) / width;
    const down = (clientHeight - 2 * MARGIN) / height;
    this.scale = Math.min(across, down, LIFE);
    this.x = (clientWidth - width * this.scale) / 2 - x * this.scale;
    this.y = (clientHeight - height * this.scale) / 2 - y * this.scale;
    this.sight = "all";
    this.changed();
  }

  /** All of a rectangle where that can be read; or its beginning, where one pans along or not far. */
  begin(rectangle: Rectangle, startY: number): void {
    const { clientWidth, clientHeight } = this.stage;
    const { x, width, height } = rectangle;
    const across = (clientWidth - 2 * MARGIN) / width;
    const down = (clientHeight - 2 * MARGIN) / height;
    const few = width * READABLE < SCREENS * clientWidth;
    const thin = width > THIN * height;
    if (across >= READABLE || down <= across || !(few || thin)) {
      this.fit(rectangle);
      return;
    }
    this.scale = thin ? READABLE : Math.min(READABLE, down);
    this.x = MARGIN - x * this.scale;
    const middle = height * this.scale > clientHeight ? startY : rectangle.y + height / 2;
    this.y = clientHeight / 2 - middle * this.scale;
    this.sight = "beginning";
    this.changed();
  }

  /** Shows a point, without moving where it is well in sight. */
  reveal(x: number, y: number, scale?: number): void {
    const { clientWidth, clientHeight } = this.stage;
    const enlarged = scale !== undefined && this.scale < scale;
    if (enlarged) this.scale = scale;
    const [left, top] = [x * this.scale + this.x, y * this.scale + this.y];
    const [wide, high] = [Math.min(120, clientWidth / 4), Math.min(70, clientHeight / 4)];
    const inside =
      left > wide && left < clientWidth - wide && top > high && top < clientHeight - high;
    if (!inside || enlarged) {
      this.x = clientWidth / 2 - x * this.scale;
      this.y = clientHeight / 2 - y * this.scale;
    }
    this.changed();
  }

  zoom(factor: number, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2): void {
    const smallest = Math.min(SMALLEST, this.scale); // to fit all in, it may be smaller
    const scale = Math.min(LARGEST, Math.max(smallest, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.sight = "elsewhere";
    this.changed();
  }

  pan(x: number, y: number): void {
    this.x += x;
    this.y += y;
    this.sight = "elsewhere";
    this.changed();
  }

  /** A point of the stage in the circuit's units. */
  inside(event: { clientX: number; clientY: number }): [x: number, y: number] {
    const { left, top } = this.stage.getBoundingClientRect();
    return [
      (event.clientX - left - this.x) / this.scale,
      (event.clientY - top - this.y) / this.scale,
    ];
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const { left, top } = this.stage.getBoundingClientRect();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    if (event.shiftKey) this.pan(-event.deltaY * lines, 0);
    else
      this.zoom(
        Math.exp(-event.deltaY * lines * 0.0016),
        event.clientX - left,
        event.clientY - top,
      );
  }

  private down(event: PointerEvent): void {
    if (event.button !== 0) return;
    this.pointers.set(event.pointerId, event);
    this.moved = 0;
  }

  private move(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    this.moved += Math.abs(dx) + Math.abs(dy);
    if (this.moved < 4) return;
    this.stage.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2) this.pinch(before, event);
    else this.pan(dx, dy);
    this.pointers.set(event.pointerId, event);
  }

  private pinch(before: PointerEvent, after: PointerEvent): void {
    const other = [...this.pointers.values()].find(
      ({ pointerId }) => pointerId !== after.pointerId,
    )!;
    const apart = (event: PointerEvent) =>
      Math.hypot(event.clientX - other.clientX, event.clientY - other.clientY);
    const { left, top } = this.stage.getBoundingClientRect();
    this.zoom(apart(after) / Math.max(1, apart(before)), other.clientX - left, other.clientY - top);
  }

  private up(event: PointerEvent): void {
    if (this.pointers.delete(event.pointerId) && this.moved < 4) this.clicked(event);
  }
}
