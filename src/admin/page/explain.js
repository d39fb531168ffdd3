// Type a request, and see what becomes of it and why. The answer comes from the policy that serves requests.

import { post } from "/page/api.js";
import { card, h, mark, percent, routeName, short } from "/page/dom.js";
import { name } from "/page/config.js";

export const explain = {
  id: "explain", title: "Explain", needs: [],
  make({ params, setParam }) {
    const services = h("datalist", { id: "services" });
    const process = h("select", { name: "process" });
    const method = h("input", { name: "method", value: params.method ?? "", list: "methods", placeholder: "GET, of gRPC POST", autocomplete: "off" });
    const host = h("input", { name: "host", value: params.host ?? "", list: "services", required: true, placeholder: "web-svc.emojivoto:80", autocomplete: "off", spellcheck: "false" });
    const path = h("input", { name: "path", value: params.path ?? "/", required: true, placeholder: "/api/list?x=1", autocomplete: "off", spellcheck: "false" });
    const grpc = h("input", { type: "checkbox", name: "grpc", checked: params.grpc === "1" });
    const headers = h("textarea", { name: "headers", rows: "2", placeholder: "x-user: 1", spellcheck: "false", text: params.headers ?? "" });
    const identity = h("input", { name: "identity", value: params.identity ?? "", placeholder: "the sending process's own", autocomplete: "off", spellcheck: "false" });
    const label = (text, field, wide) => h("label", { class: wide ? "wide" : null }, text, field);
    const form = h("form", { class: "fields", "aria-label": "Request", onsubmit: (event) => { event.preventDefault(); ask(); } },
      label("Sent by", process), label("Service", host, true), label("Method", method), label("Path", path, true), label("Headers, one a line", headers, true), label("Caller's identity", identity, true),
      h("div", { class: "row" }, h("label", { class: "check" }, grpc, "gRPC"), h("button", { type: "submit", class: "main", text: "Explain" })),
      services, h("datalist", { id: "methods" }, ...["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"].map((value) => h("option", { value }))));
    const request = card("Request", form);
    request.body.classList.add("flush");
    const answer = h("div", { class: "panel", "aria-live": "polite" });
    let seen = [];

    async function ask() {
      for (const field of [method, host, path, headers, identity]) setParam(field.name, field.value, true);
      setParam("grpc", grpc.checked ? "1" : "", true);
      const sender = seen.find((it) => it.id === process.value) ?? seen[0];
      const question = {
        process: sender?.id ?? null, direction: "outbound", host: host.value.trim(), method: method.value.trim() || null, path: path.value.trim(), headers: lines(headers.value), protocol: grpc.checked ? "grpc" : "http",
        from: { identity: identity.value.trim() || sender?.inspection?.identity?.identity || null },
      };
      try {
        const sent = { ...await post("explain", question), to: known(sender, question.host) };
        // Who may call is decided where the request arrives.
        const servers = seen.filter((it) => sent.backends?.some((backend) => same(backend, it.inspection?.name)));
        const judged = servers.length ? await post("explain", { ...question, process: servers[0].id, direction: "inbound" }) : null;
        answer.replaceChildren(...told(sent, judged, sender, servers[0]));
      } catch (error) {
        answer.replaceChildren(card("Answer", h("p", {}, mark("bad", `no answer: ${error.message}`))).section);
      }
    }

    return {
      element: h("div", { class: "panel" }, request.section, answer),
      update({ inspect }) {
        seen = (inspect?.processes ?? []).filter((it) => it.inspection);
        const key = seen.map((it) => `${it.id} ${it.inspection.services.length}`).join();
        if (process.key === key) return;
        process.key = key;
        const chosen = process.value;
        process.replaceChildren(...seen.map((it) => h("option", { value: it.id ?? "", text: name(it, seen) })));
        if (seen.some((it) => it.id === chosen)) process.value = chosen;
        else process.value = seen.find((it) => it.inspection.services.some((service) => !service.own && service.balancer))?.id ?? seen[0]?.id ?? "";
        const names = [...new Set(seen.flatMap((it) => it.inspection.services.map((service) => service.name)))].sort();
        services.replaceChildren(...names.map((value) => h("option", { value })));
        if (!host.value) host.value = seen.flatMap((it) => it.inspection.services).find((service) => service.balancer && !service.own)?.name ?? names[0] ?? "";
      },
    };
  },
};

const same = (backend, own) => own && own.split(":")[0] === [backend.service, backend.namespace].filter(Boolean).join(".");

/** The service that a host names, as the process calls it. */
function known(sender, host) {
  const names = (sender?.inspection?.services ?? []).map((it) => it.name);
  const wanted = host.replace(/\.svc(\.[a-z.-]+)?(?=:|$)/, "");
  return names.find((it) => it === wanted) ?? names.find((it) => it.split(":")[0] === wanted);
}

function lines(text) {
  const headers = {};
  for (const line of text.split("\n")) {
    const at = line.indexOf(":", 1);
    if (at > 0) (headers[line.slice(0, at).trim()] ??= []).push(line.slice(at + 1).trim());
  }
  return headers;
}

const OUTCOMES = {
  forward: ["good", "is forwarded"], redirect: ["muted", "is redirected"], respond: ["muted", "is answered by the route itself"], reject: ["bad", "is rejected"], no_route: ["bad", "finds no route"],
};

function told(sent, judged, sender, server) {
  const [level, text] = OUTCOMES[sent.outcome] ?? ["muted", sent.outcome];
  const status = sent.status ? ` with ${sent.status}${sent.grpc_status === null || sent.grpc_status === undefined ? "" : ` (gRPC ${sent.grpc_status})`}` : "";
  const verdict = h("p", { class: "verdict" }, mark(level, `The request ${text}${status}`), h("strong", { text: sent.outcome === "no_route" || sent.status === 400 ? "" : sent.route ? `by route ${sent.route}` : "by the service's own settings: no route is for it" }), h("span", { class: "note mono", text: sent.rule ?? "" }));
  const facts = list([
    ["Backends", backends(sent.backends)],
    ["Redirect", sent.redirect && `${sent.redirect.status} to ${sent.redirect.location}`],
    ["Timeouts", sent.timeouts && (pairs(sent.timeouts) || "none")],
    ["Retries", retry(sent.retry)],
    ["Authorization", authorization(judged, server)],
    ["As the backend sees it", sent.request && `${sent.request.method} ${sent.request.path}, host ${sent.request.host}`],
    ["Headers changed", changes(sent.request)],
    ["Response headers changed", changes(sent.response)],
    ["Mirrored to", (sent.mirrors ?? []).map((it) => `${place(it)} ${percent(it.fraction, 1)}`).join(", ")],
    ["Faults on purpose", sent.fault && [sent.fault.delay && `delay ${pairs(sent.fault.delay)}`, sent.fault.abort && `abort ${pairs(sent.fault.abort)}`].filter(Boolean).join("; ")],
  ]);
  const answer = card(`Answer of ${short(sender?.name)}`, verdict, facts);
  const why = card("Why no other route", sent.why?.length ? h("ul", { class: "why" }, ...sent.why.map((text) => h("li", { text: named(text, sender, sent) }))) : h("p", { class: "note", text: "There is no other." }));
  const cards = [answer.section, why.section];
  if (judged) {
    const arrival = card(`Where it arrives: ${short(server.name)}`, list([
      ["Route", judged.outcome === "no_route" ? "none" : routeName(judged.route)], ["Timeouts", judged.timeouts && (pairs(judged.timeouts) || "none")], ["Authorization", authorization(judged, server)],
    ]));
    cards.push(arrival.section);
  }
  return cards;
}

/** `routes[2]: path …` with the route's name for its number. */
function named(text, sender, sent) {
  const services = sender?.inspection?.services ?? [];
  const service = services.find((it) => sent.to === it.name);
  return text.replace(/^routes\[(\d+)\]/, (all, at) => service?.routes[at]?.name || all);
}

function list(facts) {
  return h("dl", { class: "facts" }, ...facts.filter(([, value]) => value).flatMap(([key, value]) => [h("dt", { text: key }), h("dd", {}, value)]));
}

const place = (it) => (it.service ? `${[it.service, it.namespace].filter(Boolean).join(".")}:${it.port}` : it.reason ?? "nobody");
const pairs = (tree) => Object.entries(tree).filter(([, value]) => value !== null).map(([key, value]) => `${key.replaceAll("_", " ")} ${value}`).join(", ");

function backends(all) {
  if (!all?.length) return null;
  return h("ul", { class: "why" }, ...all.map((it) => h("li", { text: `${place(it)}${it.subset ? ` (${it.subset})` : ""}: ${percent(it.share, 1)}${it.status ? `, answered with ${it.status}` : ""}` })));
}

function retry(it) {
  if (!it) return "none, but of what was certainly not processed";
  return `at most ${it.attempts_max} attempts, on ${it.on.join(", ")}; budget: ${pairs(it.budget)}`;
}

function authorization(judged, server) {
  if (!judged) return h("span", { class: "note", text: "decided where it arrives, by a process that this page does not know" });
  const { decision, rule } = judged.authz ?? {};
  if (decision === "allow") return mark("good", `allowed${rule ? ` by ${rule}` : ""}`);
  if (decision === "deny") return mark("bad", `refused${rule ? ` by ${rule}` : ""}`);
  return mark("muted", `${short(server.name)} lets everybody in: it has no authorization policy`);
}

function changes(it) {
  if (!it) return null;
  const text = (tree, sign) => Object.entries(tree ?? {}).map(([key, value]) => `${sign} ${key}: ${[].concat(value).join(", ")}`);
  const all = [...text(it.set_headers, "="), ...text(it.added_headers, "+"), ...(it.removed_headers ?? []).map((key) => `− ${key}`)];
  return all.length ? h("ul", { class: "why mono" }, ...all.map((line) => h("li", { text: line }))) : null;
}
