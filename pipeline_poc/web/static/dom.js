/** Changes to the page that touch only what is different, so that focus and selected text stay. Data become text only. */

import { UNKNOWN, inFull, isKnown, relative } from "./format.js";

/** Make an element; children are elements or texts. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  element.append(...children);
  return element;
}

/** Set the text of an element that holds nothing else. */
export function setText(element, text) {
  if (element.textContent === text) return;
  if (element.childNodes.length === 1 && element.firstChild.nodeType === Node.TEXT_NODE) element.firstChild.data = text;
  else element.textContent = text;
}

/** Set an attribute; null or false take it away, true leaves it empty. */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value === true ? "" : value)) {
    element.setAttribute(name, value === true ? "" : value);
  }
}

/** Hide or show an element. */
export function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

const STATES = {
  pass: ["✓", "pass"],
  warn: ["!", "warn"],
  fail: ["✕", "fail"],
  unknown: ["?", "unknown"],
  run: ["▸", "running"],
  none: ["·", "–"],
};

/** Show a state by sign, word and colour. */
export function setStatus(element, status, word) {
  const [sign, usualWord] = STATES[status] ?? STATES.unknown;
  setAttribute(element, "data-status", status in STATES ? status : "unknown");
  setText(element.firstElementChild, sign);
  setText(element.lastElementChild, word ?? usualWord);
}

/** Make what `setStatus` fills. */
export const makeStatus = () => make("span", { class: "status" }, make("span", { "aria-hidden": "true" }), make("b"));

/** The server's clock minus this machine's, in milliseconds: the answer that was quickest to arrive knows best. */
let clockOffset = null;

export function learnClock(serverTime) {
  const offset = Date.parse(serverTime) - Date.now();
  clockOffset = clockOffset === null ? offset : Math.max(clockOffset, offset);
}

export const serverNow = () => Date.now() + (clockOffset ?? 0);

/** Show a moment relative to now; `tick` keeps it so. */
export function setTime(element, time) {
  setAttribute(element, "datetime", time ?? null);
  setAttribute(element, "title", time ? inFull(Date.parse(time)) : null);
  setText(element, isKnown(time) ? relative(Date.parse(time), serverNow()) : UNKNOWN);
}

export function tick() {
  for (const element of document.querySelectorAll("time[datetime]")) {
    setText(element, relative(Date.parse(element.dateTime), serverNow()));
  }
}

/** Show a text of any length and script: what is long folds. */
export function setLongText(element, text, most = 140) {
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  if (text.length <= most) element.replaceChildren(make("bdi", {}, text));
  else {
    const beginning = Array.from(text.slice(0, most)).slice(0, -1).join("");
    element.replaceChildren(
      make("details", {}, make("summary", {}, make("bdi", {}, `${beginning}…`)), make("bdi", { class: "whole" }, text)),
    );
  }
}

/**
 * A table whose rows are known by a key and stay the same elements as long as their item is there.
 *
 * Each column has a label, and `show(cell, item, row)`, which fills a cell and is called again with each change.
 * `isHeader` marks the column that names the row, `isNumber` aligns to the right.
 */
export class Table {
  #rows = new Map();

  constructor(section, columns, keyOf) {
    this.section = section;
    this.columns = columns;
    this.keyOf = keyOf;
    this.table = section.querySelector("table");
    this.empty = section.querySelector(".empty");
    this.body = make("tbody", { role: "rowgroup" });
    const head = columns.map(({ label, isNumber }) =>
      make("th", { scope: "col", role: "columnheader", class: isNumber && "number" }, label),
    );
    setAttribute(this.table, "role", "table");
    this.table.append(make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...head)), this.body);
    this.show(null, "Not known yet.");
  }

  /** Show the items in their order; in their absence, a sentence. */
  show(items, emptyText) {
    setHidden(this.table, !items?.length);
    setHidden(this.empty, !this.table.hidden);
    setText(this.empty, emptyText);
    const wanted = new Map((items ?? []).map((item) => [this.keyOf(item), item]));
    for (const [key, row] of this.#rows) {
      if (wanted.has(key)) continue;
      if (row.contains(document.activeElement)) this.section.querySelector("h2").focus();
      row.remove();
      this.#rows.delete(key);
    }
    let place = this.body.firstElementChild;
    for (const [key, item] of wanted) {
      const row = this.#rows.get(key) ?? this.#add(key);
      row.item = item;
      this.columns.forEach((column, index) => column.show(row.cells[index], item, row));
      if (row === place) place = place.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
  }

  #add(key) {
    const cells = this.columns.map(({ label, isHeader, isNumber }) =>
      make(isHeader ? "th" : "td", {
        scope: isHeader && "row",
        role: isHeader ? "rowheader" : "cell",
        class: isNumber && "number",
        "data-label": label,
      }),
    );
    const row = make("tr", { role: "row" }, ...cells);
    this.#rows.set(key, row);
    return row;
  }
}

/** The one child of a cell, made when it is first needed. */
export const only = (cell, maker) => cell.firstElementChild ?? cell.appendChild(maker());
