// Bring the files of the package, which are the ones that a node serves, beside package.json; npm runs it before `npm pack`.
import { copyFileSync, readFileSync } from "node:fs";

const here = (path) => new URL(path, import.meta.url);
const { version } = JSON.parse(readFileSync(here("package.json"), "utf8"));
const [, linkd] = readFileSync(here("../../linkd/version.py"), "utf8").match(/^VERSION = "(.+)"$/m);
if (version !== linkd) throw new Error(`package.json: expected the version of linkd, ${linkd}, got ${version}`);

for (const name of ["linkd.js", "linkd.d.ts"]) copyFileSync(here(`../../linkd/api/dashboard/${name}`), here(name));
copyFileSync(here("../../LICENSE"), here("LICENSE"));
