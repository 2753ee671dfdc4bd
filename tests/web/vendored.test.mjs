// What we ship of others is what their package holds.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

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
