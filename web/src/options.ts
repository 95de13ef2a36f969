/** Options of a model, written as on the command line. */

const LINE = /^\s*(?:--)?(size|fix|at)\s+(\S[^]*)$/;

/** As a part of a query: the line "--size batch=4" is "&size=batch%3D4". */
export function queryOf(lines: string): string {
  return lines
    .split("\n")
    .filter((line) => line.trim())
    .map((line) => {
      const found = LINE.exec(line.trimEnd());
      if (!found) throw new Error(`write --size, --at or --fix, not ${line.trim()}`);
      return `&${found[1]}=${encodeURIComponent(found[2]!)}`;
    })
    .join("");
}
