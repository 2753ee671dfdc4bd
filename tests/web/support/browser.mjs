import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const FLAGS = [
  "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
export const CHROMIUM = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);

/** Options of a test that needs a browser: skipped without one, unless nothing may be. */
export const withBrowser = {
  skip: !CHROMIUM && process.env.LINKD_REQUIRE_ALL !== "1" && "this machine lacks Chromium",
};

/** Start a Chromium with a fresh profile. As root it runs without its sandbox, which needs a user to drop to. */
export function launch() {
  if (!CHROMIUM) throw new Error("no Chromium: see tests/web/README.md");
  const args = process.getuid() === 0 ? [...FLAGS, "--no-sandbox"] : FLAGS;
  return chromium.launch({ executablePath: CHROMIUM, args, env: { ...process.env, LC_ALL: "C.UTF-8" } });
}

/**
 * Open a page and keep what goes wrong in it: everything that the console calls an error, every foreign request.
 * What Chromium itself reports of a connection that fails while a test takes the node away is not the page's error.
 */
export async function openPage(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`exception: ${error.stack}`));
  page.on("console", (message) => {
    const text = message.text();
    const network = /net::ERR_|WebSocket connection to|status of (401|503)/.test(text);
    const icon = message.location().url.endsWith("/favicon.ico"); // asked for where a page is no page of ours
    if (["error", "warning"].includes(message.type()) && !network && !icon) wrong.push(text);
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin && !request.url().startsWith("data:")) wrong.push(`foreign: ${request.url()}`);
  });
  await page.addInitScript(() => {
    globalThis.layoutShift = 0;
    new PerformanceObserver((list) => {
      for (const each of list.getEntries()) if (!each.hadRecentInput) globalThis.layoutShift += each.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(url);
  return { page, wrong, close: () => context.close() };
}
