// What stands out, in sentences: the answer to "what is wrong here, and why".

import { count, millis, percent, rate, routeName, short, span } from "/page/dom.js";
import { attempts, ended, endedCount, failing, isSlow, slowness } from "/page/why.js";

const ORDER = { bad: 0, warn: 1, good: 2 };

/** `{ level, text, more, href, key }`, the worst first. */
export function findings(state) {
  const { stat, inspect, slo } = state;
  const all = [
    ...processes(stat ?? inspect), ...(inspect?.processes ?? []).flatMap(configuration), ...breakers(inspect),
    ...(inspect?.processes ?? []).flatMap(identity), ...(slo?.objectives ?? []).flatMap(objective), ...access(state), ...sides(stat).flatMap((row) => route(row, state)),
  ];
  const once = new Map(all.map((finding) => [finding.key, finding]));
  return [...once.values()].sort((a, b) => ORDER[a.level] - ORDER[b.level] || (b.weight ?? 0) - (a.weight ?? 0));
}

const processes = (told) => (told?.processes ?? []).filter((it) => it.error).map((it) => ({
  key: `process ${it.addr}`, level: "bad", weight: 9, text: `${it.name || it.addr} does not answer`, more: it.error,
}));

function configuration({ inspection, name }) {
  return (inspection?.services ?? []).flatMap((service) => service.faults.map((fault) => ({
    key: `fault ${fault}`,
    level: / (ignored|approximated): /.test(fault) ? "warn" : "bad",
    weight: 8,
    text: `Configuration of ${short(service.name)}: a fault`,
    more: `${fault}${/ (ignored|approximated|runtime-failure): /.test(fault) ? "" : " — the last good one stays in use"}`,
    href: "#config",
    by: name,
  })));
}

function breakers(inspect) {
  return (inspect?.processes ?? []).flatMap(({ inspection }) => (inspection?.services ?? []).flatMap((service) =>
    service.endpoints.filter((endpoint) => !endpoint.open || Object.keys(endpoint.routes).length).map((endpoint) => {
      const [route, breaker] = endpoint.open ? Object.entries(endpoint.routes)[0] : [null, endpoint.breaker];
      return {
        key: `breaker ${inspection.name} ${service.name} ${endpoint.addr} ${route}`, level: "warn", weight: 7,
        text: `${short(inspection.name)} leaves ${endpoint.addr} of ${short(service.name)} alone${route ? ` for ${route}` : ""}`,
        more: breaker.reason ? `${breaker.reason}; tried again in ${millis(breaker.retry_in_ms)}` : "one request is trying it",
        href: "#endpoints",
      };
    })));
}

function identity({ inspection }) {
  const it = inspection?.identity;
  if (!it || (it.alarm === "calm" && !it.fault)) return [];
  const left = it.not_after_ms ? (it.not_after_ms - inspection.at_ms) / 1000 : null;
  const text = it.alarm === "expired"
    ? `${short(inspection.name)} has no valid certificate`
    : `The certificate of ${short(inspection.name)} ends in ${span(left)}`;
  return [{
    key: `identity ${inspection.name}`, level: it.alarm === "low" || it.alarm === "calm" ? "warn" : "bad", weight: 6, text, more: it.fault ?? "its renewal is overdue",
    href: "#identity",
  }];
}

const objective = (it) => {
  const firing = it.burn.filter((burn) => burn.firing);
  if (!firing.length) return [];
  const worst = firing[0];
  return [{
    key: `slo ${it.service} ${it.route} ${it.kind}`, level: worst.severity === "page" ? "bad" : "warn", weight: 5,
    text: `${short(it.service)} ${it.route === null ? "" : routeName(it.route)} burns its error budget`,
    more: `${worst.long_rate?.toFixed(1)} times as fast as it may (over ${worst.long}); objective ${percent(it.target)}`,
    href: "#slo",
  }];
};

/** Of a route's two sides the one that knows why stands last: it is the one that is told. */
const sides = (stat) => (stat?.rows ?? []).filter((row) => row.kind === "route" && row.requests)
  .toSorted((a, b) => Boolean(endedCount(a)) - Boolean(endedCount(b)) || (a.direction === "outbound") - (b.direction === "outbound"));

/** Outbound rows tell of attempts too; inbound ones of what comes from callers that nobody watches. */
function route(row, state) {
  const name = `${short(row.service)} ${routeName(row.route)}`;
  const link = `#routes?q=${encodeURIComponent(routeName(row.route))}`;
  const key = `route ${row.service} ${row.route}`;
  const told = [];
  const say = (...parts) => parts.filter(Boolean).join("; ");
  if (endedCount(row) && !(row.success_rate < 0.99)) {
    told.push({ key: `${key} why`, level: "warn", weight: 4, text: `${name}: ${ended(row, { answersToo: false })}`, more: say(`of ${count(row.requests)} requests`, failing(row, state)), href: link });
  }
  if (row.success_rate !== null && row.success_rate < 0.99) {
    told.push({
      key, level: row.success_rate < 0.95 ? "bad" : "warn", weight: 4 + (1 - row.success_rate) * (row.rps ?? 0) / 1000,
      text: `${name} fails: ${percent(row.success_rate, 1)} success`,
      more: say(`${count(row.failures)} of ${count(row.requests)} requests failed (${rate(row.rps)}/s): ${ended(row)}`, failing(row, state), row.no_budget && `${count(row.no_budget)} retries refused by the budget`),
      href: link,
    });
  }
  const actual = row.actual?.success_rate;
  if (actual !== null && actual !== undefined && row.success_rate - actual > 0.005) {
    told.push({
      key: `${key} retries`, level: "warn", weight: 3,
      text: `Retries hide failures of ${name}`,
      more: say(`${percent(actual, 1)} of attempts succeed, callers see ${percent(row.success_rate, 1)}`, `${count(row.retries)} retries for ${count(row.requests)} requests`, attempts(row, state)),
      href: link,
    });
  } else if (row.no_budget > 0 && !told.length) {
    told.push({ key: `${key} budget`, level: "warn", weight: 3, text: `The retry budget of ${short(row.service)} is spent`, more: `${count(row.no_budget)} retries of ${name} were refused`, href: link });
  }
  if (isSlow(row)) {
    told.push({
      key: `${key} slow`, level: "warn", weight: 2, text: `${name} is slow: p99 ${millis(row.latency_ms.p99)}`,
      more: say(`half of its requests take ${millis(row.latency_ms.p50)}`, slowness(row, state)), href: link,
    });
  }
  return told;
}

/** Rules on trial, and policies that were not taken. */
function access({ inspect }) {
  const all = (inspect?.processes ?? []).filter((it) => it.inspection?.authorization);
  const trials = new Map();
  for (const { inspection } of all) {
    for (const it of inspection.authorization.rules.filter((it) => it.action === "audit" && it.refusals)) {
      const key = `audit ${inspection.name} ${it.name}`;
      trials.set(key, { name: it.name, of: inspection.name, refusals: (trials.get(key)?.refusals ?? 0) + it.refusals });
    }
  }
  return [
    ...[...trials].map(([key, it]) => ({
      key, level: "warn", weight: 1, text: `On trial: ${it.name} would refuse requests of ${short(it.of)}`,
      more: `${count(it.refusals)} so far; they are let in`, href: "#tap?outcome=audited",
    })),
    ...all.flatMap(({ inspection }) => inspection.authorization.faults.map((fault) => ({
      key: `authorization ${fault}`, level: "bad", weight: 8, text: `Authorization of ${short(inspection.name)}: a fault`,
      more: `${fault} — the last good one stays in use`, href: "#config",
    }))),
  ];
}
