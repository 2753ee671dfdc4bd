// Pages in Chromium for a test in another process, each in a profile of its own. Does what it is told, one JSON object a
// line: {"id", "page", "open": URL}, {"id", "page", "run": CODE} in the page, {"id", "page", "until": CODE} once that is
// true, {"id", "page", "shoot": FILE, "scheme", "size": [WIDTH, HEIGHT]}, {"id", "page", "close": true}. Answers each, as soon
// as it can: {"id", "value"}, or {"id", "error"}.
import { createInterface } from "node:readline";
import { launch } from "./browser.mjs";

const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const browser = await launch();
const pages = new Map();

async function obey({ page: name, open, run, until, shoot, scheme, size, close }) {
  if (open) {
    const context = await browser.newContext();
    pages.set(name, await context.newPage());
    await pages.get(name).goto(open);
  } else if (shoot) {
    const page = pages.get(name);
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width: size[0], height: size[1] });
    await page.waitForTimeout(1500); // the charts are drawn again
    await page.screenshot({ path: shoot });
  } else if (close) {
    await pages.get(name).context().close();
    pages.delete(name);
  } else if (run) {
    return (await pages.get(name).evaluate(run)) ?? null;
  } else {
    await pages.get(name).waitForFunction(until, null, { polling: 10, timeout: 60_000 });
  }
  return null;
}

say({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const told = JSON.parse(line);
  obey(told).then(
    (value) => say({ id: told.id, value }),
    (error) => say({ id: told.id, error: String(error).slice(0, 500) }),
  );
}
await browser.close();
