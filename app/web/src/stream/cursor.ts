/** Where in a stream we are: the guard against lost and doubled events. */

export type Verdict = "new" | "seen" | "gap";

export class Cursor {
  /** Id of the last event that was taken in; 0 before the first. */
  after: number;

  constructor(after: number) {
    this.after = after;
  }

  /** Judge an event by its id. Only a new one moves the cursor; after a gap, ask again from here. */
  judge(id: number): Verdict {
    if (id <= this.after) return "seen";
    if (id !== this.after + 1) return "gap";
    this.after = id;
    return "new";
  }
}
