// What we ship of others is what their package holds, and the types of linkd.js are made of it.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { declarations } from "./support/declarations.mjs";

const OURS = new URL("../../linkd/api/dashboard/", import.meta.url);
const THEIRS = new URL("node_modules/uplot/", import.meta.url);
const PAIRS = { "uplot.js": "dist/uPlot.esm.js", "uplot.css": "dist/uPlot.min.css", "uplot.LICENSE": "LICENSE" };

for (const [ours, theirs] of Object.entries(PAIRS)) {
  test(`${ours} is uPlot's ${theirs}`, async () => {
    assert.ok((await readFile(new URL(ours, OURS))).equals(await readFile(new URL(theirs, THEIRS))));
  });
}

test("the version that uplot.ORIGIN names is the one pinned", async () => {
  const { version } = JSON.parse(await readFile(new URL("package.json", THEIRS), "utf8"));
  assert.match(await readFile(new URL("uplot.ORIGIN", OURS), "utf8"), new RegExp(`^uPlot ${version.replaceAll(".", "\\.")},`));
});

test("linkd.d.ts is made of linkd.js (npm run declarations)", async () => {
  const made = declarations();
  assert.equal(await readFile(new URL("linkd.d.ts", OURS), "utf8"), made);
  assert.match(made, /export declare function connect\(options\?: Options\): Linkd;/);
  assert.doesNotMatch(made, /^ {4}(get )?_/m);
});
