/** The status page: shows each overview as it arrives, and what an operator may do about it. */

import * as actions from "./actions.js";
import { base } from "./base.js";
import { learnClock, make, serverNow, setAttribute, setHidden, setLongText, setStatus, setText, setTime, tick } from "./dom.js";
import * as format from "./format.js";
import { Live } from "./live.js";
import { History, Plot } from "./plots.js";
import { showTables } from "./tables.js";

const STALE_MS = 20_000;
const LATE_ONES_MAX = 3;

const byId = (id) => document.getElementById(id);
const { arm } = actions;

const LOGIN = `/login?next=${base}/pipeline`;
byId("session").querySelector("a").href = LOGIN;
for (const link of document.querySelectorAll("[data-of-entity]")) link.href = base + link.getAttribute("href");

const STORES = {
  rawStore: { name: "MongoDB", checks: /^(mongo|raw)/i },
  queue: { name: "Redis", checks: /^(redis|queue)/i },
  relationalStore: { name: "The relational store", checks: /^(relational|mysql|mariadb|sqlite|sql)/i },
};
const STAGE_NAMES = { source: "Source", rawStore: "Raw store", queue: "Queue", workers: "Workers", relationalStore: "Relational store" };
const MODES = { running: "Running", draining: "Draining", paused: "Paused" };

let shown = null;
let connection = "connecting";
const history = new History();
const plots = [...document.querySelectorAll("[data-plot]")].map((figure) => new Plot(figure));

// Values that are shown as they are: `data-show` says which, `data-as` how.

const values = [...document.querySelectorAll("[data-show]")].map((element) => ({
  element,
  path: element.dataset.show.split("."),
  as: format[element.dataset.as],
}));

function showValues(overview) {
  for (const { element, path, as } of values) {
    const value = path.reduce((part, name) => part?.[name], overview);
    if (as) setText(element, as(value));
    else setTime(element, value);
  }
}

// Stages

function checkOutputs(overview, pattern) {
  return overview.checks.filter((check) => pattern.test(check.name) && check.status !== "pass" && check.output).map((check) => check.output);
}

/** Give status and trouble in words of each stage. */
function stagesOf(overview) {
  const { source, workers } = overview;
  const stages = {
    source: {
      status: source.status,
      trouble: source.errorsSince
        ? `${format.plural(source.errorsSince, "error")} since the last success: ${source.lastError ?? "no message"}`
        : checkOutputs(overview, /^source/i).join(" "),
    },
  };
  for (const [stage, { name, checks }] of Object.entries(STORES)) {
    const { status } = overview[stage];
    const away = status === "fail" ? `${name} does not answer: its numbers are not known. ` : "";
    stages[stage] = { status, trouble: status === "pass" ? "" : away + [...new Set(checkOutputs(overview, checks))].join(" ") };
  }
  const check = overview.checks.find(({ name }) => /^workers?\b/i.test(name));
  const isKnown = overview.queue.status !== "fail";
  const status = check?.status ?? (!isKnown ? "unknown" : workers.length ? "pass" : "warn");
  stages.workers = {
    status,
    trouble: !isKnown ? "Workers are not known while Redis does not answer." : !workers.length ? "No worker is alive." : checkOutputs(overview, /^workers?\b/i).join(" "),
  };
  return stages;
}

function showStages(overview, stages) {
  for (const [stage, { status, trouble }] of Object.entries(stages)) {
    const card = byId(`stage-${stage}`);
    setStatus(card.querySelector(".status"), status);
    setAttribute(card, "data-status", status);
    const words = card.querySelector(".trouble");
    setHidden(words, !trouble);
    setLongText(words, trouble, 160);
  }
  const { source, workers, queue, mode } = overview;
  const busy = workers.filter((worker) => worker.state === "busy").length;
  setText(byId("workers-busy"), queue.status === "fail" ? format.UNKNOWN : `${busy} of ${workers.length}`);
  const run = source.lastRun;
  setText(
    byId("stage-source").querySelector(".note"),
    [source.isStandIn ? "stand-in, for the public API" : "", run?.notModified ? "not modified" : "", source.url].filter(Boolean).join(" · "),
  );
  setLongText(byId("agreement"), verdict(overview.reconciliation)[1]);
  const moves = {
    rawStore: mode === "running" && overview.waiting.posts > 0,
    queue: queue.started > 0,
    workers: overview.throughput.perS1m > 0,
  };
  for (const [stage, isMoving] of Object.entries(moves)) setAttribute(byId(`stage-${stage}`), "data-moves", isMoving);
}

// The head of the page

function showSummary(overview) {
  setStatus(byId("overall"), overview.status);
  const name = overview.entities.length > 1 ? `Pipeline of ${overview.entity}` : "Pipeline";
  const title = overview.status === "pass" ? name : `${overview.status}: ${name}`;
  if (document.title !== title) document.title = title;
  const { stored, migrated, countedAt } = overview.rawStore;
  const portion = stored ? migrated / stored : null;
  const bar = byId("migrated-share");
  if (portion === null) bar.removeAttribute("value");
  else if (bar.value !== portion) bar.value = portion;
  setHidden(bar, portion === null);
  setText(
    byId("migrated-words"),
    portion !== null ? `${format.share(portion)} migrated` : stored === 0 && !overview.waiting.posts ? "Nothing is stored yet" : stored === 0 ? "Being counted" : "Numbers are not known: MongoDB does not answer",
  );
  setHidden(document.querySelector(".counted"), !countedAt);
}

/** Lead to the pages of other entities, where there are any. */
function showEntities({ entity, entities }) {
  const nav = byId("entities");
  setHidden(nav, entities.length < 2);
  if (entities.length < 2 || nav.childElementCount === entities.length) return;
  nav.replaceChildren(
    ...entities.map((name) => {
      const link = make("a", { href: name === "posts" ? "/pipeline" : `/entities/${name}/pipeline` }, name);
      if (name === entity) link.setAttribute("aria-current", "page");
      return link;
    }),
  );
}

function showMode({ mode, modeReason, modeSince }) {
  const strip = byId("mode");
  setHidden(strip, !(mode in MODES) || mode === "running");
  setText(strip.querySelector(".word"), `${MODES[mode]}: ${mode === "paused" ? "workers begin nothing new" : "nothing more is put on the queue"}`);
  setText(strip.querySelector(".reason"), modeReason ? `, because: ${modeReason}` : "");
  arm(document.querySelector("[data-action=pause]"), mode === "paused" ? "The migration is paused already" : "");
  arm(document.querySelector("[data-action=drain]"), mode === "draining" ? "The queue is being drained already" : "");
  arm(document.querySelector("[data-action=resume]"), mode === "running" ? "The migration is running" : "");
}

function verdict({ state, ok, error }) {
  if (state === "running") return ["run", "running …"];
  if (state === "failed") return ["fail", error ? `could not be done: ${error}` : "could not be done"];
  if (state === "none") return ["none", "not done yet"];
  if (state === "unknown") return ["none", "not known: MongoDB does not answer"];
  return ok ? ["pass", "both stores agree"] : ["fail", "the stores do not agree"];
}

function showReconciliation(reconciliation) {
  const section = byId("reconciliation");
  setStatus(section.querySelector(".verdict"), ...verdict(reconciliation));
  setHidden(section.querySelector(".when"), !reconciliation.endedAt);
  setHidden(section.querySelector("dl"), !format.isKnown(reconciliation.stored));
  arm(section.querySelector("button"), reconciliation.state === "running" ? "A reconciliation is running" : "");
}

// News, for those who can't see that something changed

function news(overview, stages) {
  const states = { pipeline: overview.status, ...Object.fromEntries(Object.entries(stages).map(([stage, { status }]) => [STAGE_NAMES[stage], status])) };
  const before = shown?.states;
  if (before) {
    const changed = Object.entries(states).filter(([name, status]) => before[name] !== status).map(([name, status]) => `${name}: ${status}`);
    if (overview.mode && shown.overview.mode !== overview.mode) changed.unshift(`Migration: ${overview.mode}`);
    if (changed.length) setText(byId("news"), changed.join(". "));
  }
  return states;
}

let lateOnes = 0;

/** Tell whether an overview is older than the one that is shown; several of them in a row mean that a clock was set. */
function isLate(overview) {
  lateOnes = shown && Date.parse(overview.at) < Date.parse(shown.overview.at) ? lateOnes + 1 : 0;
  return lateOnes > 0 && lateOnes <= LATE_ONES_MAX;
}

function show(overview) {
  learnClock(overview.at);
  history.add(overview.history);
  if (isLate(overview)) return;
  const stages = stagesOf(overview);
  shown = { states: news(overview, stages), overview };
  showValues(overview);
  showEntities(overview);
  showSummary(overview);
  showMode(overview);
  showStages(overview, stages);
  showReconciliation(overview.reconciliation);
  showTables(overview);
  for (const plot of plots) plot.show(history.samples);
  setAttribute(document.body, "data-ready", true);
}

// How the news arrives

const CONNECTIONS = { connecting: "Connecting", live: "Live", polling: "No stream, asking every 5 s", lost: "Connection lost", denied: "Not logged in" };

function tell(state, detail) {
  if (state !== connection && (state === "live" || state === "polling") && (connection === "lost" || connection === "denied")) {
    setText(byId("news"), "Connected again");
  }
  connection = state;
  setText(byId("connection").querySelector(".word"), CONNECTIONS[state]);
  const lost = byId("lost");
  setHidden(lost, state !== "lost" && state !== "denied");
  if (state === "lost") {
    const since = shown ? ` What stands here is as of ${format.atClock(Date.parse(shown.overview.at))}.` : "";
    setText(lost, `Connection lost: ${detail}. Trying again.${since}`);
  }
  if (state === "denied") {
    lost.replaceChildren("The pipeline is shown to those who logged in. ", make("a", { href: LOGIN }, "Log in"));
  }
  if (!lost.hidden && byId("news").textContent !== lost.textContent) setText(byId("news"), lost.textContent);
  showAge();
}

function showAge() {
  const chip = byId("connection");
  const isStale = shown !== null && serverNow() - Date.parse(shown.overview.at) > STALE_MS;
  setAttribute(chip, "data-state", connection === "live" && isStale ? "stale" : connection);
  setHidden(chip.querySelector(".news"), shown === null);
}

// Who looks

async function showSession() {
  let session = { authRequired: true, authenticated: false, scope: null };
  try {
    const answer = await fetch("/session", { headers: { Accept: "application/json" } });
    if (answer.ok) session = await answer.json();
  } catch {
    // As if nobody were logged in; the page says that the connection is lost.
  }
  const { authRequired, authenticated, scope } = session;
  const mayOperate = !authRequired || scope === "operate";
  const [login, logout] = [byId("session").querySelector("a"), byId("session").querySelector("button")];
  setText(
    byId("session").querySelector(".word"),
    !authRequired ? "No login needed" : !authenticated ? "Not logged in" : mayOperate ? "Logged in to operate" : "Logged in to read",
  );
  login.hidden = mayOperate;
  setText(login, authenticated ? "Log in to operate" : "Log in");
  logout.hidden = !authRequired || !authenticated;
  const refusal = mayOperate ? null : `Needs a login with the scope “operate”${authenticated ? "; yours is “read”" : ""}`;
  setText(byId("why-not"), refusal ?? "");
  byId("why-not").hidden = mayOperate;
  actions.allowActions(refusal, () => {
    live.refresh();
    showSession();
  });
}

byId("session").querySelector("button").addEventListener("click", async () => {
  await fetch("/logout", { method: "POST", headers: { Accept: "application/json" } }).catch(() => {});
  location.reload();
});

for (const button of document.querySelectorAll("[data-action]")) {
  actions.onPress(button, actions[button.dataset.action]);
  arm(button);
}

const live = new Live(show, tell);
live.start();
showSession();
setInterval(() => {
  tick();
  showAge();
}, 1000);
