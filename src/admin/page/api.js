// Asks this server. Nothing else is ever asked.

/** The longest that an answer may take. */
const PATIENCE_MS = 8000;

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!response.ok) throw new Error((await response.text()).trim().slice(0, 300) || `status ${response.status}`);
  return response.json();
}

export const get = (path, query = {}) => {
  const text = new URLSearchParams(query).toString();
  return ask(`/api/v1/${path}${text ? `?${text}` : ""}`);
};

export const post = (path, body) => ask(`/api/v1/${path}`, { method: "POST", body: JSON.stringify(body) });

/**
 * Asks again and again, one question after the other: every `every` ms, more seldom while there is no answer or nobody
 * looks.
 */
export class Poll {
  #timer = 0;
  #failures = 0;
  #running = false;
  paused = false;

  constructor(every, question, told) {
    Object.assign(this, { every, question, told });
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** Asks now. */
  async now() {
    clearTimeout(this.#timer);
    if (this.#running || this.paused || document.hidden) return;
    this.#running = true;
    const [answer, error] = await this.question().then((answer) => [answer, null], (error) => [null, error]);
    this.#running = false;
    this.#failures = error ? Math.min(this.#failures + 1, 4) : 0;
    // Of a process that is gone, once in some seconds is enough.
    const wait = error ? (this.every / 2) * 2 ** this.#failures : this.every;
    this.#timer = setTimeout(() => this.now(), Math.min(10_000, wait));
    this.told(answer, error);
  }
}
