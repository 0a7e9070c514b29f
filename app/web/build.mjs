/**
 * Builds the page: `node build.mjs FOLDER`.
 *
 * FOLDER gets `index.html` and `assets/`, whose names hold a digest of what is in them, so that a
 * browser may keep them for ever. Each text stands beside its gzip form, for nginx's `gzip_static`.
 */

import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { constants, gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const target = path.resolve(process.argv[2] ?? path.join(here, "dist"));
const assets = path.join(target, "assets");
const TARGETS = ["chrome120", "firefox121", "safari17.4"];

await rm(target, { recursive: true, force: true });
await mkdir(assets, { recursive: true });

const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.tsx", style: "src/style/page.css" },
  outdir: assets,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: TARGETS,
  minify: true,
  legalComments: "linked",
  metafile: true,
  logLevel: "warning",
});

/** The address of what was built from a source. */
function built(source) {
  const found = Object.entries(metafile.outputs).find(([, made]) => made.entryPoint === source);
  if (!found) throw new Error(`esbuild made nothing of ${source}`);
  return `/assets/${path.basename(found[0])}`;
}

const icon = await readFile(path.join(here, "src/icon.svg"));
const iconName = `icon-${createHash("sha256").update(icon).digest("hex").slice(0, 8)}.svg`;
await writeFile(path.join(assets, iconName), icon);

const names = {
  icon: `/assets/${iconName}`,
  style: built("src/style/page.css"),
  script: built("src/main.tsx"),
};
const page = await readFile(path.join(here, "src/index.html"), "utf8");
await writeFile(
  path.join(target, "index.html"),
  page.replace(/\{(\w+)\}/g, (_, name) => names[name]),
);

let [plain, packed] = [0, 0];
for (const name of await readdir(assets)) {
  const text = await readFile(path.join(assets, name));
  const gzip = gzipSync(text, { level: constants.Z_BEST_COMPRESSION });
  await writeFile(path.join(assets, `${name}.gz`), gzip);
  plain += text.length;
  packed += gzip.length;
  console.log(`${name}  ${text.length}  gzip ${gzip.length}`);
}
console.log(`in all  ${plain}  gzip ${packed}`);
