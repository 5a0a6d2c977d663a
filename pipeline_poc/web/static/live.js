/** The overview as it changes: by the stream, or by asking again and again while the stream is away. */

import { base } from "./base.js";

const WATCH_MS = 5_000;
const REOPEN_MS = 15_000;
const SILENCE_MS = 30_000;
const TIMEOUT_MS = 10_000;

/**
 * Calls `show(overview)` with each overview, and `tell(state, detail)` with how the news arrives:
 * "live", "polling" (no stream, but answers), "lost" (nothing), "denied" (a login is needed).
 */
export class Live {
  #stream = null;
  #isBroken = false;
  #openedAt = 0;
  #heardAt = 0;
  #show;
  #tell;

  constructor(show, tell) {
    this.#show = show;
    this.#tell = tell;
  }

  start() {
    this.refresh();
    this.#open();
    setInterval(() => this.#watch(), WATCH_MS);
  }

  /** Ask for the overview now. */
  async refresh() {
    try {
      const answer = await fetch(`${base}/pipeline/overview`, {
        headers: { Accept: "application/json" },
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      if (answer.status === 401 || answer.status === 403) return this.#tell("denied");
      if (!answer.ok) return this.#tell("lost", `the server answers with status ${answer.status}`);
      this.#show(await answer.json());
      if (this.#isBroken) this.#tell("polling");
    } catch {
      this.#tell("lost", "the server does not answer");
    }
  }

  #open() {
    this.#stream?.close();
    this.#openedAt = this.#heardAt = Date.now();
    this.#stream = new EventSource(`${base}/events`);
    this.#stream.addEventListener("overview", (event) => {
      this.#heardAt = Date.now();
      if (this.#isBroken) this.refresh(); // The stream does not bring what was missed.
      this.#isBroken = false;
      this.#show(JSON.parse(event.data));
      this.#tell("live");
    });
    this.#stream.addEventListener("error", () => {
      if (!this.#isBroken) this.#tell("lost", "the stream broke");
      this.#isBroken = true;
    });
  }

  /** A stream that was refused stays closed, and one whose network is gone is silent; one that broke opens itself. */
  #watch() {
    const isClosed = this.#stream.readyState === EventSource.CLOSED && Date.now() - this.#openedAt > REOPEN_MS;
    const isSilent = this.#stream.readyState === EventSource.OPEN && Date.now() - this.#heardAt > SILENCE_MS;
    if (this.#isBroken || isSilent) this.refresh();
    if (isClosed || isSilent) this.#open();
  }
}
