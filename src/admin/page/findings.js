// What stands out, in sentences: the answer to "what is wrong here, and why".

import { causes, millis, percent, rate, routeName, short, span } from "/page/dom.js";

const ORDER = { bad: 0, warn: 1, good: 2 };

/** `{ level, text, more, href, key }`, the worst first. */
export function findings({ stat, inspect, slo }) {
  const all = [
    ...processes(stat ?? inspect), ...(inspect?.processes ?? []).flatMap(configuration), ...breakers(inspect),
    ...(inspect?.processes ?? []).flatMap(identity), ...(slo?.objectives ?? []).flatMap(objective), ...sides(stat).flatMap(route),
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
const sides = (stat) => (stat?.rows ?? []).toSorted((a, b) => Boolean(causes(a)) - Boolean(causes(b)));

/** What the mesh did to a route's calls, by what there is to do about it. */
const WHY = {
  shed: (row) => `limits, breakers or queues of ${row.direction === "outbound" ? "its callers" : "its server"} refused them`,
  denied: () => "authorization refused them",
  late: () => "they took longer than they may",
  unreached: () => "no endpoint took them",
  faults: () => "its profile breaks them on purpose",
};

const why = (row) => WHY[Object.keys(WHY).filter((cause) => row[cause]).sort((a, b) => row[b] - row[a])[0]](row);

/** Outbound rows tell of attempts too; inbound ones of what comes from callers that nobody watches. */
function route(row) {
  if (row.kind !== "route" || !row.requests) return [];
  const name = `${short(row.service)} ${routeName(row.route)}`;
  const link = `#routes?q=${encodeURIComponent(routeName(row.route))}`;
  const key = `route ${row.service} ${row.route}`;
  const told = [];
  if (causes(row) && !(row.success_rate < 0.99)) {
    told.push({ key: `${key} why`, level: "warn", weight: 4, text: `${name}: ${causes(row)}`, more: `of ${row.requests} requests; ${why(row)}`, href: link });
  }
  if (row.success_rate !== null && row.success_rate < 0.99) {
    told.push({
      key, level: row.success_rate < 0.95 ? "bad" : "warn", weight: 4 + (1 - row.success_rate) * (row.rps ?? 0) / 1000,
      text: `${name} fails: ${percent(row.success_rate, 1)} success`,
      more: `${row.failures} of ${row.requests} requests failed (${rate(row.rps)}/s)${causes(row) && `; ${causes(row)}: ${why(row)}`}${row.no_budget ? `; ${row.no_budget} retries refused by the budget` : ""}`,
      href: link,
    });
  }
  const actual = row.actual?.success_rate;
  if (actual !== null && actual !== undefined && row.success_rate - actual > 0.005) {
    told.push({
      key: `${key} retries`, level: "warn", weight: 3,
      text: `Retries hide failures of ${name}`,
      more: `${percent(actual, 1)} of attempts succeed, callers see ${percent(row.success_rate, 1)}; ${row.retries} retries for ${row.requests} requests`,
      href: link,
    });
  } else if (row.no_budget > 0 && !told.length) {
    told.push({ key: `${key} budget`, level: "warn", weight: 3, text: `The retry budget of ${short(row.service)} is spent`, more: `${row.no_budget} retries of ${name} were refused`, href: link });
  }
  return told;
}
