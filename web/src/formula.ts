/** The catalogue's gradient text, with a node's own numbers put in. */

/** "d out/dA = B,  d out/dB = A" as [["A", "B"], ["B", "A"]]; empty where it has another form. */
export function partials(text: string): [input: string, expression: string][] {
  const found = [...text.matchAll(/d [A-Za-z_]\w*\/d ?([A-Za-z_]\w*) = /g)];
  return found.map((match, i) => {
    const end = found[i + 1]?.index ?? text.length;
    return [match[1], text.slice(match.index + match[0].length, end).replace(/[,;\s]+$/, "")];
  });
}

/** The expression of one input; inputs after a variadic one's first share its text ("data_i"). */
export function partialOf(text: string, input: string): string | undefined {
  const all = partials(text);
  const own = all.find(([name]) => name === input);
  if (own) return own[1];
  const variadic = input.replace(/_\d+$/, "_i");
  return all.find(([name]) => name === variadic)?.[1].replaceAll(variadic, input);
}

/** Each name replaced by its number; a negative one in brackets wherever that reads otherwise. */
export function substituted(expression: string, numbers: ReadonlyMap<string, string>): string {
  return expression.replace(/[A-Za-z_]\w*/g, (name, at: number) => {
    const number = numbers.get(name);
    if (number === undefined) return name;
    const alone = name.length === expression.length;
    return number.startsWith("-") && !alone && !isBracketed(expression, at, name.length)
      ? `(${number})`
      : number;
  });
}

function isBracketed(text: string, at: number, length: number): boolean {
  return text[at - 1] === "(" && text[at + length] === ")";
}
