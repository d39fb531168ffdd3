// Each service's replicas, as each caller's balancer sees them, and why it prefers one.

import { bar, card, clock, count, h, keyed, mark, millis, percent, rate, setText, short } from "/page/dom.js";
import { table } from "/page/table.js";

export const endpoints = {
  id: "endpoints", title: "Endpoints", needs: ["stat"],
  make() {
    const list = h("div", { class: "panel" });
    const empty = h("p", { class: "empty", text: "No process here calls anybody yet." });
    return {
      element: h("div", { class: "panel" }, list, empty),
      update({ inspect, stat }) {
        const groups = (inspect?.processes ?? []).flatMap((process) => (process.inspection?.services ?? [])
          .filter((service) => service.balancer)
          .map((service) => ({ key: `${process.id} ${service.name}`, process, service, sent: sent(stat, service) })));
        empty.hidden = groups.length > 0;
        keyed(list, groups, (group) => group.key, make, (element, group) => element.update(group));
      },
    };
  },
  badge: ({ inspect }) => (inspect?.processes ?? []).flatMap((it) => it.inspection?.services ?? []).flatMap((it) => it.endpoints).filter((it) => !it.open).length,
};

/** Requests per second to each address, where the figures tell them. */
function sent(stat, service) {
  const rows = (stat?.rows ?? []).filter((row) => row.kind === "endpoint" &&
    (row.service === service.name || row.service === service.label));
  return new Map(rows.map((row) => [row.endpoint, row]));
}

function make({ process, service }) {
  const grid = table({
    caption: `Replicas of ${service.name}, called by ${process.name}`, keyOf: (row) => row.addr, sortBy: { key: "addr", dir: "ascending" }, empty: "No replica is known.",
    columns: [
      { key: "addr", label: "Address", head: true, sort: (row) => row.addr, cell: address },
      { key: "state", label: "Breaker", sort: (row) => row.breaker.state, cell: state, wrap: true },
      { key: "rps", label: "Req/s", num: true, sort: (row) => row.figures?.rps, text: (row) => rate(row.figures?.rps) },
      { key: "success", label: "Success", num: true, sort: (row) => row.figures?.success_rate, text: (row) => percent(row.figures?.success_rate, 1) },
      { key: "flight", label: "In flight", num: true, sort: (row) => row.in_flight, text: (row) => String(row.in_flight) },
      { key: "latency", label: "Latency", num: true, sort: (row) => row.latency_ms, text: (row) => millis(row.latency_ms), title: "the latency that the balancer believes in" },
      { key: "health", label: "Health", num: true, sort: (row) => row.health, text: (row) => percent(row.health, 0), title: "the share of requests that went well lately" },
      { key: "load", label: "Cost", num: true, sort: (row) => row.load, cell: cost, title: "what the balancer compares, in times of the cheapest one: the less, the likelier to be picked" },
      { key: "weight", label: "Weight", num: true, sort: (row) => row.weight_milli, text: (row) => String(row.weight_milli / 1000) },
      { key: "zone", label: "Zone", sort: (row) => row.zone, text: (row) => row.zone ?? "–" },
      { key: "identity", label: "Must prove", sort: (row) => row.identity, text: (row) => row.identity?.replace("spiffe://", "") ?? "nothing: plain text", wrap: true },
    ],
  });
  const why = h("p", { class: "note" });
  const rule = h("span", { class: "note" });
  const events = h("ul", { class: "why" });
  const log = h("details", {}, h("summary", { text: "What the breakers did" }), events);
  const box = card(`${short(process.name)} → ${short(service.name)}`, why, grid.element, log);
  box.body.classList.add("flush");
  why.className = "empty";
  log.className = "empty";
  box.head.append(rule);
  box.section.update = ({ service, sent: figures }) => {
    const least = Math.min(...service.endpoints.filter(usable).map((it) => it.load));
    const most = Math.max(...service.endpoints.map((it) => it.load), 1e-9);
    const rows = service.endpoints.map((it) => ({ ...it, least, most, figures: figures.get(it.addr) }));
    grid.update(rows);
    const { algorithm, shut, spared } = service.balancer;
    setText(rule, `${algorithm.replaceAll("_", " ")}${shut ? ` · ${shut} left alone` : ""}${spared ? ` · ${spared} times spared, too many were shut` : ""}`);
    setText(why, reason(service));
    log.hidden = service.balancer.events.length === 0;
    keyed(events, service.balancer.events, (event) => `${event.at_ms} ${event.addr} ${event.what}`, (event) => h("li", { text: say(event) }));
  };
  return box.section;
}

const usable = (it) => it.open && it.ready && !it.draining;

/** Why the balancer prefers one, in a sentence. */
function reason(service) {
  const open = service.endpoints.filter(usable).sort((a, b) => a.load - b.load);
  if (!open.length) return "No replica can be used: requests fail at once, or try one that is shut when too few are open.";
  const [best, next] = open;
  if (!next) return `${best.addr} gets everything: it is the only one that can be used.`;
  if (["round_robin", "random", "ring_hash", "maglev"].includes(service.balancer.algorithm)) {
    return `The rule (${service.balancer.algorithm.replaceAll("_", " ")}) looks at no load: shares follow the weights and keys.`;
  }
  const last = open.at(-1);
  const times = last.load / Math.max(best.load, 1e-9);
  if (times < 1.3) return "All cost about the same now: each is as likely as the other.";
  const because = [];
  if (best.latency_ms !== null && last.latency_ms !== null && last.latency_ms > best.latency_ms * 1.2) because.push(`it answers in ${millis(best.latency_ms)}, ${last.addr} in ${millis(last.latency_ms)}`);
  if (last.in_flight > best.in_flight) because.push(`it has ${best.in_flight} requests in flight, ${last.addr} has ${last.in_flight}`);
  if (best.health - last.health > 0.02) because.push(`${percent(best.health, 0)} of its requests went well, of ${last.addr}'s ${percent(last.health, 0)}`);
  if (best.weight_milli > last.weight_milli) because.push(`its weight is ${best.weight_milli / 1000}, ${last.addr}'s ${last.weight_milli / 1000}`);
  const much = times >= 1000 ? "more than 1000" : times >= 10 ? times.toFixed(0) : times.toFixed(1);
  return `Preferred now: ${best.addr}. ${last.addr} would cost ${much} times as much${because.length ? `: ${because.join("; ")}` : ""}.`;
}

function say(event) {
  const what = { shut: `was shut for ${millis(event.wait_ms)}: ${event.reason}`, probed: "is tried with one request", opened: "is used again" }[event.what];
  return `${clock(event.at_ms)}  ${event.addr ?? "a replica that is gone"}${event.route ? ` (${event.route})` : ""} ${what}`;
}

function address(cell, row) {
  if (!cell.firstChild) cell.append(h("span", { class: "mono" }), h("span", { class: "sub" }));
  setText(cell.firstChild, row.addr);
  const labels = Object.entries(row.labels).map(([key, value]) => `${key}=${value}`);
  setText(cell.lastChild, [row.priority ? `priority ${row.priority}` : "", ...labels].filter(Boolean).join(" "));
}

function state(cell, row) {
  const routes = Object.entries(row.routes);
  const [level, text] = row.draining ? ["muted", "draining: gets nothing new"]
    : !row.ready ? ["muted", "gets nothing: its weight is 0"]
      : row.breaker.state === "shut" ? ["bad", `shut: ${row.breaker.reason}; tried again in ${millis(row.breaker.retry_in_ms)}`]
        : row.breaker.state === "probing" ? ["warn", "one request tries it"]
          : routes.length ? ["warn", routes.map(([route, it]) => `${route}: ${it.reason ?? "one request tries it"}`).join("; ")] : ["good", "open"];
  if (cell.told === level + text) return;
  cell.told = level + text;
  cell.replaceChildren(mark(level, text));
}

function cost(cell, row) {
  const times = row.load / row.least;
  const level = usable(row) && row.load === row.least ? "good" : "";
  bar(cell, !Number.isFinite(times) ? "–" : times < 99.95 ? `${times.toFixed(1)}×` : `${times < 1e6 ? count(Math.round(times)) : ">1 million "}×`, Math.max(0.02, row.load / row.most), level);
  cell.title = `cost ${row.load.toPrecision(3)}`;
}
