// Builds plotly.js with the four kinds of traces that the displays draw, and collects the licences of what is inside.
// `make plotly` runs it and puts the results into sparsereco/display/. The settings are those of plotly's own bundles.
"use strict";

const fs = require("fs");
const esbuild = require("esbuild");
const css = require("esbuild-plugin-inline-css");
const { environmentPlugin } = require("esbuild-plugin-environment");
const { glsl } = require("esbuild-plugin-glsl");

const TRACES = ["heatmap", "mesh3d", "scatter3d"]; // scatter is in every bundle
const { version } = require("plotly.js/package.json");
const OWNER = /.*node_modules\/(?:@[^/]+\/)?[^/]+/; // the folder of the package that a file is of

const entry = `
  const Plotly = require("plotly.js/lib/core");
  Plotly.register([${TRACES.map((name) => `require("plotly.js/lib/${name}")`)}]);
  module.exports = Plotly;`;

esbuild.build({
  stdin: { contents: entry, resolveDir: __dirname }, bundle: true, minify: true, metafile: true,
  format: "iife", globalName: "Plotly", target: "es2018", outfile: "plotly.min.js", legalComments: "none",
  banner: {
    js: `/* plotly.js ${version} with scatter, ${TRACES.join(", ")}. Copyright 2012-2026 Plotly, Inc., MIT licence; ` +
      "the licences of all that it holds: plotly.licences.txt of sparsereco. */",
  },
  plugins: [css(), glsl({ minify: true }), environmentPlugin({ NODE_DEBUG: false })],
  alias: { regl: "@plotly/regl" }, define: { global: "window", "define.amd": "false" },
}).then(({ metafile }) => {
  const [{ inputs }] = Object.values(metafile.outputs);
  const used = Object.keys(inputs).filter((file) => inputs[file].bytesInOutput).map((file) => OWNER.exec(file)?.[0]);
  const texts = [...new Set(used)].filter(Boolean).sort().map((folder) => {
    const { name, version, license, author } = JSON.parse(fs.readFileSync(`${folder}/package.json`));
    const file = fs.readdirSync(folder).find((one) => /^licen[cs]e/i.test(one));
    const text = file ? fs.readFileSync(`${folder}/${file}`, "utf8").replace(/[ \r]+$/gm, "").trim()
      : `Author: ${(author.name ?? author).replace(/ <.*/, "")}`;
    return `${name} ${version}, ${license}\n\n${text}\n`;
  });
  fs.writeFileSync("plotly.licences.txt", texts.join(`\n${"-".repeat(80)}\n\n`));
});
