// The page: what is shown, which predictions are requested, and what the controls do.

import { SIDE, image as pixelsOf, setColours } from "./draw.js";
import { Lane } from "./lane.js";
import { Pane, element } from "./pane.js";
import { Strip } from "./strip.js";
import * as api from "./api.js";

const part = (name) => document.getElementById(name);
const MAX_LANES = 6;
const DOTS = 32; // steps of the arrow keys on the image itself

const page = {
  facts: null,
  lanes: [],
  image: null, // {reference, name, label, box, file}
  pixels: null,
  query: null, // null: the image's own; {x, y}; or {reference, name}
  cursor: null,
  turn: 0,
  view: { opacity: 0.8, threshold: 0, scale: "own", smooth: true },
  on: { move: moved, leave: left, choose: pinned },
  predict: (lane) => guarded(() => lane.refresh(page.turn)),
  drop: dropLane,
  redraw,
  guarded,
};
let pane = null;
let strip = null;

// ---- errors

async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    showError(error.message);
    if (!(error instanceof api.ApiError)) console.error(error);
    return undefined;
  }
}

function showError(message) {
  part("error").firstElementChild.textContent = message;
  part("error").hidden = !message;
}

// ---- the image

async function show(facts, file = null) {
  const turn = ++page.turn;
  const pixels = await pixelsOf(api.viewOf(facts.reference));
  if (turn !== page.turn) return;
  Object.assign(page, { image: { ...facts, file }, pixels, cursor: null });
  if (page.query && !page.query.reference) page.query = null; // a place belongs to its image
  part("subject").classList.remove("empty");
  part("name").replaceChildren(facts.name, facts.label ? element("span", { className: "grey" }, ` · ${facts.label}`) : "");
  drawSubject();
  strip.highlight();
  showQuery();
  await predictAll();
}

const choose = (reference) => guarded(async () => {
  showError("");
  await show(await api.facts(reference));
});

const drop = (file) => guarded(async () => {
  showError("");
  await show(await api.upload(file, page.facts.limits), file);
});

async function predictAll() {
  const turn = ++page.turn;
  await Promise.all(page.lanes.map((lane) => guarded(() => refresh(lane, turn))));
}

// An upload that the server has dropped is sent again, once.
async function refresh(lane, turn) {
  try {
    await lane.refresh(turn);
  } catch (error) {
    if (error.status !== 404 || !page.image.file || turn !== page.turn) throw error;
    const again = await api.upload(page.image.file, page.facts.limits);
    page.image.reference = again.reference;
    await lane.refresh(turn);
  }
}

function drawSubject() {
  const pen = pane.pen;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(page.pixels.image, 0, 0, SIDE, SIDE);
  pane.above.ariaLabel = `The image ${page.image.name}. Arrow keys move a mark, Enter makes its place the query.`;
}

// ---- drawing and reading

function redraw() {
  if (!page.pixels) return;
  for (const lane of page.lanes) lane.draw();
  mark();
}

let pending = 0;
function soon(work) {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(work);
}

function mark() {
  const marks = { object: page.image?.box ?? null };
  const framed = page.lanes.find((lane) => lane.prediction?.follows_query && lane.prediction.query_box)?.prediction.query_box ?? null;
  pane.mark({ ...marks, cursor: page.cursor, cell: null, hottest: null, query: framed });
  for (const lane of page.lanes) lane.mark(page.cursor, marks);
}

function moved(place, event) {
  if (!page.image) return;
  page.cursor = place;
  soon(mark);
  if (event.type === "keydown") speak();
  else if (part("follow").checked && event.target === pane.above) follow(place);
}

function left() {
  page.cursor = null;
  soon(mark);
}

// Reads out where the arrow keys are, for screen readers.
function speak() {
  const tile = page.lanes.flatMap((lane) => lane.tiles).find(({ pane }) => pane.above === document.activeElement);
  part("reading").textContent = tile ? `${tile.title}: ${tile.reading(tile.valueAt(page.cursor))}` : "";
}

// ---- the query

function setQuery(query) {
  page.query = query;
  showQuery(); // at once: the rows follow as their predictions arrive
  return predictAll();
}

function pinned(place, event) {
  if (!page.image) {
    part("open").click();
    return;
  }
  const isReading = event.type === "click" && event.target !== pane.above;
  page.cursor = place;
  soon(mark);
  if (!isReading) setQuery({ x: place.x, y: place.y });
}

// The query under the pointer: one request at a time, and the last place is never left out.
let busy = false;
let latest = null;
async function follow(place) {
  latest = place;
  if (busy) return;
  busy = true;
  while (latest) {
    const next = latest;
    latest = null;
    await setQuery(next);
  }
  busy = false;
}

async function asQuery(reference) {
  await guarded(async () => {
    const facts = await api.facts(reference);
    await setQuery({ reference, name: facts.name });
  });
}

function showQuery() {
  const able = page.lanes.some((lane) => lane.run.uses_query);
  const text = part("query-text");
  if (!able) text.textContent = page.lanes[0].run.query_note;
  else if (page.query === null) text.textContent = "The image's own. Click a place in the image, or press Enter there, and watch the attention follow.";
  else if (page.query.reference) text.textContent = `${page.query.name}.`;
  else text.textContent = `The place at ${Math.round(100 * page.query.x)} % from the left, ${Math.round(100 * page.query.y)} % from the top.`;
  part("query-own").disabled = page.query === null;
  part("follow-label").hidden = !able;
  const thumb = part("query-thumb");
  thumb.hidden = !page.query?.reference;
  if (page.query?.reference) thumb.src = api.thumbnailOf(page.query.reference);
}

// ---- rows

function addLane(choice) {
  const lane = new Lane(page, choice);
  page.lanes.push(lane);
  part("lanes").append(lane.root);
  rename();
  showQuery();
  if (page.image) page.predict(lane);
}

function dropLane(lane) {
  page.lanes.splice(page.lanes.indexOf(lane), 1);
  lane.root.remove();
  rename();
  redraw();
  showQuery();
}

function rename() {
  for (const lane of page.lanes) lane.name();
  part("lanes").className = page.lanes.length > 1 ? "many" : "";
  part("add").disabled = page.lanes.length >= MAX_LANES;
}

function addAnother() {
  const last = page.lanes.at(-1).choice;
  addLane({ ...last, run: (last.run + 1) % page.facts.runs.length });
}

// ---- controls

function control(name, write) {
  const input = part(name);
  const act = () => {
    write(input);
    soon(redraw);
  };
  input.addEventListener("input", act);
  act();
}

function wireControls() {
  const { view } = page;
  control("opacity", (input) => {
    view.opacity = input.value / 100;
    part("opacity-out").textContent = `${input.value} %`;
  });
  control("threshold", (input) => {
    view.threshold = input.value / 100;
    part("threshold-out").textContent = Number(input.value) ? `${input.value} %` : "off";
  });
  control("scale", (input) => (view.scale = input.value));
  control("smooth", (input) => (view.smooth = input.checked));
  part("add").addEventListener("click", addAnother);
  part("query-own").addEventListener("click", () => setQuery(null));
  const onFile = (name, use) => part(name).addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) use(file);
  });
  onFile("open", drop);
  onFile("query-open", (file) => guarded(async () => {
    showError("");
    const facts = await api.upload(file, page.facts.limits);
    await setQuery({ reference: facts.reference, name: facts.name });
  }));
  part("error").lastElementChild.addEventListener("click", () => showError(""));
  part("help-open").addEventListener("click", () => part("help").showModal());
}

function wireDropping() {
  const over = (shown) => (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault();
    part("drop").hidden = !shown;
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && (part("drop").hidden = true));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    const [file] = event.dataTransfer?.files ?? [];
    if (file) drop(file);
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) drop(file);
  });
}

function wireKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || part("help").open) return;
    if (event.key === "Escape" && page.query) setQuery(null);
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range") return;
    if (event.key === "n") strip.step(1);
    if (event.key === "p") strip.step(-1);
    if (event.key === "?") part("help").showModal();
  });
}

function wireTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const name = () => (part("theme").textContent = isDark() ? "Light" : "Dark");
  part("theme").addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("heedmap-theme", next);
    name();
  });
  dark.addEventListener("change", name);
  name();
}

async function start() {
  wireTheme();
  page.facts = await api.about();
  setColours(page.facts.colours);
  part("runs").textContent = page.facts.runs.map((run) => run.name).join("  ·  ");
  document.title = `${page.facts.runs[0].name} · heedmap explorer`;
  pane = new Pane(part("subject"), "No image yet. Press Enter to open one.", () => ({ width: DOTS, height: DOTS }), page.on);
  strip = new Strip(page, { choose, asQuery });
  page.facts.runs.slice(0, MAX_LANES).forEach((_, run) => addLane({ run, method: page.facts.methods[0].key, target: null }));
  wireControls();
  wireDropping();
  wireKeys();
  if (page.facts.sources.length) await choose("s0-0");
  document.documentElement.dataset.ready = "";
}

guarded(start);
