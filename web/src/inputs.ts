/** Sliders and fields for the values of leaves. */

import { h } from "./dom";
import { general } from "./format";
import type { LeafPoint, Point } from "./point";
import { isFloating, typeName } from "./tensors";
import { numberOf } from "./url";

const MOST_ROWS = 40;
const MOST_SLIDERS = 8; // of one tensor
const MOST_EDITED = 64; // elements of one field

export type Change = (place: number) => void;

/** One row for each scalar, or for each element of a short tensor; a field for others. */
export function inputRows(point: Point, change: Change): HTMLElement[] {
  const rows: HTMLElement[] = [];
  for (const [place, leaf] of point.leaves.entries()) {
    if (rows.length >= MOST_ROWS) {
      const rest = point.leaves.length - place;
      rows.push(
        h("p", { class: "muted" }, `${rest} more: choose one in the circuit to change it.`),
      );
      break;
    }
    rows.push(...rowsOf(point, place, leaf, change));
  }
  return rows;
}

function rowsOf(point: Point, place: number, leaf: LeafPoint, change: Change): HTMLElement[] {
  const { elements, shape } = leaf;
  const name = leaf.leaf.name;
  if (!elements || elements.length > MOST_SLIDERS || !isFloating(leaf.leaf.dataType)) {
    return [fieldRow(point, place, leaf, change)];
  }
  return elements.map((_, i) =>
    sliderRow(shape.length ? `${name}[${i}]` : name, point, place, i, change),
  );
}

function sliderRow(
  label: string,
  point: Point,
  place: number,
  element: number,
  change: Change,
): HTMLElement {
  const { leaf, elements } = point.leaves[place];
  const value = elements![element];
  const span = Number.isFinite(value) ? Math.max(5, 2 * Math.abs(value)) : 5;
  const slider = h("input", {
    type: "range",
    min: -span,
    max: span,
    step: span / 500,
    "aria-label": `${label}, slider`,
  });
  const field = h("input", {
    type: "text",
    inputmode: "decimal",
    class: "number",
    "aria-label": label,
    autocomplete: "off",
  });
  slider.value = String(value);
  field.value = general(value, 6);
  const set = (x: number) => {
    point.set(place, element, x);
    change(place);
  };
  slider.addEventListener("input", () => {
    field.value = general(Number(slider.value), 4);
    set(Number(field.value));
  });
  field.addEventListener("input", () => {
    const x = numberOf(field.value);
    field.setAttribute("aria-invalid", String(x === undefined));
    if (x === undefined) return;
    if (Math.abs(x) > Number(slider.max) && Number.isFinite(x)) {
      [slider.min, slider.max] = [String(-2 * Math.abs(x)), String(2 * Math.abs(x))];
    }
    slider.value = String(x);
    set(x);
  });
  const kind = leaf.kind === "parameter" ? "parameter" : "input";
  return h(
    "div",
    { class: `row ${kind}`, "data-leaf": label },
    h("span", { class: "row-name mono", title: `${label}: ${kind}` }, label),
    slider,
    field,
  );
}

/** Numbers with commas between them, in the order of the tensor's elements. */
function fieldRow(point: Point, place: number, leaf: LeafPoint, change: Change): HTMLElement {
  const { elements, shape, madeUp } = leaf;
  const { name, dataType } = leaf.leaf;
  const type = `${shape.join("×") || "scalar"} ${typeName(dataType)}${madeUp ? ", made up" : ""}`;
  const label = h("span", { class: "row-name mono", title: name }, name);
  if (!elements || elements.length > MOST_EDITED) {
    return h(
      "div",
      { class: "row wide", "data-leaf": name },
      label,
      h("span", { class: "muted" }, type),
    );
  }
  const field = h("input", {
    type: "text",
    class: "numbers",
    "aria-label": `${name}, ${elements.length} numbers`,
    autocomplete: "off",
  });
  field.value = elements.map((x) => general(x, 6)).join(", ");
  field.addEventListener("input", () => {
    const numbers = field.value
      .split(/[\s,]+/)
      .filter(Boolean)
      .map(numberOf);
    const right = numbers.length === elements.length && numbers.every((x) => x !== undefined);
    field.setAttribute("aria-invalid", String(!right));
    if (!right) return;
    numbers.forEach((x, i) => point.set(place, i, x as number));
    change(place);
  });
  return h(
    "div",
    { class: "row wide", "data-leaf": name },
    label,
    h("span", { class: "muted" }, type),
    field,
  );
}
