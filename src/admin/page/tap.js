// Live requests, as they are: one row for each attempt. Nothing is asked for until somebody presses Start.

import { card, clock, count, h, mark, millis, routeName, setText, short } from "/page/dom.js";
import { name } from "/page/config.js";

/** The rows that are kept: what was before is forgotten. */
const ROWS_MAX = 200;
/** The rows that wait for their ends. */
const OPEN_MAX = 1000;

const FIELDS = [
  { name: "service", label: "Service", hint: "voting-svc*" }, { name: "route", label: "Route", hint: "Vote, or [DEFAULT]" }, { name: "method", label: "Method", hint: "GET" },
  { name: "path", label: "Path", hint: "/api/*" }, { name: "authority", label: "Authority", hint: "web-svc*" }, { name: "status", label: "Status", hint: "503, 5xx, 400-499" },
  { name: "source_identity", label: "Caller's identity", hint: "spiffe://…*" }, { name: "destination_identity", label: "Server's identity", hint: "spiffe://…*" },
  { name: "source", label: "From address", hint: "10.0.0.0/8" }, { name: "destination", label: "To address", hint: "127.0.0.1:8080" },
];
const CHOICES = [
  { name: "direction", label: "Direction", options: [["", "both"], ["outbound", "sent"], ["inbound", "received"]] },
  { name: "outcome", label: "Outcome", options: [["", "any"], ["success", "success"], ["failure", "failure"], ["cancelled", "cancelled"], ["audited", "let in on trial (audit)"]] },
  { name: "sample", label: "Share of requests", options: [["", "all"], ["0.1", "10 %"], ["0.01", "1 %"], ["0.001", "0.1 %"]] },
];

export const tap = {
  id: "tap", title: "Tap", needs: [],
  make({ params, setParam }) {
    const input = ({ name, label, hint }) => h("label", {}, label, h("input", { name, placeholder: hint, value: params[name] ?? "", autocomplete: "off", spellcheck: "false" }));
    const choice = ({ name, label, options }) => {
      const select = h("select", { name }, ...options.map(([value, text]) => h("option", { value, text })));
      select.value = params[name] ?? "";
      return h("label", {}, label, select);
    };
    const headers = h("input", { type: "checkbox", name: "headers", checked: params.headers === "1" });
    const start = h("button", { type: "submit", class: "main", form: "tap-filters", text: "Start" });
    const clear = h("button", { type: "button", text: "Clear", onclick: () => { rows.replaceChildren(); nothing.hidden = false; say(); } });
    const form = h("form", { id: "tap-filters", class: "fields", autocomplete: "off", "aria-label": "Filters", onsubmit: (event) => { event.preventDefault(); if (source) stop("stopped"); else begin(); } },
      ...FIELDS.map(input), ...CHOICES.map(choice), h("label", { class: "check" }, headers, "headers (secrets hidden)"));
    const state = h("span", { class: "note", role: "status", text: "not started: nothing is watched, and nothing is slowed" });
    const rows = h("tbody");
    const names = ["Time", "From → to", "Request", "Route", "Status", "Latency", "Size"];
    const grid = h("table", { class: "cards" }, h("caption", { class: "hidden", text: "Requests" }),
      h("thead", {}, h("tr", {}, ...names.map((text, at) => h("th", { scope: "col", class: at > 4 ? "num" : null }, h("span", { text }))))), rows);
    const filters = card("Filters", form);
    const list = card("Requests", h("div", { class: "scroll", role: "region", "aria-label": "Requests, table", tabindex: "0" }, grid));
    list.body.classList.add("flush");
    filters.body.classList.add("flush");
    const whose = h("span", { class: "note" });
    list.head.append(whose, state, h("span", { class: "grow controls" }, start, clear));
    const missing = h("p", { class: "empty warn", hidden: true });
    const nothing = h("p", { class: "empty", text: "No request yet." });
    list.body.prepend(missing);
    list.body.append(nothing);

    let source = null;
    let chosen = params.process ?? "";
    let all = [];
    /** Why processes are not watched, by their addresses. */
    let lost = new Map();
    let open = new Map();
    let [seen, dropped] = [0, 0];

    function begin() {
      const query = new URLSearchParams();
      for (const [name, value] of new FormData(form)) {
        if (name === "headers") query.set("headers", "1");
        else if (value.trim()) query.append(name, value.trim());
      }
      for (const { name } of [...FIELDS, ...CHOICES, { name: "headers" }]) setParam(name, query.get(name) ?? "", true);
      query.set("format", "sse");
      if (chosen) query.set("process", chosen);
      [open, seen, dropped] = [new Map(), 0, 0];
      source = new EventSource(`/api/v1/tap?${query}`);
      source.onmessage = ({ data }) => take(JSON.parse(data));
      source.onopen = () => { lost.clear(); miss(); say(); };
      source.onerror = () => {
        // The browser connects anew by itself, but for an answer that is no stream.
        if (source?.readyState === EventSource.CLOSED) refused(query);
        else state.textContent = "the connection broke; trying again…";
      };
      start.textContent = "Stop";
      state.textContent = "waiting for requests…";
    }

    function stop(text) {
      source?.close();
      source = null;
      lost.clear();
      miss();
      start.textContent = "Start";
      state.textContent = text;
    }

    /** An EventSource does not tell why it was refused. */
    async function refused(query) {
      stop("refused");
      query.set("max", "1");
      try {
        const response = await fetch(`/api/v1/tap?${query}`, { signal: AbortSignal.timeout(1000) });
        if (!response.ok) stop(`refused: ${(await response.text()).trim().slice(0, 200)}`);
      } catch { stop("no answer"); }
    }

    function take(event) {
      if (event.dropped) { dropped += event.dropped; return say(); }
      if (event.lost) { lost.set(event.lost.addr, event.lost.error); return miss(); }
      if (event.watching) { lost.delete(event.watching.addr); return miss(); }
      const part = event.requestInitEvent ?? event.responseInitEvent ?? event.responseEndEvent;
      if (!part?.id) return undefined;
      const key = `${event.process} ${part.id.base} ${part.id.stream}`;
      if (event.requestInitEvent) {
        const row = made(event, named(event));
        open.set(key, row);
        if (open.size > OPEN_MAX) open.delete(open.keys().next().value);
        rows.prepend(row);
        nothing.hidden = true;
        while (rows.childElementCount > ROWS_MAX) rows.lastElementChild.remove();
        seen += 1;
        say();
      }
      const row = open.get(key);
      if (row && event.responseInitEvent) responded(row, part);
      if (row && event.responseEndEvent) { ended(row, part); open.delete(key); }
      return undefined;
    }

    /** What the process that tells an event is called. */
    function named(event) {
      const process = all.find((it) => it.id === event.processId);
      return process ? name(process, all) : short(event.process);
    }

    /** Of one process the others are none of its business. */
    function miss() {
      missing.hidden = lost.size === 0 || Boolean(chosen);
      setText(missing, `▲ Not watched: ${[...lost].map(([addr, why]) => `${addr.replace(/^https?:\/\//, "")} ${why}`).join("; ")}`);
    }

    function whom() {
      const one = chosen && all.find((it) => it.id === chosen);
      setText(whose, one ? `of ${name(one, all)}` : all.length > 1 ? `of all ${all.length} processes` : all.length ? `of ${short(all[0].name)}` : "");
    }

    function say() {
      if (source) state.textContent = `${count(seen)} requests seen${dropped ? `, ${dropped} events lost because this page was too slow` : ""}`;
    }

    return {
      element: h("div", { class: "panel" }, filters.section, list.section),
      update({ everybody }) { all = everybody ?? []; whom(); },
      params(next) {
        for (const field of form.elements) {
          if (field.type === "checkbox") field.checked = next[field.name] === "1";
          else if (field.name && field !== document.activeElement) field.value = next[field.name] ?? "";
        }
        if (chosen === (next.process ?? "")) return;
        chosen = next.process ?? "";
        whom();
        if (source) { source.close(); begin(); }
      },
      pause(paused) { if (paused && source) stop("stopped"); },
      gone() { source?.close(); },
    };
  },
};

const nanos = (time) => (time ? time.seconds * 1000 + time.nanos / 1e6 : null);

function made(event, teller) {
  const { method, authority, path, headers } = event.requestInitEvent;
  const peer = ({ ip, port, metadata }) => (ip === "0.0.0.0" ? "nobody" : metadata?.pod ?? `${ip}:${port}`);
  const out = event.proxyDirection === "OUTBOUND";
  const secured = (out ? event.destination : event.source).metadata?.tls === "true";
  const cell = (label, kind, ...children) => h("td", { "data-label": label, class: kind }, ...children);
  const from = out ? teller : peer(event.source);
  // What arrives says where, which tells replicas apart as well.
  const local = out || event.destination.ip === "0.0.0.0" ? "" : peer(event.destination);
  const to = out ? peer(event.destination) : local ? short(event.process) : teller;
  const client = event.source.metadata?.client_id ?? event.destination.metadata?.server_id;
  return h("tr", {},
    h("th", { scope: "row", class: "mono", text: clock(event.at_ms ?? Date.now()) }),
    cell("From → to", "wrap", `${from} → ${to}`, h("span", { class: "sub", title: client, text: `${out ? "sent" : `received${local ? ` at ${local}` : ""}`}, ${secured ? "mutual TLS" : "no TLS"}${client ? ` with ${client.split("/").at(-1)}` : ""}` })),
    cell("Request", "wrap", h("span", { class: "mono", text: `${method} ${path}` }), h("span", { class: "sub", text: [authority === local ? "" : authority, event.attempt && `attempt ${event.attempt + 1}`].filter(Boolean).join(", ") }), shown(headers, "request headers")),
    cell("Route", null, routeName(event.routeMeta?.route)),
    cell("Status", "status", h("span", { class: "muted", text: "under way" })),
    cell("Latency", "num", "–"), cell("Size", "num", "–"));
}

function shown(headers, what) {
  if (!headers?.length) return null;
  return h("details", {}, h("summary", { class: "note", text: what }), ...headers.map((it) => h("div", { class: "mono", text: `${it.name}: ${it.valueStr ?? "(binary)"}` })));
}

function responded(row, part) {
  const level = part.httpStatus >= 500 ? "bad" : part.httpStatus >= 400 ? "warn" : "good";
  row.children[4].replaceChildren(mark(level, String(part.httpStatus)));
  row.children[5].textContent = millis(nanos(part.sinceRequestInit));
  const headers = shown(part.headers, "response headers");
  if (headers) row.children[2].append(headers);
}

function ended(row, part) {
  const status = row.children[4].textContent.match(/\d+/)?.[0] ?? "";
  const level = { success: "good", failure: "bad", cancelled: "muted" }[part.outcome] ?? "muted";
  const grpc = part.grpcStatusCode === null || part.grpcStatusCode === undefined ? "" : `gRPC ${part.grpcStatusCode}`;
  const told = [status, grpc].filter(Boolean).join(", ") || part.error?.replaceAll("_", " ") || part.cause || part.outcome;
  const why = [part.outcome === "success" ? "" : part.outcome, ...new Set([part.outcome === "success" ? "" : part.cause, part.error?.replaceAll("_", " ")].filter((it) => it !== told)), part.rule && `rule ${part.rule}`, part.audit && `on trial: ${part.audit} would refuse it`].filter(Boolean).join(", ");
  row.children[4].replaceChildren(mark(level, told), h("span", { class: "sub", text: why }));
  row.children[5].textContent = millis(nanos(part.sinceRequestInit));
  row.children[6].textContent = part.responseBytes === null || part.responseBytes === undefined ? "–" : size(part.responseBytes);
}

const size = (bytes) => (bytes < 10_000 ? `${bytes} B` : bytes < 1e7 ? `${(bytes / 1024).toFixed(0)} KiB` : `${(bytes / 1048576).toFixed(0)} MiB`);
