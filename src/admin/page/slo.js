// Objectives: what was promised, what is left of the error budget, and how fast it burns.

import { bar, card, count, h, mark, percent, routeName, setText, short, span } from "/page/dom.js";
import { table } from "/page/table.js";

export const slo = {
  id: "slo", title: "Objectives", needs: ["slo"],
  make() {
    const grid = table({
      caption: "Objectives", keyOf: (row) => [row.direction, row.service, row.route, row.kind, row.threshold_ms].join("\n"), sortBy: { key: "left", dir: "ascending" },
      empty: "No profile states an objective: write slo: {availability: 99.9%} to a service or a route.",
      columns: [
        { key: "service", label: "Service", head: true, sort: (row) => row.service, cell: who },
        { key: "kind", label: "Objective", sort: (row) => row.target, text: objective, wrap: true },
        { key: "sli", label: "Reached", num: true, sort: (row) => row.sli, text: (row) => percent(row.sli, 3) },
        { key: "left", label: "Budget left", num: true, sort: (row) => row.budget_left, cell: left },
        { key: "bad", label: "Bad of all", num: true, sort: (row) => row.bad, text: (row) => `${count(row.bad)} of ${count(row.total)}` },
        { key: "burn", label: "Burn rate, over the long and the short window", sort: (row) => Math.max(...row.burn.map((it) => it.long_rate ?? 0)), cell: burn, wrap: true },
      ],
    });
    const box = card("Objectives", grid.element);
    box.body.classList.add("flush");
    box.head.append(h("span", { class: "note", text: "a burn rate of 1 spends the budget exactly by the end of its window" }));
    return { element: h("div", { class: "panel" }, box.section), update: (state) => grid.update(state.slo?.objectives ?? []) };
  },
  badge: (state) => (state.slo?.objectives ?? []).filter((it) => it.burn.some((burn) => burn.firing && burn.severity === "page")).length,
};

function objective(row) {
  const time = span(row.window_secs);
  const what = row.kind === "latency" ? `${percent(row.target, 3).replace(/\.?0+ %/, " %")} within ${row.threshold_ms} ms` : `${percent(row.target, 3).replace(/\.?0+ %/, " %")} succeed`;
  return `${what}, over ${time.replace(/ 0 (h|min|s)$/, "")}${row.covered_secs < row.window_secs ? ` (measured: ${span(row.covered_secs)})` : ""}`;
}

function who(cell, row) {
  if (!cell.firstChild) cell.append(h("span"), h("span", { class: "sub" }));
  setText(cell.firstChild, short(row.service));
  setText(cell.lastChild, `${row.route === null ? "whole service" : routeName(row.route)} · ${row.direction === "outbound" ? "sent" : "received"}`);
}

function left(cell, row) {
  const share = row.budget_left;
  const level = share === null ? "" : share <= 0 ? "bad" : share < 0.25 ? "warn" : "good";
  bar(cell, share !== null && share < 0 ? (share <= -9 ? `✕ overspent ${(1 - share).toFixed(0)} times` : `✕ overspent by ${percent(-share, 0)}`) : percent(share, 1), share ?? 0, level);
  cell.firstChild.className = level === "good" ? "" : level;
}

function burn(cell, row) {
  const told = row.burn.map((it) => {
    const rates = [it.long_rate, it.short_rate].map((value) => (value === null ? "–" : `${value >= 100 ? value.toFixed(0) : value.toFixed(1)}×`)).join(" / ");
    const level = it.firing ? (it.severity === "page" ? "bad" : "warn") : "muted";
    return [level, `${it.long}/${it.short}: ${rates}${it.firing ? ` — ${it.severity} (over ${it.threshold}×)` : ""}`];
  });
  const key = JSON.stringify(told);
  if (cell.told === key) return;
  cell.told = key;
  cell.replaceChildren(...told.map(([level, text]) => h("div", {}, mark(level, text))));
}
