/** Options of a model that cannot be opened without: sizes of its axes, and values of its inputs. */

import { h } from "./dom";
import { queryOf } from "./options";
import { failureOf } from "./server";

type Open = (options: string) => Promise<Uint8Array>;

/** Opens a model; where it is refused for want of a size or a value, asks for them. */
export async function openModel(open: Open): Promise<Uint8Array> {
  let options: string | undefined = "";
  let written = "";
  for (;;) {
    try {
      return await open(queryOf(options));
    } catch (error) {
      const failure = failureOf(error);
      const input = failure.facts.input;
      if (input === undefined && !options) throw failure;
      options = await ask(failure.message, written || `--at ${input}=`);
      if (options === undefined) throw failure;
      written = options;
    }
  }
}

function ask(message: string, lines: string): Promise<string | undefined> {
  const text = h("textarea", { rows: 4, cols: 60, "aria-label": "options", spellcheck: false });
  text.value = lines;
  const dialog = h(
    "dialog",
    { "aria-label": "What this model needs to be opened" },
    h("p", {}, message),
    h("p", {}, "One a line: --size batch=4, --at x=[1, 2, 3] or --fix steps=3"),
    text,
    h(
      "form",
      { method: "dialog" },
      h("button", { value: "open" }, "Open"),
      h("button", { value: "" }, "Cancel"),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  text.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "open" ? text.value : undefined);
    });
  });
}
