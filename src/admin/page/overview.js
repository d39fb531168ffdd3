// The first panel: the figures of all, the map, and what stands out.

import { SIGNS, card, h, keyed, millis, percent, rate, routeName, setClass, setText, short, span } from "/page/dom.js";
import { chart, times, traffic } from "/page/chart.js";
import { findings } from "/page/findings.js";
import { topology } from "/page/topology.js";

export const overview = {
  id: "overview", title: "Overview", needs: ["stat", "edges", "slo"], series: true,
  make() {
    const tiles = h("dl", { class: "tiles" });
    const map = topology();
    const mapCard = card("Who calls whom", map.element);
    mapCard.head.append(h("span", { class: "note", text: "success rate and requests/s; a closed lock is mutual TLS" }));
    const list = h("ul", { class: "findings" });
    const foundCard = card("What stands out", list);
    foundCard.body.classList.add("flush");
    const trafficChart = chart({
      label: "requests and failures per second over the last 5 minutes", unit: (value) => `${rate(value)}/s`,
      lines: [{ label: "calls", colour: "accent", fill: true }, { label: "of them failed", colour: "bad", fill: true, dash: true }],
    });
    const chartCard = card("Calls in the last 5 minutes", trafficChart.element);
    const element = h("div", { class: "panel" }, tiles,
      h("div", { class: "two" }, h("div", { class: "panel" }, mapCard.section, chartCard.section), foundCard.section));
    return {
      element,
      update(state) {
        figures(tiles, state);
        map.update(state.edges?.edges ?? []);
        stand(list, findings(state), state);
        const series = calls(state.stat).map((row) => row.series).filter(Boolean);
        if (series.length) trafficChart.update(times(series[0]), total(series));
      },
      gone() { map.gone(); trafficChart.gone(); },
    };
  },
  badge: (state) => findings(state).filter((finding) => finding.level === "bad").length,
};

/** The rows that count each call once: what processes send, and what arrives where nobody watches the sender. */
function calls(stat) {
  const routes = (stat?.rows ?? []).filter((row) => row.kind === "route");
  const sent = new Set(routes.filter((row) => row.direction === "outbound" && row.requests).map((row) => row.service));
  return routes.filter((row) => row.direction === "outbound" || !sent.has(row.service));
}

function total(series) {
  const all = series.map(traffic);
  const sum = (pick) => series[0].rps.map((_, at) => all.reduce((sum, it) => sum + (pick(it)[at] ?? 0), 0));
  return [sum((it) => it.rps), sum((it) => it.failed)];
}

function figures(tiles, { stat, inspect }) {
  const rows = calls(stat);
  const sum = (pick) => rows.reduce((sum, row) => sum + (pick(row) ?? 0), 0);
  const [good, bad] = [sum((row) => row.successes), sum((row) => row.failures)];
  const slowest = rows.filter((row) => row.latency_ms && row.requests).sort((a, b) => b.latency_ms.p99 - a.latency_ms.p99)[0];
  const seen = (inspect?.processes ?? []).map((it) => it.inspection).filter(Boolean);
  const endpoints = seen.flatMap((it) => it.services.flatMap((service) => service.endpoints));
  const ends = seen.map((it) => it.identity?.not_after_ms && (it.identity.not_after_ms - it.at_ms) / 1000).filter((it) => typeof it === "number");
  const faults = new Set(seen.flatMap((it) => it.services.flatMap((service) => service.faults)));
  const share = good + bad ? good / (good + bad) : null;
  const told = [
    ["Calls", `${rate(sum((row) => row.rps))}/s`, `${sum((row) => row.in_flight)} in flight`],
    ["Success", percent(share), `${bad} of ${good + bad} failed`],
    ["Retries", percent(sum((row) => row.requests) ? sum((row) => row.retries) / sum((row) => row.requests) : null, 1), `${sum((row) => row.no_budget)} refused by budgets`],
    ["Slowest p99", millis(slowest?.latency_ms.p99), slowest ? `${short(slowest.service)} ${routeName(slowest.route)}` : ""],
    ["Replicas", `${endpoints.filter((it) => it.open && it.ready).length} of ${endpoints.length}`, "usable by their callers"],
    ["Certificates", ends.length ? span(Math.min(...ends)) : "–", ends.length ? "until the first one ends" : "no identity"],
    ["Configuration", faults.size ? `${faults.size} fault${faults.size > 1 ? "s" : ""}` : "in order", `${seen.length} process${seen.length === 1 ? "" : "es"}`],
  ];
  keyed(tiles, told, ([name]) => name,
    ([name]) => h("div", {}, h("dt", { text: name }), h("dd", { class: "big" }), h("dd", { class: "small" })),
    (tile, [, big, small]) => { setText(tile.children[1], big); setText(tile.children[2], small); });
}

function stand(list, found, state) {
  const calm = { key: "calm", level: "good", text: "Nothing stands out", more: "no route fails, no breaker is shut, nothing was refused" };
  const shown = found.length || !state.inspect ? found : [calm];
  keyed(list, shown.slice(0, 30), (it) => it.key,
    (it) => h("li", {}, h("span", { "aria-hidden": "true" }), it.href ? h("a", { href: it.href }) : h("strong"), h("span", { class: "more" })),
    (li, it) => {
      setClass(li.firstChild, `mark ${it.level}`);
      setText(li.firstChild, SIGNS[it.level]);
      setText(li.children[1], it.text);
      setText(li.children[2], it.more ?? "");
    });
}
