/**
 * Builds the page into wan_streamer/serving/web, where it is committed.
 *
 * `index.html` is served at the root of the server and everything else below `static/`; all addresses are relative, so that
 * a sub-path works. Nothing is minified: what is in the wheel can be read. `build.json` says from which sources it was made.
 */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, posix } from "node:path";
import { defineConfig, type Plugin } from "vite";

const SOURCES = ["index.html", "package-lock.json", "package.json", "public", "src", "tsconfig.json", "vite.config.ts"];
const RECORD = "build.json";
const sha256 = () => createHash("sha256");

function files(root: string, path: string): string[] {
  const found = readdirSync(root, { withFileTypes: true }).find(({ name }) => name === posix.basename(path));
  if (!found?.isDirectory()) return [path];
  const folder = join(root, posix.basename(path));
  return readdirSync(folder).flatMap((name) => files(folder, posix.join(path, name)));
}

/** tests/test_built_page.py computes the same. */
function hashOfSources(): string {
  const hash = sha256();
  for (const path of SOURCES.flatMap((name) => files(import.meta.dirname, name)).sort()) {
    hash.update(`${path}\n`).update(readFileSync(join(import.meta.dirname, path)));
  }
  return hash.digest("hex");
}

function record(): Plugin {
  let folder = "";
  return {
    name: "record",
    configResolved: (config) => void (folder = config.build.outDir),
    closeBundle() {
      const built = readdirSync(folder).filter((name) => name !== RECORD).sort();
      const hashes = built.map((name) => [name, sha256().update(readFileSync(join(folder, name))).digest("hex")]);
      const content = { sources: hashOfSources(), files: Object.fromEntries(hashes) };
      writeFileSync(join(folder, RECORD), JSON.stringify(content, null, 2) + "\n");
    },
  };
}

export default defineConfig({
  plugins: [record()],
  experimental: {
    renderBuiltUrl: (name, { hostType }) => (hostType === "html" ? `static/${name}` : { relative: true }),
  },
  worker: { format: "es", rolldownOptions: { output: { entryFileNames: "[name].js" } } },
  build: {
    outDir: join(import.meta.dirname, "../wan_streamer/serving/web"),
    emptyOutDir: true,
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    minify: false,
    cssMinify: false,
    cssCodeSplit: false,
    modulePreload: false,
    rolldownOptions: { output: { entryFileNames: "app.js", assetFileNames: "[name][extname]" } },
  },
});
