/** The page begins here. */

import { render } from "preact";
import { start } from "./desk.ts";
import { enter } from "./session.ts";
import { App } from "./views/App.tsx";

const root = document.getElementById("app");
if (root) {
  render(<App />, root);
  await start();
  await enter();
}
