/** The picture as a file: the same shapes, with the theme's colours written out. */

import type { App } from "./app";
import { Picture } from "./picture";
import style from "./picture.css?inline";
import { make } from "./shapes";

const MARGIN = 24;

export function svgFile(app: App): string {
  const { scene, layout, groups, state } = app;
  const picture = new Picture(scene!, layout!, groups, state).element;
  for (const item of picture.querySelectorAll(".selected")) item.classList.remove("selected");
  const [width, height] = [layout!.width + 2 * MARGIN, layout!.height + 2 * MARGIN + 20];
  const viewBox = `${-MARGIN} ${-MARGIN - 10} ${width} ${height}`;
  for (const [name, value] of Object.entries({ viewBox, width, height })) {
    picture.setAttribute(name, String(value));
  }
  const colours = getComputedStyle(document.documentElement);
  const text = style.replace(/var\((--[a-z-]+)\)/g, (_, name) =>
    colours.getPropertyValue(name).trim(),
  );
  const paper = make("rect", {
    x: -MARGIN,
    y: -MARGIN - 10,
    width,
    height,
    fill: colours.getPropertyValue("--paper").trim(),
  });
  picture.prepend(make("style", {}, text), paper);
  return new XMLSerializer().serializeToString(picture);
}

export function download(name: string, text: string): void {
  const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  const link = document.createElement("a");
  [link.href, link.download] = [address, name];
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
