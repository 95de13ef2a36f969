/** Numbers as `gradwire eval` prints them, so that page and terminal show the same digits. */

export type Element = number | bigint | boolean;

/** Python's f"{x:.{digits}g}". */
export function general(x: number, digits: number): string {
  if (Number.isNaN(x)) return "nan";
  if (!Number.isFinite(x)) return x > 0 ? "inf" : "-inf";
  if (x === 0) return Object.is(x, -0) ? "-0" : "0";
  const [mantissa, exponent] = rounded(x, digits).split("e");
  const power = Number(exponent);
  if (power < -4 || power >= digits) {
    const size = String(Math.abs(power)).padStart(2, "0");
    return `${trimmed(mantissa)}e${power < 0 ? "-" : "+"}${size}`;
  }
  return trimmed(Number(`${mantissa}e${power}`).toFixed(Math.max(0, digits - 1 - power)));
}

/** x in exponent form; JavaScript rounds an exact tie up, Python to the even digit. */
function rounded(x: number, digits: number): string {
  const up = x.toExponential(digits - 1);
  const [mantissa, exponent] = x.toExponential(60).split("e");
  const point = mantissa.indexOf(".") + digits;
  if (!/^50*$/.test(mantissa.slice(point))) return up;
  const down = mantissa.slice(0, point).replace(/\.$/, "");
  return Number(down.at(-1)) % 2 === 0 ? `${down}e${exponent}` : up;
}

function trimmed(text: string): string {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** One element: six digits of a float, all of an integer, Python's words for a boolean. */
export function shown(x: Element, floating = true): string {
  if (typeof x === "boolean") return x ? "True" : "False";
  return typeof x === "number" && floating ? general(x, 6) : String(x);
}

/** A tensor as the table of `gradwire eval` shows it: six entries an axis, sixty characters. */
export function shownTensor(elements: ArrayLike<Element>, shape: number[], floating: boolean) {
  const nested = (axis: number, start: number, size: number): string => {
    if (axis === shape.length) return shown(elements[start], floating);
    const step = size / shape[axis];
    const parts = [];
    for (let i = 0; i < Math.min(6, shape[axis]); i++) {
      parts.push(nested(axis + 1, start + i * step, step));
    }
    const text = `[${parts.join(", ")}${shape[axis] > 6 ? ", ..." : ""}]`;
    return text.length <= 60 ? text : text.slice(0, 57) + "...";
  };
  return nested(0, 0, elements.length);
}

/** A number of a picture: three digits, by the rules of docs/pictures.md. */
export function brief(x: Element): string {
  if (typeof x === "boolean") return x ? "true" : "false";
  return briefNumber(Number(x)).replaceAll("-", "\u2212");
}

function briefNumber(x: number): string {
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "inf" : "-inf";
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x === 0 ? 0 : x);
  const three = Math.abs(Number(x.toPrecision(3)));
  const whole = Math.round(Math.abs(x));
  const sign = x < 0 ? "-" : "";
  if (three >= 1e-4 && three < 1000) return sign + String(three);
  if (three >= 1000 && whole < 1e6) return sign + String(whole);
  const [mantissa, power] = x.toExponential(2).split("e");
  const digits = power.slice(1).padStart(2, "0");
  return `${trimmed(mantissa)}e${power[0]}${digits}`;
}
