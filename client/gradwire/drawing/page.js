"use strict";
const svg = document.querySelector("svg.gradwire");
const card = document.getElementById("card");
const whole = svg.viewBox.baseVal;
const all = { x: whole.x, y: whole.y, width: whole.width, height: whole.height };
let view = { ...all };
svg.removeAttribute("width");
svg.removeAttribute("height");

function show(next) {
  view = next;
  svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
}

// the point of the picture that is under a point of the window
function under(event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
}

function zoom(factor, at) {
  const width = Math.min(Math.max(view.width * factor, 40), all.width * 4);
  const scale = width / view.width;
  show({
    x: at.x - (at.x - view.x) * scale,
    y: at.y - (at.y - view.y) * scale,
    width,
    height: view.height * scale,
  });
}

const middle = () => ({ x: view.x + view.width / 2, y: view.y + view.height / 2 });
const move = (x, y) => show({ ...view, x: view.x + x * view.width, y: view.y + y * view.height });

svg.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY * 0.002), under(event));
  },
  { passive: false },
);

let held = null;
svg.addEventListener("pointerdown", (event) => {
  held = under(event);
  svg.setPointerCapture(event.pointerId);
});
svg.addEventListener("pointerup", () => {
  held = null;
});
svg.addEventListener("pointermove", (event) => {
  if (held) {
    const now = under(event);
    show({ ...view, x: view.x + held.x - now.x, y: view.y + held.y - now.y });
  }
});

const keys = {
  "+": () => zoom(0.8, middle()),
  "=": () => zoom(0.8, middle()),
  "-": () => zoom(1.25, middle()),
  0: () => show({ ...all }),
  ArrowLeft: () => move(-0.1, 0),
  ArrowRight: () => move(0.1, 0),
  ArrowUp: () => move(0, -0.1),
  ArrowDown: () => move(0, 0.1),
};
addEventListener("keydown", (event) => {
  if (keys[event.key] && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    keys[event.key]();
  }
});

function tell(text, x, y) {
  card.textContent = text;
  card.hidden = false;
  card.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - card.offsetWidth - 8))}px`;
  card.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - card.offsetHeight - 8))}px`;
}

for (const title of svg.querySelectorAll("g > title")) {
  const group = title.parentNode;
  const text = title.textContent;
  title.remove(); // or the browser would tell it too
  group.setAttribute("aria-label", text.replaceAll("\n", ", "));
  group.setAttribute("role", "img");
  group.setAttribute("tabindex", "0");
  group.addEventListener("pointermove", (event) => tell(text, event.clientX, event.clientY));
  group.addEventListener("pointerleave", () => {
    card.hidden = true;
  });
  group.addEventListener("focus", () => {
    const at = group.getBoundingClientRect();
    tell(text, at.left, at.bottom);
  });
  group.addEventListener("blur", () => {
    card.hidden = true;
  });
}
