// Makes and updates elements. Text only ever enters the page as text.

/** An element. `attributes`: `class`, `on…` handlers, `text`, or attributes; `null` and `false` are left out. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. */
export function s(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Sets a text, if it is another. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

/** Makes the children of `parent` those of `items` by key: kept ones stay the same elements, in the new order. */
export function keyed(parent, items, keyOf, make, update) {
  const old = parent.entriesByKey ?? new Map();
  const now = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (now.has(key)) continue;
    const element = old.get(key) ?? make(item);
    old.delete(key);
    now.set(key, element);
    update?.(element, item);
  }
  for (const element of old.values()) {
    element.gone?.();
    element.remove();
  }
  let at = parent.firstElementChild;
  for (const element of now.values()) {
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
  }
  parent.entriesByKey = now;
}

/** A word with a sign, so that colour never says it alone. `level`: good, warn, bad or muted. */
export function mark(level, text) {
  return h("span", { class: level }, h("span", { class: "mark", "aria-hidden": "true", text: SIGNS[level] }), text);
}
export const SIGNS = { good: "✓", warn: "▲", bad: "✕", muted: "·" };

/** A cell's text over a bar of that share of its width. `level`: as of `mark`, or empty. */
export function bar(cell, text, share, level) {
  if (!cell.firstChild) cell.append(h("span"), h("span", { class: "bar", "aria-hidden": "true" }, h("i")));
  setText(cell.firstChild, text);
  setClass(cell.lastChild, `bar ${level}`);
  cell.lastChild.firstChild.style.setProperty("--share", String(Math.max(0, Math.min(1, share))));
}

/** A card with a heading. */
export function card(title, ...children) {
  const head = h("header", {}, h("h2", { text: title }));
  const body = h("div", { class: "body" });
  const section = h("section", { class: "card", "aria-label": title }, head, body);
  body.append(...children);
  return { section, head, body };
}

// ---- figures ----

const DASH = "–";

export function percent(share, digits = 2) {
  if (share === null || share === undefined) return DASH;
  const text = (share * 100).toFixed(digits);
  // 99.996 % is not all of it.
  return `${share < 1 && Number(text) === 100 ? `>${(100 - 10 ** -digits).toFixed(digits)}` : text} %`;
}

export function rate(value) {
  if (value === null || value === undefined) return DASH;
  return value >= 1000 ? `${(value / 1000).toFixed(1)}k` : value.toFixed(1);
}

export function count(value) {
  return value === null || value === undefined ? DASH : value.toLocaleString("en");
}

export function millis(value) {
  if (value === null || value === undefined) return DASH;
  if (value < 0.995) return `${Math.round(value * 1000)} µs`;
  if (value < 9.95) return `${value.toFixed(1)} ms`;
  if (value < 999.5) return `${Math.round(value)} ms`;
  return span(value / 1000);
}

/** A length of time in seconds, with two units at most. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  const left = Math.abs(seconds);
  const sign = seconds < 0 ? "−" : "";
  if (left < 10) return `${sign}${left.toFixed(1)} s`;
  if (left < 60) return `${sign}${Math.round(left)} s`;
  if (left < 3600) return `${sign}${Math.floor(left / 60)} min ${Math.floor(left % 60)} s`;
  if (left < 86400) return `${sign}${Math.floor(left / 3600)} h ${Math.floor((left % 3600) / 60)} min`;
  return `${sign}${Math.floor(left / 86400)} d ${Math.floor((left % 86400) / 3600)} h`;
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB");
}

/** How good a share of successes is. */
export function levelOf(share) {
  if (share === null || share === undefined) return "muted";
  if (share >= 0.999) return "good";
  return share >= 0.95 ? "warn" : "bad";
}

/** `voting-svc.emojivoto:8080` → `voting-svc`, unless that says nothing. */
export function short(service) {
  if (!service) return "?";
  return /^[\d[]/.test(service) ? service : service.split(/[.:]/)[0];
}

export function routeName(name) {
  return name === "" || name === null || name === undefined ? "[default]" : name;
}
