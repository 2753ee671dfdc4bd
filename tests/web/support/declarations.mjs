// Writes linkd/api/dashboard/linkd.d.ts: what TypeScript makes of linkd.js, without its private members.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

const DASHBOARD = fileURLToPath(new URL("../../../linkd/api/dashboard/", import.meta.url));
const TSC = fileURLToPath(new URL("../node_modules/typescript/bin/tsc", import.meta.url));
const OPTIONS = "--ignoreConfig --allowJs --declaration --emitDeclarationOnly --stripInternal --skipLibCheck --module esnext --target es2023 --lib es2023,dom";
/** A member of a class whose name begins with `_`, and the comment above it. */
const PRIVATE = /^ {4}(?:\/\*\*(?:(?!\*\/)[^])*\*\/\n {4})?(?:get |static |set )*_[^\n]*?(?:;|\{\n(?: {5}[^\n]*\n| {4}\}[^\n]*\{\n)* {4}\}[^\n]*;)\n/gm;

/** @returns {string} The declarations of linkd.js as it is now. */
export function declarations() {
  const directory = mkdtempSync(`${tmpdir()}/linkd-`);
  try {
    execFileSync(process.execPath, [TSC, ...OPTIONS.split(" "), "--types", "", "--outDir", directory, `${DASHBOARD}linkd.js`]);
    return readFileSync(`${directory}/linkd.d.ts`, "utf8").replaceAll(PRIVATE, "");
  } finally {
    rmSync(directory, { recursive: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(`${DASHBOARD}linkd.d.ts`, declarations());
