// The page: a grid to vote in, what became of the vote, and the leaderboard. No library and no build step.
(() => {
  "use strict";

  const main = document.getElementById("main");
  const said = document.getElementById("said");
  const REFRESH_MS = 2000;

  // What is on the screen. A view that is no longer this one draws nothing more.
  let view = 0;
  let timer = 0;
  let emojiSeen = null;

  function make(tag, props = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const glyph = (text) => make("span", { class: "glyph", "aria-hidden": "true" }, text);
  const plain = (shortcode) => shortcode.replaceAll(":", "").replaceAll("_", " ");

  // The parsed answer of the API, or an error whose message says what it answered.
  async function ask(path) {
    const answer = await fetch(path, { headers: { accept: "application/json" } });
    const text = await answer.text();
    let body = null;
    try {
      body = text ? JSON.parse(text) : null;
    } catch {
      // No JSON: the status says enough.
    }
    if (!answer.ok) throw new Error(body?.error ?? `the server answered ${answer.status}`);
    return body;
  }

  function show(title, ...nodes) {
    document.title = title;
    main.replaceChildren(...nodes);
  }

  // Moves the reader to the new view's heading, as a page load would.
  function land() {
    const heading = main.querySelector("h1");
    if (!heading) return;
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }

  function card({ kind, mark, title, lines, actions }) {
    return make("section", { class: `card ${kind}` }, glyph(mark), make("h1", {}, title), ...lines,
      make("div", { class: "actions" }, ...actions));
  }

  const toVote = (label) => make("a", { class: "button first", href: "/", "data-link": "" }, label);
  const toBoard = () => make("a", { class: "button", href: "/leaderboard", "data-link": "" }, "View the leaderboard");

  function failed(title, lead, error) {
    show(`${title} · Emoji Vote`, card({
      kind: "bad",
      mark: "🚧",
      title,
      lines: [make("p", {}, lead), make("code", {}, error.message)],
      actions: [toVote("Select again"), toBoard()],
    }));
    land();
  }

  async function vote(emoji, button) {
    const mine = view;
    button.setAttribute("aria-busy", "true");
    try {
      await ask(`/api/vote?choice=${encodeURIComponent(emoji.shortcode)}`);
      if (mine !== view) return;
      show("Voted · Emoji Vote", card({
        kind: "good",
        mark: emoji.unicode,
        title: `You voted for ${emoji.shortcode}`,
        lines: [make("p", {}, "Your vote counts. So does the next one.")],
        actions: [toVote("Pick another one"), toBoard()],
      }));
      land();
    } catch (error) {
      if (mine !== view) return;
      failed("Oops, that vote got lost", `The voting service had trouble with ${emoji.unicode} ${emoji.shortcode}.`, error);
    }
  }

  function grid(list) {
    const cell = (emoji) => {
      const label = `Vote for ${plain(emoji.shortcode)}`;
      const button = make("button", { type: "button", "aria-label": label, title: emoji.shortcode }, glyph(emoji.unicode));
      button.addEventListener("click", () => vote(emoji, button));
      return make("li", {}, button);
    };
    return make("ul", { class: "grid" }, ...list.map(cell));
  }

  async function votePage(mine) {
    const draw = (list) => show("Emoji Vote",
      make("h1", {}, "Emoji Vote"),
      make("p", { class: "lead" }, "Tap your favourite emoji to vote for it."),
      grid(list));
    if (emojiSeen) draw(emojiSeen);
    try {
      const list = await ask("/api/list");
      if (mine !== view) return;
      if (JSON.stringify(list) !== JSON.stringify(emojiSeen)) draw(list);
      emojiSeen = list;
    } catch (error) {
      if (mine === view && !emojiSeen) failed("The emoji are not here", "The list could not be loaded.", error);
    }
  }

  function boardRow() {
    const part = (name, props = {}) => make("span", { class: name, ...props });
    const row = make("li", {}, part("rank", { "aria-hidden": "true" }), part("glyph", { "aria-hidden": "true" }),
      make("span", { class: "what" }, part("fill", { "aria-hidden": "true" }), part("name")), part("votes"));
    return row;
  }

  function drawBoard(board, rows) {
    while (board.children.length > rows.length) board.lastChild.remove();
    while (board.children.length < rows.length) board.append(boardRow());
    const most = Math.max(1, ...rows.map((row) => Number(row.votes)));
    rows.forEach((row, i) => {
      const node = board.children[i];
      node.querySelector(".rank").textContent = `${i + 1}`;
      node.querySelector(".glyph").textContent = row.unicode;
      node.querySelector(".name").textContent = row.shortcode;
      node.querySelector(".fill").style.width = `${(100 * Number(row.votes)) / most}%`;
      const unit = row.votes === "1" ? " vote" : " votes";
      node.querySelector(".votes").replaceChildren(row.votes, make("span", { class: "unseen" }, unit));
    });
  }

  async function boardPage(mine) {
    const lead = make("p", { class: "lead" }, "Counting…");
    const board = make("ol", { class: "board" });
    show("Leaderboard · Emoji Vote", make("h1", {}, "Leaderboard"), lead, board);
    const refresh = async () => {
      try {
        const rows = await ask("/api/leaderboard");
        if (mine !== view) return;
        const total = rows.reduce((sum, row) => sum + Number(row.votes), 0);
        lead.textContent = total === 0
          ? "No votes yet: be the first."
          : `${total} ${total === 1 ? "vote" : "votes"} for ${rows.length} emoji, counted every two seconds.`;
        drawBoard(board, rows);
      } catch (error) {
        if (mine !== view) return;
        lead.textContent = `The count is late (${error.message}); trying again.`;
      }
      timer = setTimeout(() => (document.hidden ? later() : refresh()), REFRESH_MS);
    };
    // A page nobody sees asks for nothing.
    const later = () => document.addEventListener("visibilitychange", () => mine === view && refresh(), { once: true });
    await refresh();
  }

  function missingPage() {
    show("Not found · Emoji Vote", card({
      kind: "bad",
      mark: "🧭",
      title: "There is no such page",
      lines: [make("p", {}, location.pathname)],
      actions: [toVote("Vote"), toBoard()],
    }));
  }

  async function route() {
    const mine = ++view;
    clearTimeout(timer);
    for (const link of document.querySelectorAll(".bar nav a")) {
      if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (location.pathname === "/") await votePage(mine);
    else if (location.pathname === "/leaderboard") await boardPage(mine);
    else missingPage();
  }

  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-link]");
    if (!link || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    if (link.pathname !== location.pathname) history.pushState(null, "", link.href);
    await route();
    land();
    said.textContent = document.title;
  });
  window.addEventListener("popstate", route);
  route();
})();
