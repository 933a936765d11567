"use strict";

const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const [rows, columns] = facts.shape;
const sides = ["left", "right"];
const layers = new Map(facts.layers.map((layer) => [layer.name, layer]));
const original = { low: facts.window[0], high: facts.window[1] };

// What is shown. position: in facts.slices. scales: the value at full colour, of layers that are not grey.
const state = {
  position: facts.slices.indexOf(Math.floor(facts.count / 2)),
  left: facts.layers[0].name,
  right: facts.layers[Math.min(1, facts.layers.length - 1)].name,
  low: original.low,
  high: original.high,
  divider: 0.5,
  scales: new Map(),
};
const shown = { left: null, right: null }; // the values (row by row) that are on the screen
const kept = new Map(); // values of slices that were looked at, the oldest first
const KEEP = 60;

const words = (value) => (value === 0 ? "0" : Number(value.toPrecision(4)).toString());

// ---------------------------------------------------------------------------------------------------------- pixels

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The inverse of pixels.encode_slice: each pixel is what its neighbours predict plus what that left.
function decoded(bytes, layer) {
  const size = rows * columns;
  const q = new Int32Array(size);
  const values = new Float32Array(size);
  for (let at = 0, y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++, at++) {
      const left = x > 0 ? q[at - 1] : 0;
      const above = y > 0 ? q[at - columns] : 0;
      const corner = x > 0 && y > 0 ? q[at - columns - 1] : 0;
      const plane = Math.min(Math.max(left + above - corner, Math.min(left, above)), Math.max(left, above));
      const folded = bytes[at] * 256 + bytes[size + at];
      q[at] = plane + (folded % 2 ? -(folded + 1) / 2 : folded / 2);
      values[at] = layer.low + layer.step * q[at];
    }
  }
  return values;
}

async function valuesOf(name, position) {
  const layer = layers.get(name);
  const key = `${position} ${name}`;
  if (!kept.has(key)) {
    const found =
      layer.kind === "difference"
        ? Promise.all([valuesOf(layer.first, position), valuesOf(layer.second, position)]).then(([first, second]) =>
            first.map((value, at) => value - second[at]),
          )
        : inflated(layer.slices[position]).then((bytes) => decoded(bytes, layer));
    kept.set(key, found);
    if (kept.size > KEEP) kept.delete(kept.keys().next().value);
  }
  return kept.get(key);
}

// --------------------------------------------------------------------------------------------------------- drawing

// Blue, black, orange for -1, 0, 1; black, orange, white for 0, 0.5, 1: told apart by colour-blind readers too.
const coloursOf = {
  difference: (part) => (part < 0 ? [-90 * part, -180 * part, -255 * part] : [255 * part, 150 * part, 20 * part]),
  map: (part) => [510 * part, 300 * part, Math.max(0, 510 * part - 255)],
};

function scaleOf(layer) {
  const first = layer.kind === "map" ? layer.high : original.high / facts.errorGain;
  return state.scales.get(layer.name) ?? (first || 1);
}

function paint(side) {
  const values = shown[side];
  if (!values) return;
  const layer = layers.get(state[side]);
  const context = byId(side).getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer); // little-endian: alpha, blue, green, red
  if (layer.kind === "image") {
    const factor = 255 / Math.max(state.high - state.low, Number.MIN_VALUE);
    for (let at = 0; at < pixels.length; at++) {
      const grey = Math.round(Math.min(Math.max((values[at] - state.low) * factor, 0), 255));
      pixels[at] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
  } else {
    const scale = scaleOf(layer);
    const table = Array.from({ length: 511 }, (_, i) => {
      const [red, green, blue] = coloursOf[layer.kind]((i - 255) / 255).map((one) => Math.min(Math.max(Math.round(one), 0), 255));
      return 0xff000000 | (blue << 16) | (green << 8) | red;
    });
    for (let at = 0; at < pixels.length; at++) {
      const part = Math.min(Math.max(values[at] / scale, -1), 1);
      pixels[at] = table[Math.round(255 * part) + 255];
    }
  }
  context.putImageData(image, 0, 0);
}

async function showSlice() {
  const { position } = state;
  const names = sides.map((side) => state[side]);
  byId("slice").value = position;
  byId("slice-number").textContent = `${facts.slices[position]} of 0 to ${facts.count - 1}`;
  byId("slice").setAttribute("aria-valuetext", `slice ${facts.slices[position]}`);
  byId("of-slice").textContent = facts.ofSlices ? facts.ofSlices[position] : "";
  for (const row of document.querySelectorAll("tr[data-slice]")) {
    row.classList.toggle("current", Number(row.dataset.slice) === facts.slices[position]);
  }
  const found = await Promise.all(names.map((name) => valuesOf(name, position)));
  // Another slice may have been asked for meanwhile.
  if (position !== state.position || names.some((name, i) => name !== state[sides[i]])) return;
  sides.forEach((side, i) => {
    shown[side] = found[i];
    paint(side);
  });
  byId("stage").dataset.slice = facts.slices[position];
  readout();
  await showMask(position);
  for (const next of [position + 1, position - 1]) {
    if (next >= 0 && next < facts.slices.length) names.forEach((name) => valuesOf(name, next));
  }
}

async function showMask(position) {
  if (!facts.coverage) return;
  const { shape, slices, shares } = facts.coverage;
  const share = `${(100 * shares[position]).toFixed(1)} %`;
  const which = slices.length === 1 ? "the same in every slice" : `slice ${facts.slices[position]}`;
  byId("mask-caption").textContent =
    `K-space coverage, ${which}: white was sampled, ${share} of the locations. Rows are ky, columns kx, zero frequency in the middle; not turned with the image.`;
  const which_slice = slices.length === 1 ? 0 : position;
  if (byId("mask").dataset.slice === String(which_slice)) return;
  const bits = await inflated(slices[which_slice]);
  if (position !== state.position) return;
  const context = byId("mask").getContext("2d");
  const image = context.createImageData(shape[1], shape[0]);
  for (let at = 0; at < shape[0] * shape[1]; at++) {
    const grey = (bits[at >> 3] >> (7 - (at & 7))) & 1 ? 255 : 0;
    image.data.set([grey, grey, grey, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
  byId("mask").dataset.slice = which_slice;
}

function showWindow() {
  byId("level").value = words((state.low + state.high) / 2);
  byId("width").value = words(state.high - state.low);
  sides.forEach(paint);
}

function showDivider() {
  const share = `${100 * state.divider}%`;
  byId("left").style.clipPath = `inset(0 ${100 - 100 * state.divider}% 0 0)`;
  byId("line").style.left = share;
  byId("divider").value = 100 * state.divider;
}

function showLayers() {
  const chosen = [...new Set(sides.map((side) => layers.get(state[side])))];
  byId("about").replaceChildren(
    ...chosen.map((layer) => {
      const line = document.createElement("div");
      line.textContent = `${layer.name}: ${layer.about}`;
      return line;
    }),
  );
  for (const side of sides) {
    byId(`name-${side}`).textContent = state[side];
    byId(`layer-${side}`).value = state[side];
  }
  showScale();
  return showSlice();
}

// The layer in colours that is shown, of two the left one.
const coloured = () => sides.map((side) => layers.get(state[side])).find((layer) => layer.kind !== "image");

function showScale() {
  const layer = coloured();
  byId("scale-fields").hidden = !layer;
  if (!layer) return;
  const scale = scaleOf(layer);
  const signed = layer.kind === "difference";
  byId("scale-legend").textContent = `Colours of ${layer.name}, in the file's units`;
  byId("scale").value = words(scale);
  [signed ? -scale : 0, signed ? 0 : scale / 2, scale].forEach((value, i) => {
    byId(["scale-low", "scale-middle", "scale-high"][i]).textContent = words(value);
  });
  const context = byId("colours").getContext("2d");
  const image = context.createImageData(256, 1);
  for (let at = 0; at < 256; at++) {
    image.data.set([...coloursOf[layer.kind](signed ? at / 127.5 - 1 : at / 255), 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
}

let pointed = null; // row and column under the pointer

function readout() {
  if (!pointed || !shown.left) return;
  const [y, x] = pointed;
  const values = new Set(sides.map((side) => `${state[side]} ${words(shown[side][y * columns + x])}`));
  byId("readout").textContent = `Row ${y}, column ${x} as shown: ${[...values].join(", ")}`;
}

// --------------------------------------------------------------------------------------------------------- actions

function goTo(position) {
  const next = Math.min(Math.max(position, 0), facts.slices.length - 1);
  if (next === state.position) return;
  state.position = next;
  showSlice().catch(complain);
}

function setWindow(level, width) {
  if (!Number.isFinite(level) || !(width > 0)) return;
  state.low = level - width / 2;
  state.high = level + width / 2;
  showWindow();
}

function setDivider(share) {
  state.divider = Math.min(Math.max(share, 0), 1);
  showDivider();
}

function complain(error) {
  byId("problem").hidden = false;
  byId("problem").textContent = `The images cannot be shown: ${error.message}. Numbers and words are below.`;
}

function listen() {
  const stage = byId("stage");
  byId("slice").addEventListener("input", (event) => goTo(Number(event.target.value)));
  byId("divider").addEventListener("input", (event) => setDivider(Number(event.target.value) / 100));
  for (const id of ["level", "width"]) {
    byId(id).addEventListener("change", () => {
      setWindow(Number(byId("level").value), Number(byId("width").value));
      showWindow(); // what cannot be a window is put back
    });
  }
  byId("reset").addEventListener("click", () => {
    Object.assign(state, original);
    state.scales.clear();
    showScale();
    showWindow();
  });
  byId("scale").addEventListener("change", (event) => {
    const layer = coloured();
    if (Number(event.target.value) > 0) state.scales.set(layer.name, Number(event.target.value));
    showScale();
    sides.forEach(paint);
  });
  for (const side of sides) {
    byId(`layer-${side}`).addEventListener("change", (event) => {
      state[side] = event.target.value;
      showLayers().catch(complain);
    });
  }

  let turned = 0; // of a wheel, or many small turns of a touchpad
  stage.addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey) return; // zooms the page
      event.preventDefault();
      turned += event.deltaMode === 0 ? event.deltaY / 60 : Math.sign(event.deltaY);
      const steps = Math.trunc(turned);
      turned -= steps;
      if (steps) goTo(state.position + Math.sign(steps));
    },
    { passive: false },
  );
  const keys = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  stage.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    goTo(state.position + keys[event.key]);
  });

  let drag = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { x: event.clientX, y: event.clientY, low: state.low, high: state.high, divider: event.target.id === "grip" };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (drag && drag.divider) setDivider(across);
    else if (drag) {
      const width = (drag.high - drag.low) * Math.exp((2 * (event.clientX - drag.x)) / box.width);
      const moved = (original.high * (event.clientY - drag.y)) / box.height; // down: darker
      setWindow((drag.low + drag.high) / 2 + moved, width);
    }
    if (across >= 0 && across < 1 && down >= 0 && down < 1) {
      pointed = [Math.floor(down * rows), Math.floor(across * columns)];
      readout();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (drag = null));
}

function begin() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old, it lacks DecompressionStream");
  for (const side of sides) {
    Object.assign(byId(side), { width: columns, height: rows });
    byId(`layer-${side}`).append(...facts.layers.map((layer) => new Option(layer.name, layer.name)));
  }
  byId("slice").max = facts.slices.length - 1;
  if (facts.edges) facts.edges.forEach((letter, i) => (byId(`edge-${i}`).textContent = letter));
  if (facts.coverage) {
    const [high, wide] = facts.coverage.shape;
    Object.assign(byId("mask"), { width: wide, height: high });
    byId("coverage").hidden = false;
  }
  listen();
  showDivider();
  showWindow();
  showLayers().catch(complain);
  byId("stage").focus({ preventScroll: true });
}

try {
  begin();
} catch (error) {
  complain(error);
}
