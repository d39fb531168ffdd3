// Takes the pictures of docs/page.md and README.md anew: `run.sh --pictures`.
//
// Usage: node pictures.mjs EMOJIVOTO DIRECTORY (playwright-core as for mesh.mjs)

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const [program, pictures] = process.argv.slice(2);
assert(program && pictures, "usage: node pictures.mjs EMOJIVOTO DIRECTORY");
mkdirSync(pictures, { recursive: true });

const profiles = mkdtempSync(join(tmpdir(), "mesh-pictures-"));
cpSync(join(dirname(fileURLToPath(import.meta.url)), "../profiles"), profiles, { recursive: true });
const voting = readFileSync(join(profiles, "voting.yaml"), "utf8");
const write = (text) => {
  writeFileSync(join(profiles, ".draft"), text);
  renameSync(join(profiles, ".draft"), join(profiles, "voting.yaml"));
};
const wait = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });

const child = spawn(program, ["--port", "0", "--admin-port", "0", "--plain", "--rate", "20", "--profiles", profiles], { stdio: ["ignore", "pipe", "inherit"] });
const mesh = await new Promise((resolve, reject) => {
  let text = "";
  child.on("exit", (code) => reject(new Error(`emojivoto ended with ${code}: ${text}`)));
  child.stdout.on("data", (data) => {
    text += data;
    const [, url] = text.match(/^mesh page: (http:\/\/[^:]+:\d+)/m) ?? [];
    if (url) resolve(url);
  });
});
child.removeAllListeners("exit");

// A minute and a half of traffic, with an edit that is taken and one that is refused.
await wait(60);
write(voting.replace("attempt: 250ms", "attempt: 200ms"));
await wait(5);
write(voting.replace("attempt: 250ms", "attempt: 10 parsecs"));
await wait(5);
write(voting);
await wait(20);

const browser = await chromium.launch({
  executablePath: process.env.EMOJIVOTO_BROWSER ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const take = async (name, panel, [width, height], colorScheme, work) => {
  const page = await (await browser.newContext({ viewport: { width, height }, colorScheme })).newPage();
  await page.goto(`${mesh}/#${panel}`);
  await page.waitForFunction(() => document.querySelector(".live").textContent.startsWith("as of"));
  await work?.(page);
  await wait(3);
  await page.screenshot({ path: join(pictures, `${name}.png`) });
  await page.context().close();
  console.log(`ok  ${name}`);
};
await take("overview-light", "overview", [1280, 740], "light");
await take("overview-dark", "overview", [1280, 740], "dark");
await take("overview-narrow", "overview", [360, 1180], "light");
await take("routes-dark", "routes", [1280, 820], "dark");
await take("endpoints-light", "endpoints", [1280, 740], "light");
await take("config-light", "config", [1280, 820], "light", (page) => page.locator(".updates summary", { hasText: "+1 −1" }).last().click());
await take("explain-dark", "explain?path=/emojivoto.v1.VotingService/VoteJoy&host=voting-svc.emojivoto:8080&grpc=1", [1280, 820], "dark",
  (page) => page.getByRole("button", { name: "Explain" }).click());
await take("tap-light", "tap?service=voting-svc*", [1280, 820], "light", (page) => page.getByRole("button", { name: "Start" }).click());

await browser.close();
await new Promise((resolve) => { child.on("exit", resolve); child.kill("SIGINT"); });
rmSync(profiles, { recursive: true });
