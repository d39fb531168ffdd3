// Looks at the mesh's own page while emojivoto runs, as an operator would, in headless Chromium: every panel shows the
// true figures of a scripted load, follows by itself, outlives a restart, is accessible, and tells other sites nothing.
//
// Usage: node mesh.mjs EMOJIVOTO SCREENSHOT_DIR   (playwright-core and axe-core are found by NODE_PATH or beside this
// file; run.sh arranges both). EMOJIVOTO_BROWSER names the browser. MESH_PAGE_SECONDS: how long the page must run
// without growing (default 30; before a release 300).

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync, renameSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [program, pictures] = process.argv.slice(2);
assert(program && pictures, "usage: node mesh.mjs EMOJIVOTO SCREENSHOT_DIR");
mkdirSync(pictures, { recursive: true });
const SECONDS = Number(process.env.MESH_PAGE_SECONDS ?? 30);
const PANELS = ["overview", "routes", "endpoints", "slo", "tap", "explain", "config", "identity"];

const profiles = mkdtempSync(join(tmpdir(), "mesh-page-"));
cpSync(join(dirname(fileURLToPath(import.meta.url)), "../profiles"), profiles, { recursive: true });
const write = (name, text) => {
  writeFileSync(join(profiles, `.${name}.draft`), text);
  renameSync(join(profiles, `.${name}.draft`), join(profiles, name));
};

/** Starts the demo; without `rate`, nobody votes but this test. */
async function start(port, rate) {
  const args = ["--port", "0", "--admin-port", String(port), "--plain", "--profiles", profiles, ...(rate ? ["--rate", rate] : ["--no-bot"])];
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  const told = await new Promise((resolve, reject) => {
    child.on("exit", (code) => reject(new Error(`emojivoto ended with ${code}: ${text}`)));
    child.stdout.on("data", (data) => {
      text += data;
      const [, app] = text.match(/ open (http\S+)/) ?? [];
      const [, mesh] = text.match(/^mesh page: (http:\/\/[^:]+:\d+)/m) ?? [];
      const [, endpoints] = text.match(/^endpoints: (\S+)/m) ?? [];
      if (app && mesh && endpoints) resolve({ app, mesh, endpoints });
    });
  });
  child.removeAllListeners("exit");
  return { ...told, async end() { await new Promise((resolve) => { child.on("exit", resolve); child.kill("SIGINT"); }); } };
}

/** Starts the web service alone, in a process as a container runs it: with rules, and with nobody to call. */
async function lonely() {
  const free = () => new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
  const [app, admin] = [await free(), await free()];
  const file = join(profiles, "..", `mesh-page-rules-${process.pid}.yaml`);
  const rules = (spec) => writeFileSync(file, `apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {name: web}\n${spec}\n`);
  rules("spec:\n  default: allow\n  rules:\n  - {name: no-lists, action: deny, request: {pathRegex: /api/list}}\n  - {name: no-icons, action: audit, request: {pathRegex: /favicon.ico}}");
  const child = spawn(program, ["web"], {
    stdio: ["ignore", "ignore", "inherit"],
    env: { ...process.env, RUST_LOG: "off", WEB_PORT: String(app), EMOJISVC_HOST: "emoji-svc.emojivoto:8080", VOTINGSVC_HOST: "voting-svc.emojivoto:8080",
      ENMESH_ADMIN: `127.0.0.1:${admin}`, ENMESH_PROFILES: profiles, ENMESH_DNS: "false", ENMESH_AUTHORIZATION: file },
  });
  const at = { app: `http://127.0.0.1:${app}`, mesh: `http://127.0.0.1:${admin}`, rules };
  while (!await fetch(`${at.mesh}/ready`).then((answer) => answer.ok, () => false)) await new Promise((resolve) => setTimeout(resolve, 50));
  return { ...at, async end() { await new Promise((resolve) => { child.on("exit", resolve); child.kill("SIGINT"); }); rmSync(file); } };
}

async function step(name, work) {
  await work();
  console.log(`ok  mesh page: ${name}`);
}

const browser = await chromium.launch({
  executablePath: process.env.EMOJIVOTO_BROWSER ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP rebound.test 127.0.0.1", "--js-flags=--expose-gc"],
});
const complaints = [];
/** While the process is away, Chromium itself says so on the console. */
let away = false;

async function open(base, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !away) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(base)) complaints.push(`the page asked a stranger: ${request.url()}`);
  });
  page.setDefaultTimeout(15_000);
  return page;
}

let demo = await start(0);
const port = new URL(demo.mesh).port;
const ask = async (path, body) => (await fetch(`${demo.mesh}/api/v1/${path}`, body && { method: "POST", body: JSON.stringify(body) })).json();
const call = async (path, times) => { for (let i = 0; i < times; i += 1) await fetch(`${demo.app}${path}`).then((answer) => answer.text()); };
const show = (page, id, query = "window=5m") => page.goto(`${demo.mesh}/#${id}?${query}`);
const row = (page, ...words) => words.reduce((rows, word) => rows.filter({ hasText: word }), page.locator("tbody tr"));
const cell = (line, label) => line.locator(`td[data-label="${label}"]`);
const says = (locator, text) => locator.filter({ hasText: text }).first().waitFor();
const ms = (value) => (value < 0.995 ? `${Math.round(value * 1000)} µs` : value < 9.95 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`);
/** Tries again until it holds: a young process's rates fall from one question to the next. */
async function eventually(check) {
  for (let tries = 0; ; tries += 1) {
    try { return await check(); } catch (error) { if (tries > 30) throw error; }
    await page.waitForTimeout(500);
  }
}
/** What is shown with one digit behind the point, a moment after it was asked. */
const near = (shown, told, what) => assert(Math.abs(shown - told) <= 0.06 + told * 0.15, `${what}: ${shown} is shown, ${told} is told`);
const settle = (page) => page.waitForFunction(() => document.querySelector(".live").textContent.startsWith("as of"));

// 20 lists, 12 votes of which 4 are for the doughnut, in order.
await call("/api/list", 20);
await call("/api/vote?choice=:joy:", 8);
await call("/api/vote?choice=:doughnut:", 4);
const page = await open(demo.mesh, { colorScheme: "light" });

await step("the overview tells the load, the map and what is wrong", async () => {
  await show(page, "overview");
  await says(page.locator(".findings li"), "voting-svc VoteDoughnut fails: 0.0 % success");
  await says(page.locator(".findings li"), "4 of 4 requests failed");
  await says(page.locator(".findings li"), "web-svc GET /api/vote fails: 66.7 % success");
  // 32 from browsers, 12 votes and 44 to emoji (a list each, and a look-up for each vote).
  const tile = (name) => page.locator(".tiles > div", { hasText: name });
  const rows = (await ask("stat?window=5m&kind=route")).rows;
  const sum = (service, direction) => rows.filter((it) => it.service.startsWith(service) && it.direction === direction).reduce((sum, it) => sum + it.requests, 0);
  assert.deepEqual([sum("web-svc", "inbound"), sum("voting-svc", "outbound"), sum("emoji-svc", "outbound")], [32, 12, 32]);
  await says(tile("Success"), "8 of 76 failed");
  await says(tile("Success"), "89.47 %");
  await says(tile("Certificates"), "until the first one ends");
  const edge = async (words) => assert.match((await page.locator(".edge title").allTextContents()).join("\n"), words);
  await edge(/web-svc to voting-svc: 66\.67 % success, .* mutual TLS/);
  await edge(/web-svc to emoji-svc: 100\.00 % success, .* mutual TLS/);
  await edge(/unknown to web-svc: 87\.50 % success, .* no mutual TLS/);
  await eventually(async () => {
    const { edges } = await ask("edges?window=5m");
    const titles = (await page.locator(".edge title").allTextContents()).join("\n");
    for (const { src, dst, requests, rps } of edges) {
      const [, shown] = titles.match(new RegExp(`${src ?? "unknown"} to ${dst}: .* success, ([\\d.]+) requests/s`));
      near(Number(shown), rps, `${src} to ${dst}`);
      assert.equal(requests, { "web-svc voting-svc": 12, "web-svc emoji-svc": 32 }[`${src} ${dst}`] ?? 32);
    }
    near(Number((await tile("Calls").locator(".big").innerText()).replace("/s", "")), edges.reduce((sum, it) => sum + it.rps, 0), "calls");
  });
  assert.equal(await tile("Replicas").locator(".big").innerText(), "4 of 4");
  assert.equal(await tile("Configuration").locator(".small").innerText(), "6 processes");
  assert.equal(await page.locator(".map .lock:not(.off)").count(), 2);
  assert.equal(await page.locator(".map .lock.off").count(), 1);
  assert.equal(await page.locator(".chart canvas").count(), 1);
});

await step("routes: effective and actual, sorted, filtered, in detail", async () => {
  await show(page, "routes");
  const vote = row(page, "GET /api/vote", "received");
  await says(cell(vote, "Success"), "66.67 %");
  await says(cell(row(page, "VoteDoughnut", "sent"), "Actual"), "0.00 %");
  await says(cell(row(page, "GET /api/list", "received"), "Success"), "100.00 %");
  const { rows } = await ask("stat?window=5m&kind=route");
  const figures = async (of) => (await ask("stat?window=5m&kind=route")).rows.find((it) => ["service", "route", "direction"].every((key) => it[key] === of[key]));
  for (const it of rows.filter((row) => row.requests)) {
    const line = row(page, it.route, it.service.split(".")[0], it.direction === "outbound" ? "sent" : "received").filter({ has: page.getByRole("button", { name: it.route, exact: true }) });
    assert.equal(await line.count(), 1, it.route);
    const text = async (label) => (await cell(line, label).innerText()).replace(/[✕▲] /, "");
    assert.equal(await text("Success"), `${(it.success_rate * 100).toFixed(2)} %`, it.route);
    await eventually(async () => near(Number(await text("Req/s")), (await figures(it)).rps, `${it.route} req/s`));
    assert.equal(await text("P99"), ms(it.latency_ms.p99), `${it.route} p99`);
    assert.equal(await text("P50"), ms(it.latency_ms.p50), `${it.route} p50`);
    assert.equal(await text("In flight"), "0");
    if (it.actual) {
      assert.equal(await text("Actual"), `${(it.actual.success_rate * 100).toFixed(2)} %`, `${it.route} actual`);
      await eventually(async () => near(Number(await text("Actual req/s")), (await figures(it)).actual.rps, `${it.route} actual req/s`));
    }
    const most = await line.locator(".spark").getAttribute("aria-label");
    // A step of the sparkline is 5 s: the load came within one or two.
    assert(Number(most.match(/: ([\d.]+) requests/)[1]) >= it.requests / 5 / 3, `${it.route}: ${most} of ${it.requests}`);
  }
  await page.getByRole("button", { name: /^Success/ }).click();
  await page.getByRole("button", { name: /^Success/ }).click();
  assert.match(await page.locator("tbody tr").first().innerText(), /VoteDoughnut/);
  await page.getByLabel("filter routes").fill("vote sent");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 2);
  await page.getByRole("button", { name: "VoteDoughnut" }).press("Enter");
  await says(page.locator("dd"), "4: 0 went well, 4 failed, 0 cancelled");
  await says(page.locator("dd"), "request 2s");
  assert(await page.locator(".chart canvas").count() >= 2, "the chosen route has charts");
});

await step("endpoints: every replica, its breaker, its cost, and why one is preferred", async () => {
  await show(page, "endpoints");
  const voting = page.locator("section", { has: page.getByRole("heading", { name: "web-svc → voting-svc" }) });
  await voting.waitFor();
  assert.equal(await voting.locator("tbody tr").count(), 3);
  // The directory of endpoints is watched: one replica gets a zone and half the weight of the others.
  const file = join(demo.endpoints, "voting-svc.yaml");
  const before = readFileSync(file, "utf8");
  const [, first] = before.match(/address: (\S+)/);
  writeFileSync(`${file}.draft`, before.replace(`address: ${first}`, `address: ${first}\n    zone: west\n    weight: 0.5`));
  renameSync(`${file}.draft`, file);
  const lines = voting.locator("tbody tr");
  await says(cell(lines.filter({ hasText: first }), "Zone"), "west");
  assert.equal(await cell(lines.filter({ hasText: first }), "Weight").innerText(), "0.5");
  const balanced = async () => Object.values((await ask("inspect")).inspections).flatMap((it) => it.services).find((it) => it.name.startsWith("voting-svc") && it.balancer);
  const known = await balanced();
  const told = (await ask("stat?window=5m&kind=endpoint")).rows.filter((it) => it.service.startsWith("voting-svc"));
  assert.equal(told.reduce((sum, it) => sum + it.requests, 0), 12 + (await ask("stat?window=5m&kind=route")).rows.reduce((sum, it) => sum + it.retries, 0));
  for (const it of known.endpoints) {
    const line = lines.filter({ hasText: it.addr });
    const figures = told.find((row) => row.endpoint === it.addr);
    const text = (label) => cell(line, label).innerText();
    await eventually(async () => near(Number((await text("Req/s")).replace("–", "0")), (await ask("stat?window=5m&kind=endpoint")).rows.find((row) => row.endpoint === it.addr)?.rps ?? 0, `${it.addr} req/s`));
    if (figures) assert.equal(await text("Success"), figures.success_rate === null ? "–" : `${(figures.success_rate * 100).toFixed(1)} %`);
    assert.equal(await text("In flight"), "0");
    // Health comes back and latencies fade while nobody asks.
    await eventually(async () => {
      const { latency_ms, health } = (await balanced()).endpoints.find((of) => of.addr === it.addr);
      assert.equal(await text("Latency"), latency_ms === null ? "–" : ms(latency_ms));
      assert(Math.abs(Number.parseInt(await text("Health"), 10) - health * 100) <= 2, `${await text("Health")} of ${health}`);
    });
    assert.match(await text("Cost"), /×/);
  }
  writeFileSync(`${file}.draft`, before);
  renameSync(`${file}.draft`, file);
  await says(voting.locator("tbody tr"), "open");
  await says(voting, /Preferred now|All cost about the same/);
  await says(voting.locator("tbody tr"), "emojivoto.example/ns/emojivoto/sa/voting");
});

await step("objectives: what was reached, and the burning budget", async () => {
  await show(page, "slo");
  const service = row(page, "voting-svc", "whole service · sent");
  await says(cell(service, "Bad of all"), "4 of 12");
  await says(cell(service, "Reached"), "66.667 %");
  await says(cell(service, "Budget left"), "overspent");
  await says(row(page, "Vote · sent", "99.9 %").locator("td"), "0 of 8");
  // Four of twelve fail where one of a hundred may: 33 times as fast as the budget has it, in every window.
  await says(service.locator("td"), /1h\/5m: 33\.3× \/ 33\.3× — page/);
  await says(row(page, "Vote · sent", "99.9 %").locator("td"), /1h\/5m: 0\.0× \/ 0\.0×/);
});

await step("tap: live requests of every process with their ends, as the filters say", async () => {
  const { processes } = await ask("inspect");
  const tap = async (query, calls, seen) => {
    await show(page, "tap", query);
    await page.reload();
    await page.getByRole("button", { name: "Start" }).click();
    await says(page.locator("[role=status]"), "0 requests seen");
    // Each process is watched a moment after the first.
    const watched = query.includes("process=") ? 1 : processes.length;
    while (await observers() < watched) await page.waitForTimeout(20);
    for (const [path, times] of calls) await call(path, times);
    await says(page.locator("[role=status]"), new RegExp(`^${seen} requests seen$`));
    return page.locator("tbody tr");
  };
  const observers = async () => {
    const told = await Promise.all(processes.map(async (it) => (await fetch(`${it.addr || demo.mesh}/metrics`)).text()));
    return told.filter((text) => /^enmesh_tap_observers [1-9]/m.test(text)).length;
  };
  const doughnuts = [["/api/vote?choice=:doughnut:", 2], ["/api/vote?choice=:joy:", 2]];
  let rows = await tap("route=VoteDoughnut", doughnuts, 4);
  for (const [way, words] of [["sent, mutual TLS with voting", /web-svc → 127\.0\.0\.1:\d+/], ["received at 127.0.0.1", /127\.0\.0\.1:\d+ → voting-svc/]]) {
    const of = rows.filter({ hasText: way });
    assert.equal(await of.count(), 2, way);
    const text = await of.first().innerText();
    assert.match(text, words);
    assert.match(text, way.startsWith("sent") ? /mutual TLS with voting/ : /at 127\.0\.0\.1:\d+, mutual TLS with web/);
    assert.match(text, /POST \/emojivoto\.v1\.VotingService\/VoteDoughnut/);
    assert.match(text, /200, gRPC 2\s+failure, grpc/);
    assert.match(text, /VoteDoughnut[\s\S]* (ms|µs)[\s\S]* B/);
  }
  rows = await tap("route=VoteDoughnut&direction=outbound&outcome=failure", doughnuts, 2);
  rows = await tap("path=/api/*&status=5xx", doughnuts, 2);
  await says(rows.first(), "GET /api/vote");
  rows = await tap("service=emoji-svc*&direction=inbound&method=POST&source_identity=spiffe://emojivoto.example/ns/emojivoto/sa/web", doughnuts, 4);
  rows = await tap("outcome=cancelled&route=VoteDoughnut", doughnuts, 0);
  const web = processes.find((it) => it.name.startsWith("web-svc"));
  rows = await tap(`process=${web.id}&route=VoteDoughnut`, doughnuts, 2);
  rows = await tap("route=VoteDoughnut&headers=1", doughnuts, 4);
  await rows.first().getByText("request headers").click();
  await says(rows.first(), "content-type: application/grpc");
  await page.getByRole("button", { name: "Stop" }).click();
  while (await observers() > 0) await page.waitForTimeout(20);
});

await step("explain: the route, the timeouts, who may, and why no other", async () => {
  await show(page, "explain");
  await page.getByLabel("Service").fill("voting-svc.emojivoto:8080");
  await page.getByLabel("Path").fill("/emojivoto.v1.VotingService/VoteJoy");
  await page.getByLabel("gRPC").check();
  await page.getByRole("button", { name: "Explain" }).click();
  await says(page.locator(".verdict"), "by route Vote");
  await says(page.locator("dd"), "request 2s, attempt 250ms");
  await says(page.locator("dd"), "at most 3 attempts");
  await says(page.locator("dd"), "voting-svc.emojivoto:8080: 100.0 %");
  await says(page.locator("dd"), "lets everybody in");
  await says(page.locator(".why li"), /^VoteDoughnut: path .* does not match$/);
});

await step("configuration: an update with what it changed, and a refusal that changes nothing", async () => {
  await show(page, "config");
  const text = readFileSync(join(profiles, "voting.yaml"), "utf8");
  write("voting.yaml", text.replace("attempt: 250ms", "attempt: 200ms"));
  const update = page.locator(".updates li", { hasText: "profile of voting-svc" }).filter({ hasText: "+1 −1" });
  await update.locator("summary").click();
  await says(update.locator(".del"), "attempt: 250ms");
  await says(update.locator(".add"), "attempt: 200ms");
  write("voting.yaml", text.replace("attempt: 250ms", "attempt: 10 parsecs"));
  await says(page.locator("section[aria-label='Faults now'] li"), "10 parsecs");
  await says(page.locator("section[aria-label='Refused inputs'] li"), "10 parsecs");
  await page.screenshot({ path: join(pictures, "mesh-config-light.png") });
  write("voting.yaml", text);
  await says(page.locator("section[aria-label='Faults now']"), "None: everything that was given is in use.");
  const budget = row(page, "voting-svc.emojivoto:8080", "web-svc");
  await says(budget.locator("td"), "ratio 0.2, min per second 10, ttl 10s");
  await says(cell(budget, "Retries left now"), /^1\d\d$/);
  const processes = page.locator("section[aria-label=Processes] tbody tr");
  for (const { name, generation, services } of Object.values((await ask("inspect")).inspections)) {
    const line = processes.filter({ hasText: name.split(".")[0] }).filter({ has: page.locator('td[data-label="Generation"]', { hasText: new RegExp(`^${generation}$`) }) });
    await line.first().waitFor();
    assert.equal(await cell(line.first(), "Services").innerText(), String(services.length), name);
  }
  // A limit of requests at once, and what it holds now.
  write("voting.yaml", `${text}  limits: {maxRequests: 7}\n`);
  await says(budget.locator("td"), "0 of at most 7 under way");
  write("voting.yaml", text);
  await says(cell(budget, "Limits"), "none but the defaults");
});

await step("routes: how failures ended is told; else there is no such column", async () => {
  await show(page, "routes");
  await says(cell(row(page, "VoteDoughnut", "sent"), "Why"), /^\d+ gRPC UNKNOWN$/);
  await says(cell(row(page, "GET /api/vote", "received"), "Why"), /^\d+ status 500$/);
  await page.getByLabel("filter routes").fill("list");
  await page.getByRole("columnheader", { name: "Why" }).waitFor({ state: "hidden" });
  await show(page, "routes", "window=1m");
  const text = readFileSync(join(profiles, "voting.yaml"), "utf8");
  write("voting.yaml", text.replace("  - name: Vote\n", "  - name: Vote\n    rateLimits: [{requests: 1, per: 1h, burst: 1}]\n"));
  const limited = async () => Object.values((await ask("inspect")).inspections).some((it) => it.name.startsWith("web-svc") && JSON.stringify(it.updates).includes("rateLimits"));
  while (!await limited()) await page.waitForTimeout(50);
  await call("/api/vote?choice=:joy:", 5);
  await says(cell(row(page, "Vote", "voting-svc", "sent"), "Why"), "4 shed (rate limited)");
  await show(page, "overview");
  await says(page.locator(".findings li"), /: 4 shed \(rate limited\); its callers refused them: limits, breakers and queues do$/);
  write("voting.yaml", text);
});

await step("identity: each process's certificate and time to its end, and every connection", async () => {
  await show(page, "identity");
  const web = page.locator("section[aria-label=Certificates] tbody tr", { hasText: "emojivoto.example/ns/emojivoto/sa/web" });
  await says(web, "valid");
  const { identity, at_ms } = Object.values((await ask("inspect")).inspections).find((it) => it.name.startsWith("web-svc"));
  const minutes = Math.floor((identity.not_after_ms - at_ms) / 60_000);
  assert.match(await cell(web, "Ends in").innerText(), new RegExp(`^(${minutes}|${minutes + 1}|${minutes - 1}) min `));
  assert.equal(await cell(web, "No.").innerText(), String(identity.epoch));
  assert.equal(await page.locator("section[aria-label=Certificates] tbody tr").count(), 6);
  await says(row(page, "web-svc", "voting-svc", "mutual TLS").locator("td"), "emojivoto.example/ns/emojivoto/sa/voting");
});

await step("another site's page and a foreign name get nothing", async () => {
  const stranger = createServer((_, response) => response.setHeader("content-type", "text/html").end("<!doctype html>")).listen(0, "127.0.0.1");
  await new Promise((resolve) => stranger.once("listening", resolve));
  const context = await browser.newContext();
  const evil = await context.newPage();
  await evil.goto(`http://localhost:${stranger.address().port}/`);
  const got = await evil.evaluate(async (mesh) => {
    const tried = [];
    for (const [path, options] of [["/api/v1/inspect", {}], ["/api/v1/stat", { mode: "no-cors" }], ["/api/v1/explain", { method: "POST", mode: "no-cors", body: "{}" }], ["/metrics", {}]]) {
      tried.push(await fetch(mesh + path, options).then((answer) => answer.text(), () => ""));
    }
    tried.push(await new Promise((resolve) => {
      const script = document.createElement("script");
      [script.onload, script.onerror] = [() => resolve("loaded"), () => resolve("")];
      script.src = `${mesh}/page/dom.js`;
      document.head.append(script);
    }));
    return tried;
  }, demo.mesh);
  assert.deepEqual(got, ["", "", "", "", ""]);
  // A name of the attacker's that resolves to this machine: one origin for the browser, a foreign Host for the server.
  for (const path of ["/", "/api/v1/inspect", "/metrics"]) {
    const answer = await evil.goto(`http://rebound.test:${port}${path}`);
    assert.equal(answer.status(), 403);
    assert.doesNotMatch(await answer.text(), /emojivoto|<html/);
  }
  await context.close();
  stranger.close();
});

await step("the accessibility check (axe-core) finds nothing, in light and dark, wide and narrow", async () => {
  for (const [name, options] of [["light", { colorScheme: "light" }], ["dark", { colorScheme: "dark" }], ["narrow", { colorScheme: "light", viewport: { width: 360, height: 760 } }]]) {
    const look = await open(demo.mesh, options);
    for (const id of PANELS) {
      await show(look, id);
      await settle(look);
      await look.waitForTimeout(300);
      const { width, right } = await look.evaluate(() => ({ width: innerWidth, right: document.documentElement.scrollWidth }));
      assert(right <= width, `${id} ${name} reaches to ${right} px of ${width}`);
      await look.evaluate(axe);
      const { violations } = await look.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
      assert.deepEqual(violations.map((it) => `${it.id}: ${it.nodes.map((node) => node.html.slice(0, 120)).join(" ")}`), [], `${id} ${name}`);
      await look.screenshot({ path: join(pictures, `mesh-${id}-${name}.png`), fullPage: name === "narrow" });
    }
    await look.context().close();
  }
});

await page.goto("about:blank");
await demo.end();
demo = await start(port);

await step("why: a replica makes a route slow, retries hide it, and both are said", async () => {
  const text = readFileSync(join(profiles, "voting.yaml"), "utf8");
  // Some votes come to the slow replica, which is the last one, and are tried again elsewhere.
  const file = join(demo.endpoints, "voting-svc.yaml");
  const last = readFileSync(file, "utf8").match(/address: (\S+)/g).at(-1);
  writeFileSync(`${file}.draft`, readFileSync(file, "utf8").replace(last, `${last}\n    weight: 0.25`));
  renameSync(`${file}.draft`, file);
  write("voting.yaml", `${text}  balancer: {algorithm: RoundRobin}\n`);
  const taken = async () => Object.values((await ask("inspect")).inspections).some((it) => it.services.some((service) => service.balancer?.algorithm === "round_robin" && service.endpoints.some((endpoint) => endpoint.weight_milli === 250)));
  while (!await taken()) await page.waitForTimeout(50);
  await call("/api/vote?choice=:joy:", 36);
  await show(page, "overview");
  const found = (text) => page.locator(".findings li", { hasText: text });
  await says(found("voting-svc Vote is slow: p99 2"), /half of its requests take [\d.]+ (ms|µs); 127\.0\.0\.1:\d+ takes 25\d ms, 127\.0\.0\.1:\d+ [\d.]+ (ms|µs)/);
  await says(found("web-svc GET /api/vote is slow: p99 2"), /it waits for voting-svc, whose p99 is 2\d\d ms/);
  await says(found("Retries hide failures of voting-svc Vote"), /callers see 100\.0 %; \d+ retries for 36 requests; \d+ late \(attempt timeout\); all of its failures are at 127\.0\.0\.1:\d+/);
  await found("voting-svc Vote is slow").getByRole("link").click();
  await page.getByRole("button", { name: "Vote", exact: true }).last().click();
  await says(page.locator("dd"), /late \(attempt timeout\); all of its failures are at/);
  write("voting.yaml", text);
});

await step("why: a breaker that shuts says why, where, and what it kept from whom", async () => {
  const text = readFileSync(join(profiles, "voting.yaml"), "utf8");
  write("voting.yaml", `${text}  failureAccrual: {detectors: [{consecutive: {maxFailures: 2}}], minPenalty: 50s}\n`);
  const taken = async () => Object.values((await ask("inspect")).inspections).some((it) => it.name.startsWith("web-svc") && JSON.stringify(it.updates).includes("minPenalty"));
  while (!await taken()) await page.waitForTimeout(50);
  await call("/api/vote?choice=:doughnut:", 12);
  await show(page, "overview");
  await says(page.locator(".findings li"), /web-svc leaves 127\.0\.0\.1:\d+ of voting-svc alone\s*2 .*; tried again in/);
  await show(page, "endpoints");
  const voting = page.locator("section", { has: page.getByRole("heading", { name: "web-svc → voting-svc" }) });
  await says(voting.locator("tbody tr"), /✕shut: 2 .*; tried again in/);
  await says(voting.locator("header"), /· 1 left alone/);
  await voting.locator("summary").click();
  await says(voting.locator("li"), /127\.0\.0\.1:\d+ was shut for .*: 2 /);
  await says(page.getByRole("navigation").getByRole("link", { name: /^Endpoints/ }), "1");
  write("voting.yaml", text);
});

await step("why: who is denied by what rule, what a rule on trial would refuse, and who is not there", async () => {
  const alone = await lonely();
  const base = alone.mesh;
  const other = await open(base);
  const get = (path, times) => Promise.all(Array.from({ length: times }, () => fetch(`${alone.app}${path}`).then((answer) => answer.text())));
  await other.goto(`${base}/#tap?outcome=audited`);
  await other.getByRole("button", { name: "Start" }).click();
  await says(other.locator("[role=status]"), "0 requests seen");
  await get("/api/list", 3);
  await get("/api/leaderboard", 2);
  await get("/favicon.ico", 4);
  await says(other.locator("[role=status]"), "4 requests seen");
  await says(other.locator("tbody tr").first(), "on trial: no-icons would refuse it");
  await other.goto(`${base}/#overview`);
  const found = (text) => other.locator(".findings li", { hasText: text });
  await says(found("web-svc GET /api/list fails: 0.0 % success"), "3 of 3 requests failed");
  await says(found("web-svc GET /api/list fails"), /: 3 denied; authorization refused them by no-lists$/);
  await says(found("On trial: no-icons would refuse requests of web-svc"), "4 so far; they are let in");
  await says(found("voting-svc"), /unreached \(no endpoint\); no endpoint took them/);
  await other.goto(`${base}/#identity`);
  const rule = (name) => other.locator("section[aria-label=Authorization] tbody tr", { hasText: name });
  await says(rule("no-lists").locator("td"), "refuses");
  await says(cell(rule("no-lists"), "Refused"), /^3$/);
  await says(cell(rule("no-icons"), "Refused"), /^4$/);
  await says(rule("else").locator("td"), "lets in");
  alone.rules("spec: {default: perhaps}");
  await other.goto(`${base}/#config`);
  await says(other.locator("section[aria-label='Faults now'] li"), "perhaps");
  await other.context().close();
  await alone.end();
});

await page.goto("about:blank");
await demo.end();
demo = await start(port, "20");

await step(`it follows by itself and does not grow in ${SECONDS} s`, async () => {
  const context = page.context();
  const session = await context.newCDPSession(page);
  await session.send("Performance.enable");
  const measure = async () => {
    for (let i = 0; i < 3; i += 1) await session.send("HeapProfiler.collectGarbage");
    const { metrics } = await session.send("Performance.getMetrics");
    const of = (name) => metrics.find((it) => it.name === name).value;
    return { heap: of("JSHeapUsedSize"), nodes: of("Nodes"), listeners: of("JSEventListeners") };
  };
  const seen = new Set();
  const round = async () => {
    for (const id of PANELS) {
      await show(page, id, id === "tap" ? "" : "window=1m");
      if (id === "tap") await page.getByRole("button", { name: "Start" }).click();
      await page.waitForTimeout(SECONDS > 100 ? 3000 : 1000);
      seen.add(await page.locator(".live").innerText());
    }
    await show(page, "overview", "");
    await settle(page);
  };
  await page.goto(demo.mesh);
  await round();
  await round();
  const before = await measure();
  const end = Date.now() + SECONDS * 1000;
  while (Date.now() < end) await round();
  const after = await measure();
  console.log(`    before ${JSON.stringify(before)}\n    after  ${JSON.stringify(after)}`);
  assert(after.heap - before.heap < 1.5e6, "the heap grows");
  assert(after.nodes - before.nodes < 300, "elements are left behind");
  assert(after.listeners - before.listeners < 100, "listeners are left behind");
  assert(seen.size > 3, `the page stood still: ${[...seen].join()}`);
});

await step("it outlives a restart of the process", async () => {
  await show(page, "routes", "window=1m");
  await settle(page);
  away = true;
  await demo.end();
  await says(page.locator("#banner"), /^No answer since .*Trying again/);
  assert(await page.locator("tbody tr").count() > 0, "what was last known stays");
  demo = await start(port);
  await call("/api/list", 3);
  await page.locator("#banner").waitFor({ state: "hidden" });
  away = false;
  await page.waitForFunction(() => {
    const line = [...document.querySelectorAll("tbody tr")].find((tr) => /GET \/api\/list/.test(tr.textContent) && /received/.test(tr.textContent));
    return line?.querySelector('[data-label="Success"]').textContent === "100.00 %";
  });
});

await browser.close();
await demo.end();
rmSync(profiles, { recursive: true });
assert.deepEqual(complaints, [], "the console is quiet");
console.log("ok  mesh page: the console is quiet");
