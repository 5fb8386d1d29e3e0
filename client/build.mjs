// Builds dist/: a script-tag build (`LiveChat` as a global) and an ES module, both minified. `--check` says whether
// they are what is built now, and whether they are small enough.

import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

import { build } from "esbuild";

/** Of each file, minified and compressed by gzip. */
const MOST_BYTES = 8 * 1024;

const checks = process.argv.includes("--check");
const common = {
  bundle: true,
  minify: true,
  target: "es2022",
  legalComments: "none",
  write: !checks,
  absWorkingDir: import.meta.dirname ?? new URL(".", import.meta.url).pathname,
  banner: { js: "// livechat-ws-client, MIT" },
};
const built = await Promise.all([
  build({ ...common, entryPoints: ["src/index.js"], format: "esm", outfile: "dist/livechat.mjs" }),
  build({ ...common, entryPoints: ["src/global.js"], format: "iife", outfile: "dist/livechat.js" }),
]);

let failed = false;
for (const file of ["livechat.mjs", "livechat.js"]) {
  const path = new URL(`dist/${file}`, import.meta.url);
  const bytes = readFileSync(path);
  const size = gzipSync(bytes, { level: 9 }).length;
  console.log(`dist/${file}: ${bytes.length} bytes, ${size} compressed`);
  if (size > MOST_BYTES) {
    console.error(`dist/${file} is over ${MOST_BYTES} bytes`);
    failed = true;
  }
  const now = checks && built.flatMap(({ outputFiles }) => outputFiles).find(({ path }) => path.endsWith(`dist/${file}`));
  if (now && Buffer.compare(now.contents, bytes) !== 0) {
    console.error(`dist/${file} is not what the sources make: run npm run build`);
    failed = true;
  }
}
process.exitCode = failed ? 1 : 0;
