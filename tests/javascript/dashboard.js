// The queen's pages as people use them: `node dashboard.js CHECKS`, at the queen of DASHBOARD_URL, in DASHBOARD_CHROMIUM.
// Exits with an error if anything is off.

import assert from "node:assert/strict";
import { PHONE, accessible, ask, eventually, figure, fits, gone, please, run, seen, shot, visit } from "./browser.js";

const PAGES = ["fleet", "models", "chat", "requests", "placement", "decisions", "timeline", "logs"];
const title = (page) => page[0].toUpperCase() + page.slice(1);
const SMOLLM2 = "smollm2-135m-instruct";
/** As a hub has it, and what it is called when it is on a disk. */
const FILE = "hf:bees/smol/SmolLM2-135M-Instruct.Q4_1.gguf";
const FETCHED = "bees/smol/smollm2-135m-instruct.q4_1";

const button = (page, name) => page.getByRole("button", { name });
const row = (page, text) => page.getByRole("row").filter({ hasText: text });
const job = (page, words) => page.getByRole("listitem").filter({ hasText: words });
const answer = (page) => page.getByRole("log").getByRole("article").last();

/** Says yes to the question before something that stops or deletes. */
async function confirm(page, question, action) {
  await page.getByRole("dialog", { name: question }).getByRole("button", { name: action }).click();
}

/** Loads a model with the button of its row, and waits until it is ready. */
async function load(page, model) {
  await visit(page, "models", "Models");
  await row(page, model).getByRole("button", { name: `Load ${model}` }).click();
  await seen(row(page, model).getByText("1 of 1 ready"));
}

/** Asks in the chat, and waits for the receipt of the answer. */
async function chat(page, text) {
  await page.getByRole("textbox", { name: "Message" }).fill(text);
  await page.keyboard.press("Enter");
  await seen(answer(page).getByLabel("Receipt"));
}

/** Of a receipt, what stands beside this word. */
const receipt = (page, name) => answer(page).locator("dl > div").filter({ hasText: name }).locator("dd").innerText();

// ---- a model's life ----

async function a_model_is_fetched_with_progress_and_a_fetch_can_be_cancelled(open) {
  const page = await open();
  await visit(page, "models", "Models");
  const fetch = async () => {
    await page.getByLabel("Model", { exact: true }).fill(FILE);
    await page.getByRole("button", { name: "Fetch", exact: true }).click();
    await seen(job(page, `Fetch ${FILE}`).getByText(/ of 98.4 MB/));
  };
  await fetch();
  await shot(page, "models-fetching");
  await accessible(page, "a job");
  await button(page, `Cancel: Fetch ${FILE}`).click();
  await seen(job(page, `Fetch ${FILE}`).getByText("cancelled"));
  await fetch();
  please("let the hub go on");
  await seen(row(page, FETCHED).getByText("on disk"));
}

async function it_is_loaded_and_chatted_with_and_each_answer_has_its_receipt(open) {
  const page = await open();
  await load(page, FETCHED);
  await row(page, FETCHED).getByRole("link", { name: `Chat ${FETCHED}` }).click();
  await page.getByText("Settings").click();
  await page.getByLabel("Temperature").fill("0");
  await page.getByLabel("Most tokens").fill("24");
  await chat(page, "What is <b>honey</b>?");
  await seen(page.getByRole("log").getByText("What is <b>honey</b>?"));
  assert.equal(await receipt(page, "Answer"), "24 tokens");
  assert.equal(await receipt(page, "Host"), "gpu-box");
  assert.match(await receipt(page, "Worker"), /^worker-/);
  assert.match(await receipt(page, "First token"), /^[\d.]+ m?s$/);
  assert.match(await receipt(page, "Speed"), /^[\d.,]+ tok\/s$/);
  assert.equal(await receipt(page, "Attempts"), "1");
  assert.match(await receipt(page, "Request"), /^[0-9a-f]{32}$/);
  await shot(page, "chat");
}

async function an_answer_can_be_stopped_and_its_slot_is_free_again(open) {
  const page = await open();
  await visit(page, `chat?model=${FETCHED}`, "Chat");
  // So hot, a model hardly ever comes to an end by itself.
  await page.getByText("Settings").click();
  await page.getByLabel("Temperature").fill("2");
  const turns = page.getByRole("log").getByRole("article");
  /** Whether an answer was stopped; false: it had come to its end. */
  const stopped = async () => {
    // It comes after the question.
    const reply = turns.nth((await turns.count()) + 1);
    const end = reply.getByLabel("Receipt");
    await page.getByRole("textbox", { name: "Message" }).fill("Tell me a very long story about bees.");
    await button(page, "Send").click();
    await seen(reply.locator(".turn-text").filter({ hasText: /\S/ }).or(end));
    await eventually("it is stopped or has ended", async () => {
      if (!(await end.isVisible())) await button(page, "Stop").click({ timeout: 5_000 }).catch(() => {});
      return end.isVisible();
    });
    return reply.getByText("stopped by you").isVisible();
  };
  await eventually("an answer is stopped", stopped);
  await eventually("the worker is idle", async () => (await ask("/v1/fleet")).workers.every((worker) => worker.leases === 0));
}

async function what_was_asked_is_counted_and_what_was_decided_is_told(open) {
  const page = await open();
  await visit(page, "requests", "Requests");
  await seen(row(page, FETCHED));
  await shot(page, "requests");
  await visit(page, `placement?model=${FETCHED}`, "Placement");
  await seen(page.getByText(/One worker more would go to gpu-box cpu/));
  await seen(row(page, "gpu-box").getByText("chosen"));
  await shot(page, "placement");
  await visit(page, "decisions", "Decisions");
  await row(page, FETCHED).first().getByRole("link", { name: "Why there" }).click();
  await seen(page.getByRole("heading", { name: /^Decision \d+: / }));
  await shot(page, "decisions");
  await visit(page, "timeline", "Timeline");
  await seen(page.getByRole("listitem").filter({ hasText: FETCHED }));
  await shot(page, "timeline");
}

async function a_worker_s_log_is_read(open) {
  const page = await open();
  const [{ id }] = (await ask("/v1/fleet")).workers;
  await visit(page, `logs?worker=${id}`, "Logs");
  await seen(page.getByText(/listening/));
  await shot(page, "logs");
}

async function it_is_unloaded_kept_running_and_deleted_after_a_question(open) {
  const page = await open();
  await visit(page, "models", "Models");
  await button(page, `Manage ${FETCHED}`).click();
  const dialog = page.getByRole("dialog", { name: FETCHED });
  const unload = dialog.getByRole("button", { name: "Unload" });
  await unload.click();
  await confirm(page, `Unload ${FETCHED}?`, "Unload");
  await gone(unload);

  await dialog.getByRole("button", { name: "Keep", exact: true }).click();
  await seen(dialog.getByText("1 of 1 worker run"));
  // What is typed stays, whatever is told of the fleet meanwhile.
  await dialog.getByLabel("Workers").fill("2");
  const beats = (await ask("/v1/fleet")).hives[0].beats;
  await eventually("two beats more", async () => (await ask("/v1/fleet")).hives[0].beats > beats + 2);
  assert.equal(await dialog.getByLabel("Workers").inputValue(), "2");
  await shot(page, "models-manage");
  await accessible(page, "what can be done with a model");
  await dialog.getByRole("button", { name: "End this" }).click();
  // The worker that was started for the statement goes with it.
  await gone(unload);

  // It has said goodbye; its host lets go of the file once its process has ended, too.
  await eventually("its process has ended", async () => (await ask("/v1/workers")).workers.length === 0);
  await dialog.getByRole("button", { name: "Delete" }).click();
  await confirm(page, `Delete ${FETCHED} from gpu-box?`, "Delete");
  await gone(row(page, FETCHED));
}

// ---- a killed worker ----

async function a_worker_that_is_killed_is_seen_at_once(open) {
  const page = await open();
  await load(page, SMOLLM2);
  const [{ id, pid }] = (await ask("/v1/fleet")).workers;
  await visit(page, "fleet", "Fleet");
  const ready = row(page, id).getByText("ready", { exact: true });
  await seen(ready);
  // Watched by the page itself: its host starts it again, and who looks seldom would see it ready before and after.
  await ready.evaluate((badge) => {
    globalThis.unready = new Promise((told) => {
      const observer = new MutationObserver(() => {
        if (badge.isConnected && badge.textContent === "ready") return;
        observer.disconnect();
        told(document.querySelector(".stats").textContent);
      });
      observer.observe(document.body, { subtree: true, childList: true, characterData: true });
    });
  });
  process.kill(pid, "SIGKILL");
  const killed = performance.now();
  const summary = await page.evaluate(() => globalThis.unready);
  figure(`a worker killed with SIGKILL is seen after ${((performance.now() - killed) / 1000).toFixed(2)} s`);
  assert.match(summary, /Workers ready0 of 1/);
  await shot(page, "fleet-killed");
  await visit(page, "timeline", "Timeline");
  await seen(page.getByRole("listitem").filter({ hasText: id }));
}

async function a_worker_is_stopped_on_the_page_of_the_fleet(open) {
  const page = await open();
  await visit(page, "fleet", "Fleet");
  const [{ id }] = (await ask("/v1/fleet")).workers;
  // Its host has started it again.
  await seen(row(page, id).getByText("ready", { exact: true }));
  await button(page, `Stop ${id}`).click();
  // Looked for from now on: it goes by itself after some seconds.
  const told = seen(page.getByRole("status").getByText(`${id} has ended.`));
  await Promise.all([told, confirm(page, `Stop ${id}?`, "Stop the worker")]);
  await gone(row(page, id));
}

// ---- a queen's restart ----

async function a_page_says_that_it_is_old_and_is_right_again_by_itself(open) {
  const page = await open({ expected: /ERR_|Failed to load resource/ });
  await visit(page, "fleet", "Fleet");
  await seen(row(page, "first"));
  await seen(row(page, "second"));
  await seen(page.getByText("Live", { exact: true }));
  please("end the queen");
  await seen(page.getByText("Reconnecting", { exact: true }));
  await shot(page, "fleet-reconnecting");
  await accessible(page, "a page that is old");
  please("start the queen");
  await gone(row(page, "first"));
  await seen(row(page, "second"));
  await seen(page.getByText("Live", { exact: true }));
}

// ---- a token ----

async function nothing_is_shown_before_the_token_is_right(open) {
  const page = await open({ expected: /401/ });
  await page.goto(process.env.DASHBOARD_URL);
  const question = page.getByRole("dialog", { name: /token/ });
  await question.getByLabel("Token").fill("a wrong one");
  await question.getByRole("button", { name: "Enter" }).click();
  await seen(question.getByText("That one is not right."));
  await shot(page, "token");
  await accessible(page, "the question for the token");
  assert.equal(await page.getByText("Live", { exact: true }).count(), 0);
  await question.getByLabel("Token").fill(process.env.DASHBOARD_TOKEN);
  await question.getByRole("button", { name: "Enter" }).click();
  await seen(page.getByText("Live", { exact: true }));
  // The token opens what a client's key opens.
  for (const name of PAGES) await visit(page, name, title(name));
  await page.reload();
  await seen(page.getByText("Live", { exact: true }));
  await button(page, "Forget the token").click();
  await seen(question);
}

async function a_question_that_comes_before_the_page_is_drawn_is_asked(open) {
  const page = await open({ expected: /401/ });
  // The first call is refused at once, before the browser had a moment to draw anything.
  await page.addInitScript(() => {
    const network = fetch;
    globalThis.fetch = async () => {
      globalThis.fetch = network;
      return new Response(null, { status: 401 });
    };
  });
  await page.goto(process.env.DASHBOARD_URL);
  const question = page.getByRole("dialog", { name: /token/ });
  await question.getByLabel("Token").fill(process.env.DASHBOARD_TOKEN);
  await question.getByRole("button", { name: "Enter" }).click();
  await seen(page.getByText("Live", { exact: true }));
}

async function no_question_drives_another_away(open) {
  const page = await open({ expected: /401/ });
  // What wants a client's key is asked for while somebody enters the token.
  let goOn;
  const typed = new Promise((resolve) => (goOn = resolve));
  await page.route("**/v1/models", (route) => typed.then(() => route.continue()));
  await page.goto(`${process.env.DASHBOARD_URL}/#/models`);
  const question = page.getByRole("dialog");
  await question.getByLabel("Token").fill(process.env.DASHBOARD_TOKEN);
  const refused = page.waitForResponse((response) => response.url().endsWith("/v1/models") && response.status() === 401);
  goOn();
  await (await refused).finished();
  // Long enough for the page to hear of it, too.
  await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 500)));
  assert.equal(await question.getByLabel("Token").inputValue(), process.env.DASHBOARD_TOKEN);
  await question.getByRole("button", { name: "Enter" }).click();
  // The token is right for both.
  await seen(page.getByText("Live", { exact: true }));
  await seen(page.getByText("No model is known yet"));
  assert.equal(await question.count(), 0);
}

// ---- every page ----

async function a_fleet_at_work(open) {
  const page = await open();
  await load(page, SMOLLM2);
  await visit(page, `chat?model=${SMOLLM2}`, "Chat");
  await page.getByText("Settings").click();
  await page.getByLabel("Most tokens").fill("16");
  await chat(page, "What do bees eat?");
}

async function every_page_on_every_screen_has_no_serious_barrier(open) {
  for (const [name, screen] of Object.entries({ desk: {}, phone: PHONE })) {
    for (const colorScheme of ["light", "dark"]) {
      const page = await open({ ...screen, colorScheme });
      for (const id of PAGES) {
        await visit(page, id, title(id));
        await page.waitForLoadState("networkidle", { timeout: 1_500 }).catch(() => {});
        await shot(page, `${id}-${name}-${colorScheme}`);
        await accessible(page, `${id} (${name}, ${colorScheme})`);
        await fits(page, `${id} (${name})`);
      }
    }
  }
}

async function the_colours_can_be_chosen_and_stay(open) {
  const page = await open({ colorScheme: "light" });
  await visit(page, "fleet", "Fleet");
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await button(page, /Change to: Light/).click();
  await button(page, /Change to: Dark/).click();
  assert.notEqual(await background(), light);
  await page.reload();
  await seen(button(page, /Colours: Dark/));
  assert.notEqual(await background(), light);
}

async function all_of_it_works_with_the_keyboard_alone(open) {
  const page = await open();
  await visit(page, "fleet", "Fleet");
  const focused = (selector) => page.locator(`${selector}:focus`);
  /** Tabs until this is focused, and presses a key there. */
  const reach = async (locator, key) => {
    for (let presses = 0; presses < 80; presses += 1) {
      await page.keyboard.press("Tab");
      if (await locator.evaluate((element) => element === document.activeElement).catch(() => false)) return page.keyboard.press(key);
    }
    return assert.fail("the keyboard does not get there");
  };
  await page.keyboard.press("Tab");
  await seen(page.getByRole("link", { name: "To the content" }));
  await page.keyboard.press("Enter");
  await seen(focused("main"));
  await page.keyboard.press("Shift+Tab");
  await page.goto(`${process.env.DASHBOARD_URL}/#/fleet`);
  await reach(page.getByRole("link", { name: "Models", exact: true }), "Enter");
  await seen(focused("h1").filter({ hasText: "Models" }));
  await reach(button(page, `Manage ${SMOLLM2}`), "Enter");
  const dialog = page.getByRole("dialog", { name: SMOLLM2 });
  await seen(dialog);
  await page.keyboard.press("Escape");
  await gone(dialog);
  // One goes on where one was.
  await seen(focused("button").filter({ hasText: `Manage ${SMOLLM2}` }));
  await reach(page.getByRole("link", { name: `Chat ${SMOLLM2}` }), "Enter");
  await seen(focused("h1").filter({ hasText: "Chat" }));
  // Left to itself, a model may talk for a long time.
  await reach(page.locator("summary").filter({ hasText: "Settings" }), "Enter");
  await reach(page.getByLabel("Most tokens"), "8");
  await reach(page.getByRole("textbox", { name: "Message" }), "H");
  await page.keyboard.type("ello");
  await page.keyboard.press("Enter");
  await seen(answer(page).getByLabel("Receipt"));
}

// ---- an empty fleet ----

async function every_page_says_what_to_do_next(open) {
  const page = await open();
  const commands = { fleet: "rbee join", models: "rbee join", chat: "rbee join", placement: "rbee join", requests: "rbee run", decisions: "rbee run" };
  for (const [id, command] of Object.entries(commands)) {
    await visit(page, id, title(id));
    await seen(page.locator("code").filter({ hasText: command }));
    await shot(page, `${id}-empty`);
    await accessible(page, `${id} of an empty fleet`);
  }
}

// ---- two hundred workers ----

async function two_hundred_workers_do_not_shift_the_page(open) {
  // No host could load what these workers serve, so nothing can be said of where it would go.
  const page = await open({ expected: /404.*\/v1\/placement/ });
  await page.addInitScript(() => {
    globalThis.shifted = 0;
    const watch = (type, note) => new PerformanceObserver((list) => list.getEntries().forEach(note)).observe({ type, buffered: true });
    watch("layout-shift", (entry) => (globalThis.shifted += entry.hadRecentInput ? 0 : entry.value));
    globalThis.longest = 0;
    watch("longtask", (entry) => (globalThis.longest = Math.max(globalThis.longest, entry.duration)));
  });
  await visit(page, "fleet", "Fleet");
  await seen(row(page, "worker-199"));
  const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime);
  const table = await page.evaluate(() => performance.now());
  assert.equal(await page.getByRole("table", { name: "Workers" }).locator("tbody tr").count(), 200);
  await shot(page, "fleet-200");
  // Several rounds of heartbeats, each of which changes what is shown.
  const before = await page.evaluate(() => performance.now());
  await eventually("some rounds of heartbeats", async () => (await page.evaluate(() => performance.now())) - before > 7_000);
  const { shifted, longest } = await page.evaluate(() => ({ shifted: globalThis.shifted, longest: globalThis.longest }));
  const bytes = await page.evaluate(() => performance.getEntriesByType("resource").reduce((sum, entry) => sum + entry.encodedBodySize, 0));
  figure(`200 workers: first paint after ${paint.toFixed(0)} ms, all rows by ${table.toFixed(0)} ms, longest task ${longest} ms, ${(bytes / 1000).toFixed(0)} kB of files`);
  figure(`200 workers: cumulative layout shift ${shifted.toFixed(4)} in 7 s`);
  assert.ok(shifted < 0.01, `the page shifted by ${shifted}`);
  for (const id of PAGES) await visit(page, id, title(id));
}

const CHECKS = {
  "a model's life": [
    a_model_is_fetched_with_progress_and_a_fetch_can_be_cancelled,
    it_is_loaded_and_chatted_with_and_each_answer_has_its_receipt,
    an_answer_can_be_stopped_and_its_slot_is_free_again,
    what_was_asked_is_counted_and_what_was_decided_is_told,
    a_worker_s_log_is_read,
    it_is_unloaded_kept_running_and_deleted_after_a_question,
  ],
  "a killed worker": [a_worker_that_is_killed_is_seen_at_once, a_worker_is_stopped_on_the_page_of_the_fleet],
  "a queen's restart": [a_page_says_that_it_is_old_and_is_right_again_by_itself],
  "a token": [
    nothing_is_shown_before_the_token_is_right,
    a_question_that_comes_before_the_page_is_drawn_is_asked,
    no_question_drives_another_away,
  ],
  "every page": [
    a_fleet_at_work,
    every_page_on_every_screen_has_no_serious_barrier,
    the_colours_can_be_chosen_and_stay,
    all_of_it_works_with_the_keyboard_alone,
  ],
  "an empty fleet": [every_page_says_what_to_do_next],
  "two hundred workers": [two_hundred_workers_do_not_shift_the_page],
};

await run(CHECKS[process.argv[2]]);
