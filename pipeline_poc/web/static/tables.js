/** The tables of the status page. */

import * as actions from "./actions.js";
import { Table, make, makeStatus, only, setHidden, setLongText, setStatus, setText, setTime } from "./dom.js";
import * as format from "./format.js";

const JOB_STATES = { queued: "none", started: "run", scheduled: "warn", finished: "pass", failed: "fail" };
const SEVERITIES = ["fail", "warn", "pass"];

const byId = (id) => document.getElementById(id);

const text = (cell, value, name = "bdi") => setText(only(cell, () => make(name)), value);
const time = (cell, value) => setTime(only(cell, () => make("time")), value);

const jobs = new Table(
  byId("jobs"),
  [
    { label: "Job", isHeader: true, show: (cell, job) => text(cell, job.id, "code") },
    {
      label: "State",
      show: (cell, job) => {
        setStatus(only(cell, makeStatus), JOB_STATES[job.state] ?? "unknown", job.state);
        if (cell.children.length === 1) cell.append(make("small", {}, "retry ", make("time")), make("small"));
        const [, retry, error] = cell.children;
        setHidden(retry, !job.nextRetryAt);
        setTime(retry.lastElementChild, job.nextRetryAt);
        setHidden(error, !job.error);
        setLongText(error, job.error ? `${job.error.type}: ${job.error.message}` : "", 120);
      },
    },
    { label: "Posts", isNumber: true, show: (cell, job) => setText(cell, format.count(job.posts)) },
    { label: "Attempt", isNumber: true, show: (cell, job) => setText(cell, `${job.attempt} of ${job.maxAttempts}`) },
    { label: "Enqueued", show: (cell, job) => time(cell, job.enqueuedAt) },
    { label: "Took", isNumber: true, show: (cell, job) => setText(cell, tookOf(job)) },
    { label: "Worker", show: (cell, job) => text(cell, job.worker ?? format.UNKNOWN, "code") },
  ],
  (job) => job.id,
);

function tookOf({ startedAt, endedAt }) {
  return format.duration(startedAt && endedAt ? Math.max(0, Date.parse(endedAt) - Date.parse(startedAt)) / 1000 : null);
}

const workers = new Table(
  byId("workers"),
  [
    { label: "Worker", isHeader: true, show: (cell, worker) => text(cell, worker.name, "code") },
    { label: "State", show: (cell, worker) => setText(cell, worker.state) },
    { label: "Batch", show: (cell, worker) => text(cell, worker.batch ?? format.UNKNOWN, "code") },
    { label: "Busy for", isNumber: true, show: (cell, worker) => setText(cell, format.duration(worker.busyS)) },
    { label: "Heartbeat", show: (cell, worker) => time(cell, worker.heartbeatAt) },
  ],
  (worker) => worker.name,
);

/** A column of buttons, which act on what their row shows by then. */
const acts = (...makers) => ({
  label: "Actions",
  show: (cell, _, row) => {
    if (cell.firstElementChild) return;
    cell.className = "acts";
    cell.append(...makers.map((maker) => maker(row)));
  },
});

const lookButton = (row) => {
  const button = make("button", { type: "button", "aria-label": `Look at ${row.item.reason}` }, "Look");
  button.addEventListener("click", () => actions.lookInto(row.item));
  return button;
};

const requeueButton = (requeue) => (row) => actions.actionButton("Requeue", `Requeue ${row.item.reason}`, () => requeue({ reason: row.item.reason }));

const discardButton = (discard, whatOf) => (row) =>
  actions.actionButton(
    "Discard",
    `Discard ${row.item.reason}`,
    () => discard({ reason: row.item.reason }, `${whatOf(row.item)} with the reason ${row.item.reason}`),
    "danger",
  );

const quarantine = new Table(
  byId("quarantine"),
  [
    {
      label: "Reason",
      isHeader: true,
      show: (cell, group) => {
        text(cell, group.reason, "code");
        const meaning = cell.children[1] ?? cell.appendChild(make("small"));
        setText(meaning, group.meaning);
      },
    },
    { label: "Kind", show: (cell, group) => setText(cell, group.kind) },
    { label: "Count", isNumber: true, show: (cell, group) => setText(cell, format.count(group.count)) },
    { label: "First", show: (cell, group) => time(cell, group.firstAt) },
    { label: "Last", show: (cell, group) => time(cell, group.lastAt) },
    acts(
      lookButton,
      requeueButton(actions.requeueQuarantine),
      discardButton(actions.discardQuarantine, (group) => format.plural(group.count, group.kind)),
    ),
  ],
  (group) => `${group.kind} ${group.reason}`,
);
const deadLetters = new Table(
  byId("dead-letters"),
  [
    { label: "Reason", isHeader: true, show: (cell, group) => text(cell, group.reason, "code") },
    { label: "Batches", isNumber: true, show: (cell, group) => setText(cell, format.count(group.batches)) },
    { label: "Posts", isNumber: true, show: (cell, group) => setText(cell, format.count(group.posts)) },
    { label: "First", show: (cell, group) => time(cell, group.firstAt) },
    { label: "Last", show: (cell, group) => time(cell, group.lastAt) },
    acts(
      requeueButton(actions.requeueDeadLetters),
      discardButton(actions.discardDeadLetters, (group) => format.plural(group.batches, "batch", "batches")),
    ),
  ],
  (group) => group.reason,
);

const checks = new Table(
  byId("checks"),
  [
    {
      label: "Check",
      isHeader: true,
      show: (cell, check) => {
        text(cell, check.name, "code");
        if (cell.children.length === 1) cell.append(make("small"), make("small"));
        const [, component, output] = cell.children;
        setHidden(component, !check.component);
        setLongText(component, check.component ?? "");
        setHidden(output, !check.output);
        setLongText(output, check.output ?? "", 160);
      },
    },
    { label: "Status", show: (cell, check) => setStatus(only(cell, makeStatus), check.status) },
    {
      label: "Value",
      isNumber: true,
      show: (cell, check) => text(cell, format.measured(check.observedValue, check.observedUnit)),
    },
  ],
  (check) => `${check.name} ${check.component}`,
);

const worstFirst = (one, other) => SEVERITIES.indexOf(one.status) - SEVERITIES.indexOf(other.status);

/** Show all tables of an overview. */
export function showTables(overview) {
  const isAway = overview.rawStore.status === "fail";
  jobs.show(overview.recentJobs, overview.queue.status === "fail" ? "Jobs are not known: Redis does not answer." : "No job yet.");
  workers.show(overview.workers, overview.queue.status === "fail" ? "Workers are not known: Redis does not answer." : "No worker is alive.");
  quarantine.show(overview.quarantine, isAway ? "Not known: MongoDB does not answer." : "Nothing is in quarantine.");
  deadLetters.show(overview.deadLetters, isAway ? "Not known: MongoDB does not answer." : "No job is dead.");
  checks.show(overview.checks.toSorted(worstFirst), "Nothing was checked yet.");
}
