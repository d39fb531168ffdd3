// What is set: generations with what each update changed, what was refused, retry budgets and limits.

import { SIGNS, card, clock, count, h, keyed, setText, short } from "/page/dom.js";
import { table } from "/page/table.js";

export const config = {
  id: "config", title: "Configuration", needs: [],
  make() {
    const faults = h("ul", { class: "updates" });
    const faultsCard = card("Faults now", faults, h("p", { class: "empty", text: "None: everything that was given is in use." }));
    faultsCard.body.classList.add("flush");
    const refused = h("ul", { class: "updates" });
    const refusedCard = card("Refused inputs", refused, h("p", { class: "empty", text: "Nothing was refused since the start." }));
    refusedCard.body.classList.add("flush");
    refusedCard.head.append(h("span", { class: "note", text: "the last good one stayed in use" }));
    const updates = h("ul", { class: "updates" });
    const updatesCard = card("Last updates", updates, h("p", { class: "empty", text: "No update yet." }));
    updatesCard.body.classList.add("flush");
    const generations = table({
      caption: "Configuration generation of each process", keyOf: (row) => row.key, sortBy: { key: "process", dir: "ascending" },
      columns: [
        { key: "process", label: "Process", head: true, sort: (row) => row.name, text: (row) => row.name },
        { key: "generation", label: "Generation", num: true, sort: (row) => row.generation, text: (row) => count(row.generation) },
        { key: "services", label: "Services", num: true, sort: (row) => row.services, text: (row) => count(row.services) },
        { key: "faults", label: "Faults", num: true, sort: (row) => row.faults, text: (row) => count(row.faults) },
      ],
    });
    const generationsCard = card("Processes", generations.element);
    generationsCard.body.classList.add("flush");
    const budgets = table({
      caption: "Retry budgets", keyOf: (row) => row.key, sortBy: { key: "service", dir: "ascending" }, empty: "No process here calls anybody yet.",
      columns: [
        { key: "service", label: "Service", head: true, sort: (row) => row.service, text: (row) => row.service },
        { key: "by", label: "Caller", sort: (row) => row.by, text: (row) => row.by },
        { key: "level", label: "Retries left now", num: true, sort: (row) => row.level, text: (row) => count(row.level) },
        { key: "rules", label: "Rules", text: (row) => row.rules, wrap: true },
        { key: "limits", label: "Limits", text: (row) => row.limits, wrap: true },
      ],
    });
    const budgetsCard = card("Retry budgets and limits", budgets.element);
    budgetsCard.body.classList.add("flush");
    const settings = h("div", { class: "panel" });
    const settingsCard = card("Settings in use", settings);
    return {
      element: h("div", { class: "panel" }, faultsCard.section, h("div", { class: "two" }, updatesCard.section, h("div", { class: "panel" }, generationsCard.section, refusedCard.section)), budgetsCard.section, settingsCard.section),
      update({ inspect }) {
        const seen = (inspect?.processes ?? []).filter((it) => it.inspection);
        generations.update(seen.map((it) => ({
          key: `${it.id} ${it.addr}`, name: name(it, seen), generation: it.inspection.generation, services: it.inspection.services.length,
          faults: new Set(faultsOf(it)).size,
        })));
        const now = merged(seen.flatMap((it) => faultsOf(it).map((fault) => ({ key: fault, fault, who: short(it.name) }))));
        list(faults, now, (it) => h("li", {}, h("span", { class: severe(it.fault) ? "bad" : "warn", text: `${SIGNS[severe(it.fault) ? "bad" : "warn"]} ` }), h("span", { class: "mono" }), h("span", { class: "note" })), (li, it) => {
          setText(li.children[1], it.fault);
          setText(li.children[2], ` ${severe(it.fault) ? "— the last good one stays in use" : "— the rest is in use"} (${it.who})`);
        });
        const past = merged(seen.flatMap((it) => it.inspection.refused.map((refusal) => ({ ...refusal, key: refusal.faults.join("\n"), who: short(it.name) }))));
        list(refused, past, (it) => h("li", {}, h("span"), h("ul", { class: "faults mono" }, ...it.faults.map((fault) => h("li", { text: fault })))), (li, it) =>
          setText(li.firstChild, `${clock(it.at_ms)} for ${it.services.map(short).join(", ")} (${it.who})`));
        const changes = merged(seen.flatMap((it) => it.inspection.updates.map((update) => ({ ...update, key: `${update.kind}${update.service}${update.origin}${JSON.stringify(update.lines)}`, who: `${short(it.name)} #${update.generation}` }))));
        list(updates, changes.sort((a, b) => b.at_ms - a.at_ms).slice(0, 40), change, (li, it) => setText(li.querySelector(".who"), it.who));
        const called = seen.flatMap((it) => it.inspection.services.map((service) => ({ it, service }))).filter(({ service }) => service.retry_budget_level !== null || service.inbound_limit);
        budgets.update(called.map(({ it, service }) => ({
          key: `${it.id} ${service.name}`, service: service.name, by: name(it, seen), level: service.retry_budget_level, rules: words(service.retry_budget), limits: limits(service),
        })));
        const written = merged(seen.flatMap((it) => it.inspection.services.filter((service) => service.settings).map((service) => ({ key: service.name + JSON.stringify(service.settings), service, who: short(it.name) }))));
        keyed(settings, written, (it) => it.key, ({ service }) => h("details", {},
          h("summary", {}, h("strong", { text: service.name }), h("span", { class: "note", text: ` ${service.profile ?? ""} · ${service.routes.length} routes` })),
          h("pre", { class: "diff", tabindex: "0", "aria-label": `settings of ${service.name}` }, ...yaml(service.settings).map((line) => h("span", { text: line })))));
        settingsCard.section.hidden = written.length === 0;
      },
    };
  },
  badge: ({ inspect }) => new Set((inspect?.processes ?? []).filter((it) => it.inspection).flatMap(faultsOf).filter(severe)).size,
};

/** What is wrong with the newest inputs of a process: profiles, endpoints, authorization. */
const faultsOf = ({ inspection }) => [...inspection.services.flatMap((service) => service.faults), ...(inspection.authorization?.faults ?? [])];

const severe = (fault) => !/ (ignored|approximated): /.test(fault);

function limits(service) {
  const now = [["", service.limit], ["received: ", service.inbound_limit]].filter(([, it]) => it)
    .map(([side, it]) => `${side}${it.in_flight} of at most ${it.limit} under way${it.waiting ? `, ${it.waiting} wait` : ""}`);
  return [...now, words(service.settings?.limits)].filter(Boolean).join("; ") || "none but the defaults";
}

/** Processes of one name are told apart by their address. */
export function name(process, all) {
  const twins = all.filter((it) => it.name === process.name).length > 1;
  return twins ? `${short(process.name)} ${(process.addr ?? "").replace(/^https?:\/\//, "")}` : short(process.name);
}

/** One entry for what several processes tell alike; of the times, the first. */
function merged(entries) {
  const all = new Map();
  for (const entry of entries) {
    const same = all.get(entry.key);
    if (!same) all.set(entry.key, { ...entry, whose: new Set([entry.who]) });
    else {
      same.whose.add(entry.who);
      same.at_ms = Math.min(same.at_ms ?? 0, entry.at_ms ?? 0);
    }
  }
  return [...all.values()].map((entry) => ({ ...entry, who: [...entry.whose].join(", ") }));
}

function list(parent, entries, make, update) {
  keyed(parent, entries, (it) => it.key, make, update);
  parent.nextElementSibling.hidden = entries.length > 0;
}

function change(it) {
  const [plus, minus] = ["+", "-"].map((op) => it.lines.filter((line) => line.op === op).length);
  const size = it.lines.length ? `+${plus}${it.more ? "…" : ""} −${minus}` : "nothing that is shown here changed";
  const names = { "+": "add", "-": "del", "…": "skip" };
  const diff = h("div", { class: "diff", tabindex: "0", role: "region", "aria-label": `what changed in ${it.kind} of ${it.service} at ${clock(it.at_ms)}` },
    ...it.lines.map((line) => h("span", { class: names[line.op] ?? null, text: line.op === "…" ? "  …" : `${line.op} ${line.text}` })),
    it.more ? h("span", { class: "skip", text: `  … ${it.more} more lines` }) : null);
  return h("li", {}, h("details", {}, h("summary", {},
    h("span", { class: "muted", text: clock(it.at_ms) }), h("strong", { text: `${it.kind} of ${short(it.service)}` }), h("span", { class: "mono", text: size }),
    h("span", { class: "note", text: it.origin ?? "" }), h("span", { class: "note who" })), diff));
}

/** A small tree as words: `ratio 0.2, min per second 10`. */
function words(tree) {
  return Object.entries(tree ?? {}).filter(([, value]) => value !== null)
    .map(([key, value]) => `${key.replace(/_/g, " ").replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase()} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
}

/** A tree as the lines of a document. */
function yaml(tree, indent = "") {
  return Object.entries(tree).flatMap(([key, value]) => {
    const name = Array.isArray(tree) ? "-" : `${key}:`;
    if (value === null || typeof value !== "object") return [`${indent}${name} ${value}`];
    return [`${indent}${name}`, ...yaml(value, `${indent}  `)];
  });
}
