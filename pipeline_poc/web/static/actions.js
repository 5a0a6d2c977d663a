/** What an operator can do here: each action is a POST, and its outcome is said in words. */

import { base } from "./base.js";
import { make, setAttribute, setLongText, setText, setTime } from "./dom.js";
import { count, plural } from "./format.js";

const TIMEOUT_MS = 60_000;
const SAID_FOR_MS = 15_000;
const PAGE = 20;
/** Characters that don't show, or turn the direction of those that follow; JSON may as well have them escaped. */
const INVISIBLE = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

const ask = document.getElementById("ask");
const look = document.getElementById("look");
const toast = document.getElementById("toast");

/** Why nothing can be done by whoever looks; null if it can. */
let refusal = "Not known yet whether you may do this";
/** Called after each action. */
let afterwards = () => {};
let saidTimer = null;

/** Say who may act, and what happens after an action. */
export function allowActions(reason, then) {
  refusal = reason;
  if (then) afterwards = then;
  for (const button of document.querySelectorAll("button[data-acts]")) arm(button);
}

/** Make a button of an action usable or not, and tell why not. */
export function arm(button, reason = button.dataset.reason ?? "") {
  setAttribute(button, "data-acts", true);
  setAttribute(button, "data-reason", reason || null);
  const why = refusal ?? reason;
  const isBusy = button.getAttribute("aria-busy") === "true";
  setAttribute(button, "aria-disabled", why || isBusy ? "true" : null);
  setAttribute(button, "title", why || null);
}

/** Make a button that acts. */
export function actionButton(text, label, act, kind) {
  const button = make("button", { type: "button", class: kind, "aria-label": label }, text);
  onPress(button, act);
  arm(button);
  return button;
}

/** Run an action when the button is pressed; once at a time. */
export function onPress(button, act) {
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-disabled") === "true") {
      if (button.title) say(button.title, "warn");
      return;
    }
    setAttribute(button, "aria-busy", "true");
    arm(button);
    try {
      await act(button);
    } finally {
      setAttribute(button, "aria-busy", null);
      arm(button);
    }
  });
}

/** Say something where it is seen and read out: in the dialog that is open, or at the foot of the page. */
export function say(text, kind) {
  const dialog = [ask, look].find((each) => each.open);
  const place = dialog ? dialog.querySelector(".said") : toast.querySelector("p");
  clearTimeout(saidTimer);
  setAttribute(dialog ? place : toast, "data-status", kind);
  if (!dialog) toast.hidden = false;
  // A region that appears with its text is not read out.
  requestAnimationFrame(() => setText(place, text));
  if (!dialog && kind === "pass") saidTimer = setTimeout(unsay, SAID_FOR_MS);
}

function unsay() {
  toast.hidden = true;
  setText(toast.querySelector("p"), "");
}

toast.querySelector("button").addEventListener("click", unsay);

/** Send an action; its outcome in words comes from `words(answer)`. Returns the answer, or null when it failed. */
async function post(path, body, words) {
  try {
    const answer = await fetch(base + path, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const value = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      say(`Refused: ${value.detail ?? value.title ?? `status ${answer.status}`}`, "fail");
      return null;
    }
    say(words(value ?? {}), "pass");
    return value ?? {};
  } catch {
    say("Failed: the server does not answer. Nobody knows whether it was done.", "fail");
    return null;
  } finally {
    afterwards();
  }
}

/** Ask for a reason; gives the text, or null if the person thought better of it. */
function askFor({ title, text, label, confirm, isRequired = false, isDangerous = false }) {
  const reason = ask.querySelector("textarea");
  const submit = ask.querySelector("[type=submit]");
  setText(ask.querySelector("h2"), title);
  setText(ask.querySelector("#ask-text"), text);
  setText(ask.querySelector("label"), label);
  setText(ask.querySelector(".said"), "");
  setText(submit, confirm);
  submit.className = isDangerous ? "danger" : "main";
  reason.value = "";
  reason.required = isRequired;
  ask.returnValue = "";
  const opener = document.activeElement;
  ask.showModal();
  reason.focus();
  return new Promise((resolve) => {
    const closed = () => {
      if (opener?.isConnected) opener.focus();
      resolve(ask.returnValue === "yes" ? reason.value.trim() : null);
    };
    ask.addEventListener("close", closed, { once: true });
  });
}

ask.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const reason = ask.querySelector("textarea");
  if (reason.required && !reason.value.trim()) {
    say("A reason is needed: it is kept.", "fail");
    reason.focus();
  } else ask.close("yes");
});
for (const dialog of [ask, look]) {
  dialog.querySelector(".cancel").addEventListener("click", () => dialog.close());
}

export const ingest = () =>
  post("/trigger-ingestion", {}, ({ joined, run }) => `${joined ? "An ingestion is under way already" : "Ingestion started"}: run ${run.runId}`);

export const migrate = () =>
  post("/trigger-migration", {}, ({ jobs, posts }) => `Put on the queue: ${plural(jobs, "job")} with ${plural(posts, "post")}`);

export const reconcile = () => post("/reconciliation", {}, () => "Reconciliation started");

const mode = (path, question, words) => async () => {
  const reason = question ? await askFor(question) : "";
  if (reason === null) return;
  await post(`/data-migration/${path}`, reason ? { reason } : {}, () => words);
};

export const pause = mode(
  "pause",
  {
    title: "Pause the migration",
    text: "Workers finish the batch that they are executing, and begin no other. Ingestion goes on; the backlog grows.",
    label: "Reason (optional)",
    confirm: "Pause",
  },
  "Paused",
);

export const drain = mode(
  "drain",
  {
    title: "Drain the queue",
    text: "Workers finish what is on the queue; nothing more is put on it. Ingestion goes on; the backlog grows.",
    label: "Reason (optional)",
    confirm: "Drain",
  },
  "Draining",
);

export const resume = mode("resume", null, "Resumed");

export const requeueQuarantine = (which) => post("/quarantine/requeue", which, requeuedWords);

export const requeueDeadLetters = (which) =>
  post("/dead-letters/requeue", which, ({ requeued, selected }) => `Requeued ${count(requeued)} of ${plural(selected, "dead letter")}`);

function requeuedWords({ requeued, selected, stillInvalid, superseded }) {
  return [
    `Requeued ${count(requeued)} of ${count(selected)}`,
    stillInvalid && `${count(stillInvalid)} still invalid, kept in quarantine`,
    superseded && `${count(superseded)} superseded by a newer version`,
  ].filter(Boolean).join("; ");
}

/** Discard after a person said why. */
async function discard(path, which, what, text) {
  const because = await askFor({
    title: `Discard ${what}?`,
    text,
    label: "Reason",
    confirm: "Discard",
    isRequired: true,
    isDangerous: true,
  });
  if (because === null) return null;
  return post(path, { ...which, because }, ({ discarded, selected }) => `Discarded ${count(discarded)} of ${count(selected)}`);
}

export const discardQuarantine = (which, what) =>
  discard("/quarantine/discard", which, what, "What is discarded leaves the quarantine; the reason is kept with it.");

export const discardDeadLetters = (which, what) =>
  discard("/dead-letters/discard", which, what, "The posts go to quarantine, and the reason is kept with them.");

/** Show what is in quarantine for a reason. */
export async function lookInto(group) {
  const list = look.querySelector("ol");
  const more = look.querySelector(".more");
  setText(look.querySelector("h2"), `In quarantine: ${group.reason}`);
  setText(look.querySelector("#look-text"), group.meaning);
  setText(look.querySelector(".said"), "");
  list.replaceChildren();
  more.hidden = true;
  look.showModal();
  look.querySelector("h2").focus();
  let cursor = null;

  const load = async () => {
    const query = new URLSearchParams({ reason: group.reason, limit: PAGE, ...(cursor ? { cursor } : {}) });
    try {
      const answer = await fetch(`${base}/quarantine/items?${query}`, {
        headers: { Accept: "application/json" },
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const page = await answer.json();
      if (!answer.ok) return say(`Refused: ${page.detail ?? page.title}`, "fail");
      list.append(...page.items.map(quarantined));
      if (!list.children.length) say("Nothing is left here.", "pass");
      cursor = page.nextCursor;
      more.hidden = !cursor;
    } catch {
      say("The server does not answer.", "fail");
    }
  };
  more.onclick = load;
  await load();
}

const visible = (text) => text.replace(INVISIBLE, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

function quarantined(item) {
  const what = `${item.kind} ${item.externalId ?? item.id}`;
  const times = make("p", { class: "note" }, `seen ${plural(item.count, "time")}, last `, make("time"));
  setTime(times.querySelector("time"), item.lastAt);
  const message = make("p", { class: "message" });
  setLongText(message, item.message, 400);
  const leaveIf = (isGone) => {
    if (!isGone) return;
    const place = entry.nextElementSibling ?? entry.previousElementSibling;
    entry.remove();
    (place?.querySelector("button") ?? look.querySelector("h2")).focus();
  };
  const entry = make(
    "li",
    {},
    make("h3", {}, make("bdi", {}, what)),
    times,
    message,
    make("pre", { tabindex: "0", role: "region", "aria-label": `Payload of ${what}` }, visible(item.payload)),
    make(
      "p",
      { class: "acts" },
      actionButton("Requeue", `Requeue ${what}`, async () => {
        leaveIf((await requeueQuarantine({ ids: [item.id] }))?.requeued);
      }),
      actionButton("Discard", `Discard ${what}`, async () => {
        leaveIf((await discardQuarantine({ ids: [item.id] }, what))?.discarded);
      }, "danger"),
    ),
  );
  return entry;
}
