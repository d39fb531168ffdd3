// Starts the page: panels by address (`#routes?q=vote`), one poll for all of them, and the state of the connection.

import { Poll, get } from "/page/api.js";
import { h, keyed, setText, clock, short } from "/page/dom.js";
import { overview } from "/page/overview.js";
import { routes } from "/page/routes.js";
import { endpoints } from "/page/endpoints.js";
import { slo } from "/page/slo.js";
import { tap } from "/page/tap.js";
import { explain } from "/page/explain.js";
import { config, name } from "/page/config.js";
import { identities } from "/page/identity.js";

const PANELS = [overview, routes, endpoints, slo, tap, explain, config, identities];
/** What every panel needs, for the signs on the tabs. */
const ALWAYS = ["inspect"];
const EVERY_MS = 2000;

const byId = (id) => document.getElementById(id);
const [main, tabs, banner, live, pause, processes, windows] = ["main", "tabs", "banner", "live", "pause", "process", "window"].map(byId);

let shown = null;
let params = {};
let state = {};
let last = null;

// ---- the address ----

function read() {
  const [id, query] = location.hash.slice(1).split("?");
  return { id: PANELS.some((panel) => panel.id === id) ? id : "overview", params: Object.fromEntries(new URLSearchParams(query)) };
}

function address(id, next) {
  const query = new URLSearchParams(Object.entries(next).filter(([, value]) => value)).toString();
  return `#${id}${query ? `?${query}` : ""}`;
}

/** What all panels share. */
const common = () => ({ window: params.window ?? "", process: params.process ?? "" });

function setParam(key, value, quiet) {
  params = { ...params, [key]: value };
  history.replaceState(null, "", address(shown.panel.id, params));
  links();
  if (!quiet) shown.view.params?.(params);
}

function links() {
  for (const link of tabs.querySelectorAll("a")) link.setAttribute("href", address(link.dataset.id, common()));
}

function go() {
  const next = read();
  params = next.params;
  windows.value = params.window || "1m";
  if (shown?.panel.id !== next.id) {
    const panel = PANELS.find((it) => it.id === next.id);
    const moved = shown !== null;
    shown?.view.gone?.();
    const view = panel.make({ params, setParam });
    shown = { panel, view };
    main.replaceChildren(h("h2", { class: "hidden", text: panel.title }), view.element);
    document.title = `${panel.title} · enmesh`;
    for (const link of tabs.querySelectorAll("a")) {
      if (link.dataset.id === panel.id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (moved) main.focus({ preventScroll: true });
    if (moved) scrollTo(0, 0);
    if (last) view.update(chosen());
  } else shown.view.params?.(params);
  links();
  poll.now();
}

// ---- the figures ----

async function question() {
  const { panel } = shown;
  const of = { window: params.window || "1m", ...(params.process ? { process: params.process } : {}) };
  const asked = {
    stat: () => get("stat", { ...of, ...(panel.series ? { series: 1 } : {}) }),
    edges: () => get("edges", of), slo: () => get("slo", of), inspect: () => get("inspect").then(joined),
  };
  const names = [...new Set([...panel.needs, ...ALWAYS])];
  const answers = await Promise.allSettled(names.map((name) => asked[name]()));
  const refused = answers.find((answer) => answer.status === "rejected");
  if (answers.every((answer) => answer.status === "rejected")) throw refused.reason;
  const told = {};
  answers.forEach((answer, at) => { if (answer.status === "fulfilled") told[names[at]] = answer.value; });
  return { told, refused: refused?.reason };
}

/** Each process with what it knows. */
function joined({ processes, inspections }) {
  return { processes: processes.map((it) => ({ ...it, addr: it.addr || location.origin, inspection: inspections[it.id] ?? null })) };
}

function told(answer, error) {
  if (error) {
    live.className = "live stale";
    setText(live, "no answer");
    banner.hidden = false;
    setText(banner, `No answer${last ? ` since ${clock(last)}: what you see is as of then` : ""}. Trying again…`);
    return;
  }
  last = Date.now();
  state = { ...state, ...answer.told };
  live.className = "live";
  setText(live, `as of ${clock(last)}`);
  banner.hidden = !answer.refused;
  if (answer.refused) setText(banner, `Some figures are missing: ${answer.refused.message}`);
  who();
  const seen = chosen();
  shown.view.update(seen);
  badges(seen);
}

/** The state of the chosen process, or of all; and who all are. */
function chosen() {
  const everybody = state.inspect?.processes;
  const one = params.process && everybody?.find((it) => it.id === params.process);
  return { ...state, everybody, ...(one ? { inspect: { ...state.inspect, processes: [one] } } : {}) };
}

function who() {
  const all = state.inspect?.processes ?? [];
  setText(byId("title"), all.length > 1 ? `enmesh · ${all.length} processes` : `enmesh · ${short(all[0]?.name) || "one process"}`);
  const options = [{ id: "", text: "all" }, ...all.map((it) => ({ id: it.id ?? "", text: it.error ? `${it.name || it.addr} (no answer)` : name(it, all) })).filter((it) => it.id)];
  keyed(processes, options, (it) => it.id, (it) => h("option", { value: it.id }), (option, it) => setText(option, it.text));
  processes.parentElement.hidden = all.length < 2;
  if (params.process && !all.some((it) => it.id === params.process)) params.process = "";
  processes.value = params.process ?? "";
}

function badges(seen) {
  PANELS.forEach((panel, at) => {
    const link = tabs.children[at].firstChild;
    const count = panel.badge?.(seen) ?? 0;
    link.lastChild.hidden = !count;
    setText(link.lastChild.firstChild, count ? String(count) : "");
  });
}

// ---- the start ----

tabs.append(...PANELS.map((panel) => h("li", {}, h("a", { "data-id": panel.id }, panel.title,
  h("span", { hidden: true }, h("span", { class: "badge" }), h("span", { class: "hidden", text: " to look at" }))))));
const poll = new Poll(EVERY_MS, question, told);
windows.addEventListener("change", () => { setParam("window", windows.value); poll.now(); });
processes.addEventListener("change", () => { setParam("process", processes.value); poll.now(); });
pause.addEventListener("click", () => {
  poll.paused = !poll.paused;
  pause.setAttribute("aria-pressed", String(poll.paused));
  setText(pause, poll.paused ? "Go on" : "Pause");
  shown.view.pause?.(poll.paused);
  poll.now();
});
addEventListener("hashchange", go);
go();
