// Charts over time, by uPlot (vendor/uplot.min.js): small ones for tables, and one with axes.

import { clock, h } from "/page/dom.js";

/* global uPlot */
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();
dark.addEventListener("change", () => drawn.forEach((plot) => plot.redraw()));

const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const faint = (name) => () => `color-mix(in srgb, ${colour(name)()} 16%, transparent)`;
const FONT = "11px system-ui, sans-serif";

function open(options, data, parent) {
  const plot = new uPlot(options, data, parent);
  drawn.add(plot);
  return plot;
}

function close(plot) {
  drawn.delete(plot);
  plot.destroy();
}

/** Requests and failures per second out of a row's series: the failures are the part that did not go well. */
export function traffic(series) {
  const failed = series.rps.map((rps, at) => {
    const good = series.success_rate[at];
    return rps === null || good === null || good === 1 ? null : rps * (1 - good);
  });
  return { rps: series.rps.map((rps) => rps ?? 0), failed };
}

/** A line without axes in a table's cell: requests, and failures below them. Made when it is first seen. */
export function spark(cell, series, say) {
  if (!cell.spark) {
    const box = h("div", { class: "spark", role: "img" });
    cell.replaceChildren(box);
    cell.spark = { box, plot: null };
    cell.gone = () => {
      seen.unobserve(box);
      if (cell.spark.plot) close(cell.spark.plot);
    };
    box.cell = cell;
    seen.observe(box);
  }
  const { box } = cell.spark;
  if (!series) return box.setAttribute("aria-label", "no history");
  const { rps, failed } = traffic(series);
  cell.spark.data = [rps.map((_, at) => at), rps, failed];
  box.setAttribute("aria-label", `last 5 minutes: ${say(Math.max(...rps))} requests/s at most`);
  cell.spark.plot?.setData(cell.spark.data);
}

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const { spark: held } = target.cell;
    if (!isIntersecting || held.plot || !held.data) continue;
    held.plot = open({
      width: 120, height: 26, padding: [2, 0, 1, 0], legend: { show: false }, cursor: { show: false },
      axes: [{ show: false }, { show: false }],
      scales: { x: { time: false }, y: { range: (_, __, max) => [0, Math.max(max, 0.1)] } },
      series: [{}, line("muted", { fill: faint("muted"), width: 1.25 }), line("bad", { fill: faint("bad"), width: 1.25 })],
    }, held.data, target);
  }
});

function line(name, more = {}) {
  return { stroke: colour(name), width: 1.75, points: { show: false }, spanGaps: false, ...more };
}

/**
 * A chart with axes. `lines`: `{ label, colour, dash, fill }`; `update(seconds, values)` takes the times and a list of
 * values for each line.
 */
export function chart({ label, lines, unit, height = 170 }) {
  const box = h("div", { class: "chart", role: "img", "aria-label": label });
  const legend = h("ul", { class: "legend" }, ...lines.map((it) => {
    const swatch = h("i", { class: it.dash ? `dash ${it.colour}` : it.colour, "aria-hidden": "true" });
    return h("li", {}, swatch, it.label);
  }));
  const element = h("div", {}, box, legend);
  let plot = null;
  const axis = { stroke: colour("muted"), font: FONT, grid: { stroke: colour("soft"), width: 1 }, ticks: { show: false } };
  const options = () => ({
    width: Math.max(240, box.clientWidth), height, padding: [8, 8, 0, 0], legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    axes: [{ ...axis, space: 70, size: 26, values: (_, ticks) => ticks.map(hour) }, { ...axis, size: 58, values: (_, ticks) => ticks.map(unit) }],
    scales: { y: { range: (_, __, max) => [0, Math.max(max * 1.08, 0.1)] } },
    series: [{}, ...lines.map((it) => line(it.colour, { label: it.label, dash: it.dash ? [6, 4] : undefined, fill: it.fill ? faint(it.colour) : undefined }))],
  });
  const resize = new ResizeObserver(() => plot?.setSize({ width: Math.max(240, box.clientWidth), height }));
  resize.observe(box);
  return {
    element,
    update(seconds, values) {
      const data = [seconds, ...values];
      if (plot) plot.setData(data);
      else if (box.clientWidth) plot = open(options(), data, box);
    },
    gone() {
      resize.disconnect();
      if (plot) close(plot);
    },
  };
}

const hour = (seconds) => clock(seconds * 1000);

/** The times of a series that ends now. */
export function times(series) {
  const end = Math.floor(Date.now() / 1000 / series.step_secs) * series.step_secs;
  return series.rps.map((_, at) => end - (series.rps.length - 1 - at) * series.step_secs);
}
