"use strict";
// Shows the events of the page one at a time; what there is to show, and how, stands in page.py.

const page = JSON.parse(document.getElementById("page").textContent);
const $ = (id) => document.getElementById(id);
const plot = $("plot");
const state = { event: 0, view: page.events[0].views[0].name, place: null, groups: {} };

// Pixels of a scene per pixel of the screen: plotly's 2, but 1 where the processor draws, which needs a quarter then.
const SHARPNESS = (() => {
  const gl = document.createElement("canvas").getContext("webgl");
  const kind = gl?.getExtension("WEBGL_debug_renderer_info");
  return kind && /swiftshader|llvmpipe|software/i.test(gl.getParameter(kind.UNMASKED_RENDERER_WEBGL)) ? 1 : 2;
})();

// A cube: its corners in units of half its edge, and two triangles per face.
const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => [n & 4 ? 1 : -1, n & 2 ? 1 : -1, n & 1 ? 1 : -1]);
const TRIANGLES = [
  [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
  [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
];

const LIT = {
  flatshading: true, lighting: { ambient: 0.85, diffuse: 0.4, specular: 0.05, roughness: 0.9, fresnel: 0 },
  lightposition: { x: 20000, y: 40000, z: 100000 },
};

function cubes({ voxels, edge, log, label, ...rest }, event) {
  const { x, y, z, value, share, unit } = event.voxels[voxels];
  const n = x.length;
  const mesh = { ...LIT, showlegend: true, hoverinfo: "text", ...rest, type: "mesh3d", hovertext: new Array(8 * n) };
  for (const key of "xyz") mesh[key] = new Float32Array(8 * n);
  for (const key of "ijk") mesh[key] = new Uint32Array(12 * n);
  if (!rest.color) mesh.intensity = new Float32Array(8 * n);
  for (let cube = 0; cube < n; cube++) {
    const half = (edge / 2) * (share ? Math.cbrt(share[cube]) : 1);
    const place = [x[cube], y[cube], z[cube]].map((c) => c.toFixed(0)).join(", ");
    const part = share && rest.color ? `, ${(100 * share[cube]).toFixed(0)} % of the voxel` : "";
    const text = `${label}<br>${value[cube].toPrecision(4)} ${unit}${part}<br>(${place}) mm`;
    CORNERS.forEach(([a, b, c], n) => {
      const corner = 8 * cube + n;
      mesh.x[corner] = x[cube] + half * a;
      mesh.y[corner] = y[cube] + half * b;
      mesh.z[corner] = z[cube] + half * c;
      mesh.hovertext[corner] = text;
      if (mesh.intensity) mesh.intensity[corner] = log ? Math.log10(Math.max(value[cube], 1e-3)) : value[cube];
    });
    TRIANGLES.forEach((corners, n) => {
      [mesh.i[12 * cube + n], mesh.j[12 * cube + n], mesh.k[12 * cube + n]] = corners.map((c) => 8 * cube + c);
    });
  }
  return mesh;
}

function image({ bytes, width, low, step, ...rest }) {
  const level = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  const z = [];
  for (let row = 0; row < level.length; row += width) {
    z.push(Float32Array.from(level.subarray(row, row + width), (byte) => low + step * byte));
  }
  return { ...rest, type: "heatmap", z };
}

function unfolded(trace, event) {
  const { type, legendgroup: group } = trace;
  const whole = type === "cubes" ? cubes(trace, event) : type === "image" ? image(trace) : { ...trace };
  if (group in state.groups) whole.visible = state.groups[group] ? true : "legendonly";
  return whole;
}

// Applies {"scene.camera": ...} to a layout.
function changed(layout, changes) {
  const result = structuredClone(layout);
  for (const [path, value] of Object.entries(changes ?? {})) {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((inner, key) => (inner[key] ??= {}), result)[last] = value;
  }
  return result;
}

// An element with a text or with other elements in it; a text is never taken for HTML.
function made(tag, content = []) {
  const element = document.createElement(tag);
  element.append(...[content].flat());
  return element;
}

function current() {
  const event = page.events[state.event];
  return [event, event.views.find((view) => view.name === state.view) ?? event.views[0]];
}

// Labels of a scene need so much of its width, whatever its size [pixel].
const LABELS = 60;

// The changes that show a place. Plotly draws a scene by its height: one that is narrower than that gets smaller, so
// that its labels stay inside.
function placed({ layout, places }, name) {
  const { width, height } = plot.getBoundingClientRect();
  return Object.fromEntries(Object.entries(places[name] ?? {}).map(([path, value]) => {
    const [scene, what] = path.split(".");
    if (what !== "aspectratio") return [path, value];
    const [left, right] = layout[scene].domain?.x ?? [0, 1];
    const narrow = Math.min(1, Math.max(0.1, ((right - left) * width - LABELS) / height));
    return [path, Object.fromEntries(Object.entries(value).map(([axis, size]) => [axis, narrow * size]))];
  }));
}

function show() {
  const [event, view] = current();
  const place = state.place in view.places ? state.place : Object.keys(view.places)[0];
  drawPanel(event);
  drawControls(event, view, place); // first, since they leave the plot its size
  const layout = changed(view.layout, placed(view, place));
  const fixed = {
    margin: { l: 0, r: 0, t: 10, b: 0 }, font: { size: 12 }, uirevision: view.name, hoverlabel: { align: "left" },
  };
  const options = { displaylogo: false, responsive: true, plotGlPixelRatio: SHARPNESS };
  return Plotly.react(plot, view.traces.map((trace) => unfolded(trace, event)), { ...fixed, ...layout }, options);
}

function drawControls(event, view, place) {
  $("event").value = state.event;
  $("previous").disabled = state.event === 0;
  $("next").disabled = state.event === page.events.length - 1;
  $("views").replaceChildren(...(event.views.length > 1 ? event.views : []).map((one) => {
    const button = made("button", one.name);
    button.setAttribute("aria-pressed", one === view);
    button.onclick = () => { state.view = one.name; show(); };
    return button;
  }));
  const places = Object.keys(view.places);
  $("place").hidden = places.length < 2;
  $("place").replaceChildren(...places.map((name) => new Option(name)));
  $("place").value = place;
  const groups = [...new Set(view.traces.map((trace) => trace.legendgroup).filter(Boolean))];
  $("toggles").replaceChildren(...groups.map((group) => {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.dataset.group = group;
    box.checked = state.groups[group] ?? view.traces.some((t) => t.legendgroup === group && t.visible !== "legendonly");
    box.onchange = () => toggle(group, box.checked);
    return made("label", [box, ` ${group}`]);
  }));
}

function toggle(group, on) {
  state.groups[group] = on;
  const mine = plot.data.flatMap((trace, n) => (trace.legendgroup === group ? [n] : []));
  return Plotly.restyle(plot, { visible: on ? true : "legendonly" }, mine);
}

function drawPanel(event) {
  $("counts").replaceChildren(...Object.entries(event.counts).flatMap(([name, count]) => {
    const number = made("dd", count);
    number.dataset.count = name;
    return [made("dt", name), number];
  }));
  $("tables").replaceChildren(...event.tables.map(({ title, header, rows }) => {
    const table = made("table");
    for (const [part, lines, cell] of [["thead", [header], "th"], ["tbody", rows, "td"]]) {
      const row = (line) => made("tr", line.map((text) => made(cell, text)));
      table.append(made(part, lines.map(row)));
    }
    return made("section", [made("h2", title), table]);
  }));
}

function go(event) {
  if (event < 0 || event >= page.events.length) return;
  state.event = event;
  show();
}

document.querySelector("h1").textContent = page.title;
$("event").replaceChildren(...page.events.map(({ name }, n) => new Option(name, n)));
$("event").onchange = () => go(Number($("event").value));
$("previous").onclick = () => go(state.event - 1);
$("next").onclick = () => go(state.event + 1);
$("place").onchange = () => {
  state.place = $("place").value;
  Plotly.relayout(plot, placed(current()[1], state.place));
};
document.addEventListener("keydown", ({ key, target }) => {
  if (target instanceof HTMLSelectElement) return;
  if (key === "ArrowLeft") go(state.event - 1);
  if (key === "ArrowRight") go(state.event + 1);
});

let turning = false; // one scene of several: the others turn with it
show().then(() => {
  plot.on("plotly_relayout", (changes) => {
    const camera = Object.entries(changes).find(([key]) => /^scene\d*\.camera$/.test(key));
    const others = Object.keys(plot.layout).filter((key) => /^scene\d*$/.test(key) && `${key}.camera` !== camera?.[0]);
    if (!camera || turning || !others.length) return;
    turning = true;
    const same = Object.fromEntries(others.map((key) => [`${key}.camera`, camera[1]]));
    Plotly.relayout(plot, same).then(() => { turning = false; });
  });
  document.body.dataset.ready = "true";
});
