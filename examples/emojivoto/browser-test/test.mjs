// Votes, looks at the leaderboard and meets the doughnut, as a person would, in headless Chromium.
//
// Usage: node test.mjs URL SCREENSHOT_DIR   (playwright-core is found by NODE_PATH or beside this file; run.sh
// arranges both). EMOJIVOTO_BROWSER names the browser, /usr/bin/chromium if unset.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { mkdirSync } from "node:fs";
import { join } from "node:path";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const [base, pictures] = process.argv.slice(2);
assert(base && pictures, "usage: node test.mjs URL SCREENSHOT_DIR");
mkdirSync(pictures, { recursive: true });

const browser = await chromium.launch({
  executablePath: process.env.EMOJIVOTO_BROWSER ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

// Chromium itself says on the console when an answer is a 500. The doughnut's is the only one allowed.
const DOUGHNUT = "choice=%3Adoughnut%3A";
const complaints = [];

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 820 }, ...options });
  const page = await context.newPage();
  page.on("console", (message) => {
    const allowed = message.location().url.includes(DOUGHNUT) && message.text().includes("500");
    if (["error", "warning"].includes(message.type()) && !allowed) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error}`));
  page.on("requestfailed", (request) => {
    // Leaving a page aborts what it was asking for.
    if (request.failure()?.errorText !== "net::ERR_ABORTED") complaints.push(`failed: ${request.url()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(base)) complaints.push(`the page asked a stranger: ${request.url()}`);
  });
  page.setDefaultTimeout(10_000);
  return page;
}

const heading = (page) => page.getByRole("heading", { level: 1 });
const shoot = (page, name) => page.screenshot({ path: join(pictures, `${name}.png`) });

async function step(name, work) {
  await work();
  console.log(`ok  ${name}`);
}

async function votesFor(page, shortcode) {
  const row = page.locator(".board li", { hasText: shortcode });
  return (await row.count()) === 0 ? 0 : Number.parseInt(await row.locator(".votes").innerText(), 10);
}

async function board(page) {
  await page.goto(`${base}/leaderboard`);
  await page.locator(".lead", { hasNotText: "Counting" }).waitFor();
}

const page = await open({ colorScheme: "light" });

await step("the page shows a hundred emoji, each a button with a name", async () => {
  await page.goto(base);
  await page.getByRole("button", { name: "Vote for joy", exact: true }).waitFor();
  assert.equal(await page.getByRole("button", { name: /^Vote for / }).count(), 100);
  await shoot(page, "vote-light");
});

let before;
await step("the leaderboard counts", async () => {
  await board(page);
  before = await votesFor(page, ":joy:");
});

await step("a vote is confirmed, and the keyboard goes where the eye goes", async () => {
  await page.getByRole("navigation").getByRole("link", { name: "Vote", exact: true }).click();
  await page.getByRole("button", { name: "Vote for joy", exact: true }).press("Enter");
  await page.getByRole("heading", { name: "You voted for :joy:" }).waitFor();
  assert(await heading(page).evaluate((node) => node === document.activeElement), "the heading has the focus");
  await shoot(page, "voted-light");
});

await step("three votes more show in the leaderboard, in order", async () => {
  for (let i = 0; i < 3; i += 1) {
    await page.getByRole("link", { name: "Pick another one" }).click();
    await page.getByRole("button", { name: "Vote for joy", exact: true }).click();
    await page.getByRole("heading", { name: "You voted for :joy:" }).waitFor();
  }
  await page.getByRole("link", { name: "View the leaderboard" }).click();
  await page.getByRole("heading", { name: "Leaderboard" }).waitFor();
  await page.locator(".board li", { hasText: ":joy:" }).waitFor();
  const after = await votesFor(page, ":joy:");
  assert(after >= before + 4, `${before} votes before, ${after} after`);
  const counts = (await page.locator(".board .votes").allInnerTexts()).map((text) => Number.parseInt(text, 10));
  assert.deepEqual(counts, counts.toSorted((a, b) => b - a), "most votes first");
  await shoot(page, "leaderboard-light");
});

await step("the leaderboard follows by itself", async () => {
  const seen = await votesFor(page, ":joy:");
  await page.evaluate(() => fetch("/api/vote?choice=:joy:"));
  await page.waitForFunction((count) => {
    const row = [...document.querySelectorAll(".board li")].find((li) => li.textContent.includes(":joy:"));
    return Number.parseInt(row.querySelector(".votes").textContent, 10) > count;
  }, seen);
});

await step("the doughnut fails, and the page says so and goes on", async () => {
  await page.getByRole("navigation").getByRole("link", { name: "Vote", exact: true }).click();
  await page.getByRole("button", { name: "Vote for doughnut" }).click();
  await page.getByText("rpc error: code = Unknown desc = ERROR").waitFor();
  assert.match(await heading(page).innerText(), /Oops/);
  await shoot(page, "doughnut-light");
  await page.getByRole("link", { name: "Select again" }).click();
  await page.getByRole("button", { name: "Vote for joy", exact: true }).waitFor();
});

await step("back and forward work as on any site", async () => {
  await page.getByRole("link", { name: "Leaderboard" }).click();
  await page.getByRole("heading", { name: "Leaderboard" }).waitFor();
  await page.goBack();
  await page.getByRole("heading", { name: "Emoji Vote" }).waitFor();
  assert.equal(new URL(page.url()).pathname, "/");
});

await step("dark, and narrow as a phone, nothing is cut off", async () => {
  const dark = await open({ colorScheme: "dark" });
  await dark.goto(base);
  await dark.getByRole("button", { name: "Vote for joy", exact: true }).waitFor();
  await shoot(dark, "vote-dark");
  await board(dark);
  await shoot(dark, "leaderboard-dark");
  await dark.goto(base);
  await dark.getByRole("button", { name: "Vote for doughnut" }).click();
  await dark.getByRole("heading", { name: /Oops/ }).waitFor();
  await shoot(dark, "doughnut-dark");

  const WIDTH = 320;
  const narrow = await open({ viewport: { width: WIDTH, height: 640 }, hasTouch: true, isMobile: true });
  const fits = async (name) => {
    // A phone widens its layout to what does not fit, so measure against the screen and not the window.
    const right = await narrow.evaluate(() =>
      Math.max(...[...document.querySelectorAll("body *")].map((node) => node.getBoundingClientRect().right)));
    assert(right <= WIDTH, `${name} reaches to ${right} px of ${WIDTH}`);
    await shoot(narrow, `${name}-narrow`);
  };
  await narrow.goto(base);
  await narrow.getByRole("button", { name: "Vote for joy", exact: true }).waitFor();
  await fits("vote");
  await narrow.getByRole("button", { name: "Vote for doughnut" }).tap();
  await narrow.getByRole("heading", { name: /Oops/ }).waitFor();
  await fits("doughnut");
  await board(narrow);
  await fits("leaderboard");
});

await browser.close();
assert.deepEqual(complaints, [], "the console is quiet but for the doughnut");
console.log(`ok  the console is quiet but for the doughnut\npictures are in ${pictures}`);
