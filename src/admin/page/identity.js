// Who each process is, until when, and which connections are mutual TLS.

import { bar, card, count, h, mark, percent, rate, span } from "/page/dom.js";
import { table } from "/page/table.js";
import { name } from "/page/config.js";

const LEVELS = { calm: ["good", "valid"], low: ["warn", "less than 30 % of its life is left"], critical: ["bad", "less than 10 % of its life is left"], expired: ["bad", "expired, or not there yet"] };

export const identities = {
  id: "identity", title: "Identity", needs: ["edges"],
  make() {
    const own = table({
      caption: "Certificates of the processes", keyOf: (row) => row.key, sortBy: { key: "process", dir: "ascending" }, empty: "No process here has an identity.",
      columns: [
        { key: "process", label: "Process", head: true, sort: (row) => row.name, text: (row) => row.name },
        { key: "identity", label: "Identity", sort: (row) => row.identity, text: (row) => row.identity?.replace("spiffe://", "") ?? "none yet", wrap: true },
        { key: "left", label: "Ends in", num: true, wide: true, sort: (row) => row.not_after_ms, cell: left },
        { key: "state", label: "State", sort: (row) => row.alarm, cell: state, wrap: true },
        { key: "end", label: "Valid until", wide: true, sort: (row) => row.not_after_ms, text: (row) => when(row.not_after_ms) },
        { key: "epoch", label: "Certificate no.", short: "No.", num: true, sort: (row) => row.epoch, text: (row) => String(row.epoch) },
        { key: "refused", label: "Refused", num: true, sort: (row) => row.refused, text: (row) => String(row.refused) },
      ],
    });
    const ownCard = card("Certificates", own.element);
    ownCard.body.classList.add("flush");
    const rules = table({
      caption: "Authorization rules of the processes", keyOf: (row) => row.key, sortBy: { key: "order", dir: "ascending" },
      columns: [
        { key: "order", label: "Rule, in order", head: true, sort: (row) => row.order, text: (row) => row.name },
        { key: "process", label: "Process", sort: (row) => row.process, text: (row) => row.process },
        { key: "action", label: "Does", sort: (row) => row.action, cell: does },
        { key: "refusals", label: "Refused", num: true, sort: (row) => row.refusals, text: (row) => (row.action === "allow" ? "–" : count(row.refusals)), title: "since the policy is in use; of a rule on trial: what it would have refused" },
      ],
    });
    const rulesCard = card("Authorization", rules.element);
    rulesCard.body.classList.add("flush");
    rulesCard.head.append(h("span", { class: "note", text: "who may call a process that has rules; the first that fits decides" }));
    const edges = table({
      caption: "Who talks to whom, and how it is secured", keyOf: (row) => row.key, sortBy: { key: "secured", dir: "ascending" }, empty: "Nobody has called anybody in this window.",
      columns: [
        { key: "src", label: "From", head: true, sort: (row) => row.src ?? "", text: (row) => row.src ?? "unknown" },
        { key: "dst", label: "To", wide: true, sort: (row) => row.dst, text: (row) => row.dst },
        { key: "secured", label: "Secured", sort: (row) => Number(row.secured), cell: secured, wrap: true },
        { key: "client", label: "Caller's identity", sort: (row) => row.client_id, text: (row) => row.client_id?.replace("spiffe://", "") ?? "–", wrap: true },
        { key: "server", label: "Server's identity", sort: (row) => row.server_id, text: (row) => row.server_id?.replace("spiffe://", "") ?? "–", wrap: true },
        { key: "success", label: "Success", num: true, sort: (row) => row.success_rate, text: (row) => percent(row.success_rate, 1) },
        { key: "rps", label: "Req/s", num: true, sort: (row) => row.rps, text: (row) => rate(row.rps) },
      ],
    });
    const edgesCard = card("Connections", edges.element);
    edgesCard.body.classList.add("flush");
    return {
      element: h("div", { class: "panel" }, ownCard.section, edgesCard.section, rulesCard.section),
      update({ inspect, edges: told }) {
        const seen = (inspect?.processes ?? []).filter((it) => it.inspection);
        own.update(seen.filter((it) => it.inspection.identity).map((it) => {
          const { identity, at_ms } = it.inspection;
          const remaining = identity.not_after_ms === null ? null : (identity.not_after_ms - at_ms) / 1000;
          const life = (identity.not_after_ms - identity.not_before_ms) / 1000;
          return { ...identity, key: `${it.id} ${it.addr}`, name: name(it, seen), left: remaining, share: life > 0 ? remaining / life : 0 };
        }));
        const written = seen.flatMap((it) => (it.inspection.authorization?.rules ?? []).map((rule, at, all) =>
          ({ ...rule, key: `${it.id} ${at}`, order: `${name(it, seen)} ${String(at).padStart(5, "0")}`, process: name(it, seen), name: at === all.length - 1 ? `else (${rule.name})` : rule.name })));
        rules.update(written);
        rulesCard.section.hidden = written.length === 0;
        edges.update((told?.edges ?? []).map((edge) => ({ ...edge, key: [edge.src, edge.src_namespace, edge.dst, edge.dst_namespace, edge.direction, edge.client_id, edge.server_id, edge.no_tls_reason].join("\n") })));
      },
    };
  },
  badge: ({ inspect }) => (inspect?.processes ?? []).filter((it) => ["critical", "expired"].includes(it.inspection?.identity?.alarm)).length,
};

const when = (ms) => (ms === null ? "–" : new Date(ms).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));

function left(cell, row) {
  const text = row.left !== null && row.left < 0 ? `ended ${span(-row.left)} ago` : span(row.left);
  bar(cell, text, row.share, LEVELS[row.alarm]?.[0] ?? "");
}

function tell(cell, level, text) {
  if (cell.told === level + text) return;
  cell.told = level + text;
  cell.replaceChildren(mark(level, text));
}

function state(cell, row) {
  const [level, text] = LEVELS[row.alarm] ?? ["muted", row.alarm];
  tell(cell, row.fault ? (level === "good" ? "warn" : level) : level, row.fault ? `${text}; the last one was not taken: ${row.fault}` : text);
}

const DOES = { allow: ["good", "lets in"], deny: ["bad", "refuses"], audit: ["warn", "lets in, on trial: would refuse"], not_found: ["muted", "answers: no such route"] };

function does(cell, row) {
  tell(cell, ...(DOES[row.action] ?? ["muted", row.action]));
}

function secured(cell, row) {
  tell(cell, row.secured ? "good" : "warn", row.secured ? "mutual TLS" : `no: ${(row.no_tls_reason ?? "unknown").replaceAll("_", " ")}`);
}

