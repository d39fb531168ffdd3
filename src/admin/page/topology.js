// Who calls whom, drawn: callers left, the called right (or top and bottom where there is little room).

import { h, s, percent, rate, levelOf, short } from "/page/dom.js";

const BOX = { width: 158, height: 58 };

/** The services and edges of `/api/v1/edges`, one edge for each pair. */
export function graph(edges) {
  const pairs = new Map();
  const name = (host, namespace) => (host ? (namespace ? `${host}.${namespace}` : host) : "");
  for (const edge of edges) {
    const from = name(edge.src, edge.src_namespace);
    const to = name(edge.dst, edge.dst_namespace);
    const key = `${from}→${to}`;
    const pair = pairs.get(key) ?? { key, from, to, service: edge.service, rps: 0, good: 0, judged: 0, requests: 0, secured: true, reasons: new Set() };
    pair.rps += edge.rps ?? 0;
    pair.requests += edge.requests ?? 0;
    if (edge.success_rate !== null && edge.success_rate !== undefined) {
      pair.judged += edge.rps || 0;
      pair.good += (edge.rps || 0) * edge.success_rate;
    }
    pair.secured &&= edge.secured;
    if (!edge.secured) pair.reasons.add(edge.no_tls_reason ?? "not secured");
    pairs.set(key, pair);
  }
  const list = [...pairs.values()].sort((a, b) => a.key.localeCompare(b.key));
  list.forEach((pair) => { pair.success = pair.judged > 0 ? pair.good / pair.judged : null; });
  const nodes = new Map();
  const node = (id) => nodes.get(id) ?? nodes.set(id, { id, layer: 0, rps: 0, good: 0, judged: 0, out: [], into: [] }).get(id);
  for (const pair of list) {
    node(pair.from).out.push(pair);
    const to = node(pair.to);
    to.into.push(pair);
    to.rps += pair.rps;
    to.good += pair.good;
    to.judged += pair.judged;
  }
  layers(nodes);
  return { nodes: [...nodes.values()], pairs: list };
}

/** Each service stands behind all who call it; of a circle somebody is first. */
function layers(nodes) {
  for (let round = 0; round < nodes.size; round += 1) {
    let moved = false;
    for (const node of nodes.values()) {
      for (const { to, from } of node.out) {
        const next = nodes.get(to);
        if (to !== from && next.layer <= node.layer && node.layer + 1 < nodes.size) {
          next.layer = node.layer + 1;
          moved = true;
        }
      }
    }
    if (!moved) return;
  }
}

/** Columns of services, each ordered by where its callers stand. */
function place(nodes, upright) {
  const columns = [];
  for (const node of nodes) (columns[node.layer] ??= []).push(node);
  const filled = columns.filter(Boolean);
  const most = Math.max(...filled.map((column) => column.length));
  const gap = upright ? { along: BOX.height + 84, across: BOX.width + 22 } : { along: BOX.width + 166, across: BOX.height + 44 };
  filled.forEach((column, depth) => {
    const centre = (node) => node.into.reduce((sum, { from }) => sum + (nodes.find((it) => it.id === from)?.slot ?? 0), 0) / (node.into.length || 1);
    column.sort((a, b) => centre(a) - centre(b) || a.id.localeCompare(b.id));
    column.forEach((node, slot) => {
      node.slot = slot + (most - column.length) / 2;
      const [along, across] = [depth * gap.along, node.slot * gap.across];
      [node.x, node.y] = upright ? [across, along] : [along, across];
    });
  });
  const depth = (filled.length - 1) * gap.along;
  const breadth = (most - 1) * gap.across;
  return upright
    ? { width: breadth + BOX.width, height: depth + BOX.height }
    : { width: depth + BOX.width, height: breadth + BOX.height };
}

function drawEdge(pair, nodes, upright) {
  const [from, to] = [nodes.get(pair.from), nodes.get(pair.to)];
  const level = pair.rps === 0 ? "idle" : levelOf(pair.success);
  const [x1, y1, x2, y2] = upright
    ? [from.x + BOX.width / 2, from.y + BOX.height, to.x + BOX.width / 2, to.y - 7]
    : [from.x + BOX.width, from.y + BOX.height / 2, to.x - 7, to.y + BOX.height / 2];
  const bend = (upright ? y2 - y1 : x2 - x1) / 2;
  const path = upright
    ? `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`
    : `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  const arrow = upright ? `M${x2 - 4.5} ${y2 - 1}h9l-4.5 8z` : `M${x2 - 1} ${y2 - 4.5}v9l8 -4.5z`;
  const width = pair.rps > 0 ? Math.min(4, 1.25 + Math.log10(1 + pair.rps)) : 1.25;
  // The words stand nearer to the called, where lines of one caller are apart.
  const [x, y] = upright ? [at(0.66, x1, x1, x2, x2), at(0.66, y1, y1 + bend, y2 - bend, y2)]
    : [at(0.56, x1, x1 + bend, x2 - bend, x2), at(0.56, y1, y1, y2, y2)];
  const lock = pair.secured
    ? s("path", { class: "lock", d: `M${x - 51} ${y - 2}h10v7h-10zM${x - 49} ${y - 2}v-2.5a3 3 0 0 1 6 0v2.5` })
    : s("path", { class: "lock off", d: `M${x - 51} ${y - 2}h10v7h-10zM${x - 49} ${y - 2}v-3.5a3 3 0 0 1 5.5 -1.5` });
  const success = pair.success === null ? "" : `${level === "bad" ? "✕ " : ""}${percent(pair.success, 1)}`;
  const say = `${pair.from ? short(pair.from) : "unknown"} to ${short(pair.to)}: ${percent(pair.success)} success, ${rate(pair.rps)} requests/s, ` +
    (pair.secured ? "mutual TLS" : `no mutual TLS (${[...pair.reasons].join(", ")})`);
  return [s("g", { class: `edge ${level}` },
    s("path", { d: path, "stroke-width": width }),
    s("path", { class: "arrow", d: arrow })),
  s("g", { class: `edge ${level}` },
    s("title", {}, say),
    s("rect", { class: "tag", x: x - 54, y: y - 16, width: 97, height: 31, rx: 4 }),
    lock,
    s("text", { class: "sr", x: x + 6, y: y - 3, "text-anchor": "middle" }, success || "no traffic"),
    s("text", { class: "rps", x: x + 6, y: y + 11, "text-anchor": "middle" }, `${rate(pair.rps)}/s`))];
}

/** A point of a cubic Bézier curve. */
const at = (t, a, b, c, d) => (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t ** 2 * c + t ** 3 * d;

function drawNode(node) {
  const success = node.judged > 0 ? node.good / node.judged : null;
  const [host, ...namespace] = node.id.split(".");
  const level = node.into.length ? levelOf(success) : "muted";
  const figures = node.into.length ? `${percent(success, 1)} · ${rate(node.rps)}/s` : "calls, is not called";
  const link = s("a", { href: `#routes?q=${encodeURIComponent(host || "")}` });
  link.append(
    s("rect", { x: node.x, y: node.y, width: BOX.width, height: BOX.height, rx: 6 }),
    s("text", { class: "name", x: node.x + 10, y: node.y + 19 }, cut(host || "unknown", 21)),
    s("text", { class: "ns", x: node.x + 10, y: node.y + 33 }, cut(namespace.join(".") || (host ? "" : "no identity"), 24)),
    s("text", { class: "figures", x: node.x + 10, y: node.y + 49 }, figures));
  return s("g", { class: `node ${level}` }, link);
}

const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** The picture, which draws itself anew when its figures or its width change. */
export function topology() {
  const box = h("div", {});
  const empty = h("p", { class: "empty", text: "Nobody has called anybody in this window." });
  const element = h("div", {}, box, empty);
  let told = [];
  let drawn = "";
  const watch = new ResizeObserver(draw);
  watch.observe(element);

  function draw() {
    const upright = element.clientWidth < 560;
    const key = JSON.stringify([upright, told]);
    if (key === drawn || !element.clientWidth) return;
    drawn = key;
    empty.hidden = told.length > 0;
    if (!told.length) return box.replaceChildren();
    const { nodes, pairs } = graph(told);
    const size = place(nodes, upright);
    const byId = new Map(nodes.map((node) => [node.id, node]));
    const [width, height] = [size.width + 16, size.height + 16];
    const focus = box.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    // Words stand above all lines.
    const edges = pairs.filter(({ from, to }) => from !== to).map((pair) => drawEdge(pair, byId, upright));
    const map = s("svg", { class: "map", viewBox: `-8 -8 ${width} ${height}`, role: "group", "aria-label": "map of the services" },
      ...edges.map(([line]) => line), ...edges.map(([, words]) => words), ...nodes.map(drawNode));
    // Never larger than life: text stays as large as the page's.
    map.style.maxWidth = `${width}px`;
    box.replaceChildren(map);
    if (focus) [...box.querySelectorAll("a")].find((link) => link.getAttribute("href") === focus)?.focus();
  }

  return { element, update(next) { told = next; draw(); }, gone: () => watch.disconnect() };
}
