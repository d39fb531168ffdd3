// Every route: what callers saw (effective), what was really sent (actual), and the last five minutes of it.

import { card, count, h, levelOf, millis, percent, rate, routeName, setClass, setText, short, SIGNS } from "/page/dom.js";
import { chart, spark, times, traffic } from "/page/chart.js";
import { table } from "/page/table.js";
import { attempts, ended, endedCount } from "/page/why.js";

const keyOf = (row) => [row.service, row.route, row.direction].join("\n");
const success = (of) => ({
  cell(cell, row) {
    const share = of(row);
    const level = levelOf(share);
    const calm = level === "good" || level === "muted";
    setText(cell, `${calm ? "" : `${SIGNS[level]} `}${percent(share)}`);
    setClass(cell, calm ? "num" : `num ${level}`);
  },
  sort: of, num: true,
});
const latency = (key) => ({
  key, label: key.toUpperCase(), num: true, sort: (row) => row.latency_ms?.[key], text: (row) => millis(row.latency_ms?.[key]),
});
const way = (row) => (row.direction === "outbound" ? "sent" : "received");
const bad = (row) => Math.max(row.failures, endedCount(row));
const perSecond = (row) => (row.elapsed_secs ? row.retries / row.elapsed_secs : null);

export const routes = {
  id: "routes", title: "Routes", needs: ["stat"], series: true,
  make({ params, setParam }) {
    const filter = h("input", { type: "search", value: params.q ?? "", placeholder: "route or service", "aria-label": "filter routes", oninput: () => setParam("q", filter.value) });
    const side = h("select", { "aria-label": "direction", onchange: () => setParam("side", side.value) },
      h("option", { value: "" }, "sent and received"), h("option", { value: "outbound" }, "sent"), h("option", { value: "inbound" }, "received"));
    side.value = params.side ?? "";
    const detail = details();
    let shown = null;
    let state = null;
    const grid = table({
      caption: "Routes", keyOf, sortBy: { key: "service", dir: "ascending" }, empty: "No route fits.",
      columns: [
        { key: "route", label: "Route", head: true, sort: (row) => routeName(row.route), cell: name },
        { key: "service", label: "Service", wide: true, sort: (row) => row.service, cell: service },
        { key: "success", label: "Success", title: "effective: what callers saw, after retries", ...success((row) => row.success_rate) },
        { key: "rps", label: "Req/s", num: true, sort: (row) => row.rps, text: (row) => rate(row.rps) },
        { key: "why", label: "Why", wide: true, narrow: true, title: "how failures ended: shed by limits, breakers and queues; denied; late (timeouts); unreached (no endpoint, no connection); faults injected on purpose; else what the server answered", sort: bad, text: (row) => ended(row) || "–", shown: (rows) => rows.some(bad) },
        latency("p50"), latency("p95"), latency("p99"),
        { key: "actual", label: "Actual success", short: "Actual", title: "of attempts, before retries", ...success((row) => row.actual?.success_rate) },
        { key: "arps", label: "Actual req/s", num: true, sort: (row) => row.actual?.rps, text: (row) => rate(row.actual?.rps) },
        { key: "retries", label: "Retries/s", num: true, sort: perSecond, text: (row) => (row.actual ? rate(perSecond(row)) : "–") },
        { key: "flight", label: "In flight", num: true, sort: (row) => row.in_flight, text: (row) => count(row.in_flight) },
        { key: "history", label: "5 min", wide: true, cell: (cell, row) => spark(cell, row.series, rate) },
      ],
      rowClass: (row) => (keyOf(row) === shown ? "chosen" : ""),
    });
    const routesCard = card("Routes", grid.element);
    routesCard.body.classList.add("flush");
    routesCard.head.append(h("span", { class: "note", text: "success: what callers saw; actual: what was sent for it, retries included" }), h("span", { class: "grow controls" }, side, filter));
    const element = h("div", { class: "panel" }, routesCard.section, detail.element);

    function name(cell, row) {
      if (!cell.firstChild) {
        cell.append(h("button", { type: "button", class: "link", "aria-haspopup": "false", onclick: () => choose(cell.row) }));
        cell.className = "name";
      }
      cell.row = row;
      setText(cell.firstChild, routeName(row.route));
      cell.firstChild.setAttribute("aria-expanded", String(keyOf(row) === shown));
    }

    function choose(row) {
      shown = shown === keyOf(row) ? null : keyOf(row);
      refresh();
      if (shown) detail.element.scrollIntoView({ block: "nearest" });
    }

    function refresh() {
      if (!state) return;
      const words = (params.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      if (document.activeElement !== filter && filter.value !== (params.q ?? "")) filter.value = params.q ?? "";
      const rows = (state.stat?.rows ?? []).filter((row) => row.kind === "route" && (row.route || row.requests) && (!params.side || row.direction === params.side) &&
        words.every((word) => `${routeName(row.route)} ${row.service} ${way(row)}`.toLowerCase().includes(word)));
      grid.update(rows);
      detail.update(rows.find((row) => keyOf(row) === shown), state);
    }

    return { element, update(next) { state = next; refresh(); }, params(next) { params = next; side.value = params.side ?? ""; refresh(); }, gone() { grid.gone(); detail.gone(); } };
  },
};

function service(cell, row) {
  if (!cell.firstChild) cell.append(h("span", {}), h("span", { class: "sub" }));
  setText(cell.firstChild, short(row.service));
  setText(cell.lastChild, row.overflow ? `${way(row)} · all beyond the cap` : way(row));
  cell.title = row.service;
}

/** What is set for a route, and its five minutes in large. */
function details() {
  const plot = chart({
    label: "requests, failures and latency of the chosen route over the last 5 minutes", unit: (value) => `${rate(value)}/s`,
    lines: [{ label: "requests/s", colour: "accent", fill: true }, { label: "of them failed", colour: "bad", fill: true, dash: true }],
  });
  const slow = chart({
    label: "95th percentile of latency over the last 5 minutes", unit: millis,
    lines: [{ label: "p95 latency", colour: "warn" }],
  });
  const facts = h("dl", { class: "facts" });
  const box = card("Route", h("div", { class: "two" }, h("div", {}, plot.element, slow.element), facts));
  box.section.hidden = true;
  return {
    element: box.section,
    gone() { plot.gone(); slow.gone(); },
    update(row, state) {
      box.section.hidden = !row;
      if (!row) return;
      setText(box.head.firstChild, `${routeName(row.route)} of ${row.service}, ${way(row)}`);
      if (row.series) {
        const { rps, failed } = traffic(row.series);
        plot.update(times(row.series), [rps, failed]);
        slow.update(times(row.series), [row.series.p95_ms]);
      }
      const told = settings(row, state);
      const key = JSON.stringify(told);
      if (facts.key === key) return;
      facts.key = key;
      facts.replaceChildren(...told.flatMap(([name, text]) => [h("dt", { text: name }), h("dd", { text })]));
    },
  };
}

function settings(row, state) {
  const services = (state.inspect?.processes ?? []).flatMap((it) => it.inspection?.services ?? []);
  const mine = services.filter((it) => (it.label ?? it.name) === row.service || it.name === row.service);
  const service = mine.find((it) => it.endpoints.length) ?? mine[0];
  const route = service?.routes.find((it) => it.name === row.route);
  const told = [
    ["p99.9", millis(row.latency_ms?.p999)], ["Requests in the window", `${count(row.requests)}: ${count(row.successes)} went well, ${count(row.failures)} failed, ${count(row.cancelled)} cancelled`],
  ];
  if (ended(row)) told.push(["Failures", ended(row)]);
  if (row.actual) {
    told.push(["Attempts", `${count(row.actual.requests)}, ${count(row.retries)} of them retries; ${count(row.no_budget)} retries refused by the budget`]);
    if (row.actual.failures) told.push(["Failed attempts", attempts(row, state)]);
  }
  if (!route) return told;
  const times = Object.entries(route.timeouts ?? {}).filter(([, time]) => time);
  told.push(["Timeouts", times.map(([name, time]) => `${name.replace("_", " ")} ${time}`).join(", ") || "none"]);
  told.push(["Retries", route.retry ? `at most ${route.retry.attempts_max} attempts, on ${route.retry.on.join(", ")}` : "only of what was certainly not processed"]);
  told.push(["Retry budget", `${count(route.retry_budget_level)} retries at once now`]);
  told.push(["Backends", route.backends.map((it) => `${it.service} ${percent(it.share, 1)}${it.status ? ` (answers ${it.status})` : ""}`).join(", ") || "none"]);
  told.push(["Written in", service.profile ?? "no profile: all defaults"]);
  return told;
}
