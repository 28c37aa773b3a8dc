// A browser for the checks of the dashboard: opened as a person would have it, watched for troubles, and photographed.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import axe from "axe-core";
import { chromium } from "playwright-core";

/** Where the queen is. */
export const QUEEN = process.env.DASHBOARD_URL;

/** A person's screens. */
export const DESK = { viewport: { width: 1280, height: 900 } };
export const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };

/** Longest that a check waits for something to show. Only a failing check waits this long. */
const PATIENCE_MS = 120_000;

const SWITCHES = ["disable-gpu", "disable-quic", "no-first-run", "disable-component-update", "disable-sync"];

/** Runs these checks, one after another, in one browser; each gets a function that opens a page for it. */
export async function run(checks) {
  const browser = await chromium.launch({
    executablePath: process.env.DASHBOARD_CHROMIUM,
    args: [...SWITCHES, "disable-background-networking"].map((name) => `--${name}`),
  });
  try {
    for (const check of checks) {
      const opened = [];
      const open = async (screen) => {
        opened.push(await person(browser, screen));
        return opened.at(-1);
      };
      try {
        await check(open);
      } catch (error) {
        await Promise.all(opened.map((page, number) => shot(page, `failed-${check.name}-${number}`)));
        throw new Error(`${check.name}: ${error.message}\nthe page's own: ${opened.flatMap((page) => page.troubles).join("\n")}`, {
          cause: error,
        });
      }
      for (const page of opened) {
        assert.deepEqual(page.troubles, [], `${check.name}: the page was not content`);
        await page.context().close();
      }
    }
  } finally {
    await browser.close();
  }
}

/** A page of somebody with this screen. What goes wrong in it is kept in `troubles`, but for what matches `expected`. */
async function person(browser, { expected, ...screen } = {}) {
  const context = await browser.newContext({ ...DESK, reducedMotion: "reduce", ...screen });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.troubles = [];
  const trouble = (text) => {
    if (!expected?.test(text)) page.troubles.push(text);
  };
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") trouble(`${message.text()} (${message.location().url})`);
  });
  page.on("pageerror", (error) => trouble(error.stack));
  page.on("request", (request) => {
    if (!request.url().startsWith(QUEEN) && !request.url().startsWith("data:")) trouble(`asks elsewhere: ${request.url()}`);
  });
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`refused by the policy: ${event.violatedDirective}`));
  });
  return page;
}

/** Goes to a page of the dashboard, and waits until it shows its heading. */
export async function visit(page, path, heading) {
  await page.goto(`${QUEEN}/#/${path}`);
  await page.getByRole("heading", { level: 1, name: heading }).waitFor();
}

/** Waits until this locator is there and visible. */
export const seen = (locator) => locator.first().waitFor();

/** Waits until this locator is not to be seen any more. */
export const gone = (locator) => locator.first().waitFor({ state: "hidden" });

/** Waits until this is true, of what only shows by asking. */
export async function eventually(what, is) {
  const end = performance.now() + PATIENCE_MS;
  while (!(await is())) {
    assert.ok(performance.now() < end, `waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Nothing that keeps people with impairments away, by the rules of axe. */
export async function accessible(page, where) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const said = serious.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).slice(0, 4).join(" ")}`);
  assert.deepEqual(said, [], `${where} is not accessible`);
}

/** The page is not wider than the screen: nobody has to scroll sideways to read it. */
export async function fits(page, where) {
  // Not `innerWidth`: a phone zooms out of a page that is too wide.
  const screen = page.viewportSize().width;
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= screen, `${where} is ${wide} px wide on a screen of ${screen}`);
}

/** A picture for people to look at. */
export async function shot(page, name) {
  const folder = process.env.DASHBOARD_SCREENSHOTS;
  await mkdir(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), animations: "disabled" });
}

/** Asks for what only the test can do. */
export const please = (words) => console.log(`please: ${words}`);

/** A figure for people. */
export const figure = (words) => console.log(`figure: dashboard: ${words}`);

/** What the queen answers to a GET. */
export async function ask(path, headers = {}) {
  const response = await fetch(QUEEN + path, { headers });
  assert.equal(response.status, 200, path);
  return response.json();
}
