// Why a route is as it is: slow, failing, tried again, shed or denied; out of what figures and processes tell.

import { count, millis, percent, short } from "/page/dom.js";

const CAUSES = ["shed", "denied", "late", "unreached", "faults"];

/** The words of `failed_by` that the mesh itself says, by their cause; all others are a peer's answers. */
const CAUSE_OF = {
  "rate limited": "shed", overloaded: "shed", "breaker open": "shed", "queue timeout": "shed", denied: "denied",
  "request timeout": "late", "attempt timeout": "late", "response timeout": "late", "idle timeout": "late",
  "no endpoint": "unreached", "no connection": "unreached", "refused by the connection": "unreached",
};

const byCount = (tree) => Object.entries(tree ?? {}).sort(([, a], [, b]) => b - a);

/** What the mesh itself ended of a row, and what its peers answered: `4 shed (rate limited), 2 status 503`. */
export function ended(row, { answersToo = true } = {}) {
  const told = byCount(row.failed_by);
  const own = CAUSES.filter((cause) => row[cause]).map((cause) => {
    const words = told.filter(([word]) => CAUSE_OF[word] === cause && word !== cause).map(([word]) => word);
    return `${count(row[cause])} ${cause}${words.length ? ` (${words.join(", ")})` : ""}`;
  });
  const answers = told.filter(([word]) => !CAUSE_OF[word]).slice(0, 3).map(([word, times]) => `${count(times)} ${word}`);
  return [...own, ...(answersToo ? answers : [])].join(", ");
}

/** How many the mesh itself ended. */
export const endedCount = (row) => CAUSES.reduce((sum, cause) => sum + (row[cause] ?? 0), 0);

/** How the attempts of a route's calls failed, and where: `7 late (attempt timeout); all of them at 127.0.0.1:8080`. */
export function attempts(row, state) {
  const backends = (state.stat?.rows ?? []).filter((it) => it.kind === "backend" && it.service === row.service && it.route === row.route);
  const sum = { failed_by: {} };
  for (const it of backends) {
    CAUSES.forEach((cause) => { sum[cause] = (sum[cause] ?? 0) + it[cause]; });
    for (const [word, times] of Object.entries(it.failed_by ?? {})) sum.failed_by[word] = (sum.failed_by[word] ?? 0) + times;
  }
  return [ended(sum), where(row.service, state)].filter(Boolean).join("; ");
}

/** The replicas of a service that were called. */
const replicas = (service, { stat }) => (stat?.rows ?? []).filter((it) => it.kind === "endpoint" && plain(it.service) === plain(service) && it.requests);

/** The one replica of several that fails most, if it does. */
function where(service, state) {
  const all = replicas(service, state);
  const failures = all.reduce((sum, it) => sum + it.failures, 0);
  const requests = all.reduce((sum, it) => sum + it.requests, 0);
  const [worst] = all.toSorted((a, b) => b.failures - a.failures);
  if (all.length < 2 || !failures || worst.failures < failures * 0.8 || worst.requests > requests * 0.6) return "";
  return `${worst.failures === failures ? "all of its failures" : "most of its failures"} are at ${worst.endpoint}`;
}

/** The calls that a service's own processes make. */
const onward = (service, { edges }) => (edges?.edges ?? []).filter((edge) => edge.src === short(service) && edge.src !== edge.dst && edge.requests);

/** What the mesh did to a route's calls, by what there is to do about it. */
const DONE = {
  shed: (row) => `${row.direction === "outbound" ? "its callers" : "its server"} refused them: limits, breakers and queues do`,
  denied: (row, state) => `authorization refused them${rule(row, state)}`,
  late: (row, state) => `they took longer than they may${slowest(row, state)}`,
  unreached: () => "no endpoint took them",
  faults: () => "its profile breaks them on purpose",
};

function rule(row, state) {
  const rules = (state.inspect?.processes ?? []).filter(({ inspection }) => same(inspection?.name, row.service))
    .flatMap(({ inspection }) => inspection.authorization?.rules ?? []).filter((it) => it.action === "deny" && it.refusals);
  const names = [...new Set(rules.map((it) => it.name))];
  return names.length ? ` by ${names.slice(0, 3).join(", ")}` : "";
}

/** A service's name without a cluster's domain, which some rows have. */
const plain = (service) => service.replace(/\.svc(\.[^:]*)?(?=:|$)/, "");

/** Whether two names are of one service, whatever its port. */
const same = (a, b) => Boolean(a && b) && plain(a).replace(/:\d+$/, "") === plain(b).replace(/:\d+$/, "");

function slowest(row, state) {
  const one = slow(row.service, state);
  return one ? `: ${one}` : "";
}

/** One replica that is much slower than another, in words. */
function slow(service, state) {
  const all = replicas(service, state).filter((it) => it.latency_ms).toSorted((a, b) => a.latency_ms.p50 - b.latency_ms.p50);
  const [fast, last] = [all[0], all.at(-1)];
  if (all.length < 2 || last.latency_ms.p50 < fast.latency_ms.p50 * 5 || last.latency_ms.p50 < 20) return "";
  return `${last.endpoint} takes ${millis(last.latency_ms.p50)}, ${fast.endpoint} ${millis(fast.latency_ms.p50)}`;
}

/** Why a route's calls fail, in a sentence without a full stop. */
export function failing(row, state) {
  const worst = CAUSES.filter((cause) => row[cause]).sort((a, b) => row[b] - row[a])[0];
  const bad = onward(row.service, state).filter((edge) => edge.success_rate !== null && edge.success_rate < 0.99);
  return [
    worst && DONE[worst](row, state),
    row.direction === "outbound" || replicas(row.service, state).length ? where(row.service, state) : "",
    // What a service's own calls meet, it mostly passes on.
    worst ? "" : bad.map((edge) => `its own calls of ${edge.dst} succeed by ${percent(edge.success_rate, 1)}`).join(", "),
  ].filter(Boolean).join("; ");
}

/** Whether a route is slow: its median is a second, or its tail long and five times the median. */
export function isSlow(row) {
  const { p50, p99 } = row.latency_ms ?? {};
  return row.requests >= 20 && (p50 >= 1000 || (p99 >= 100 && p99 >= 5 * p50));
}

/** Why a route is slow, in a sentence without a full stop. */
export function slowness(row, state) {
  const { p99 } = row.latency_ms;
  const waits = (state.inspect?.processes ?? []).flatMap((it) => it.inspection?.services ?? [])
    .filter((it) => it.label === row.service || same(it.name, row.service))
    .reduce((sum, it) => sum + (it.limit?.waiting ?? 0) + (it.inbound_limit?.waiting ?? 0), 0);
  const next = onward(row.service, state).filter((edge) => edge.latency_ms?.p99 >= p99 * 0.6).sort((a, b) => b.latency_ms.p99 - a.latency_ms.p99)[0];
  const because = [
    waits && `${count(waits)} wait for a place now`,
    slow(row.service, state),
    next && `it waits for ${next.dst}, whose p99 is ${millis(next.latency_ms.p99)}`,
    row.actual?.latency_ms && row.retries && row.actual.latency_ms.p99 < p99 * 0.7 && "those that are tried again take longer",
  ].filter(Boolean);
  return because.length ? because.join("; ") : "its server itself takes that long";
}
