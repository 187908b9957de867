"use strict";

// A photo goes to /detect once, asked for everything down to a low score; the slider then hides and shows without asking
// again. Names and sentences are only ever set as text.

const LARGEST_SIDE = 2400; // of the canvas: a photo of 50 megapixels would make each redraw slow
const GOLDEN = 0.618034; // the colours of cvpeft.runtime.draw
const at = (id) => document.getElementById(id);
const score = at("score");

let words = WORDS.en;
let model = null;
let photo = null; // {bitmap, answer}: what is shown
let own = true; // each class's own threshold counts, until the slider is moved
let hovered = null;
let asked = new AbortController(); // a newer photo ends the request of the one before

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(words.silent);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? words.status(response.status));
  return answer;
}

async function start() {
  model = await ask("/model");
  document.title = `${model.run ?? model.file} · cvpeft`;
  at("run").textContent = model.run ?? model.file;
  at("model").title = model.classes.join(", ");
  introduce();
}

function introduce() {
  at("model").textContent = words.classes(model.classes);
  at("limits").textContent = words.limits(model.limits);
}

// A refusal that is being told stays in the words in which it was told.
function speak(language) {
  words = WORDS[language];
  document.documentElement.lang = words.tag;
  for (const one of document.querySelectorAll("[data-word]")) one.textContent = words[one.dataset.word];
  at("photo").ariaLabel = words.photo;
  at("own").title = words.own;
  at("language").textContent = words.other;
  at("language").lang = language === "zh" ? "en" : "zh-CN";
  if (model) introduce();
  if (photo) refresh();
}

const leastScore = () => Math.min(Number(score.min), ...Object.values(model.score_thresholds));

async function show(file) {
  asked.abort();
  const { signal } = (asked = new AbortController());
  tell("");
  at("busy").hidden = false;
  try {
    model ?? (await start());
    const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal };
    const answer = await ask(`/detect?score=${leastScore()}`, options);
    const bitmap = await shrunk(file, answer);
    if (signal.aborted) return;
    photo?.bitmap.close();
    photo = { bitmap, answer };
    own = true;
    refresh();
  } catch (error) {
    if (signal.aborted) return;
    clear();
    tell(error.message, "refused");
  } finally {
    if (!signal.aborted) at("busy").hidden = true;
  }
}

// The photo upright, as the service saw it, in the size of the canvas.
async function shrunk(file, { width, height }) {
  const scale = Math.min(1, LARGEST_SIDE / Math.max(width, height));
  const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  try {
    return await createImageBitmap(file, { resizeWidth: size[0], resizeHeight: size[1], resizeQuality: "high" });
  } catch {
    throw new Error(words.unshown);
  }
}

function clear() {
  photo?.bitmap.close();
  photo = null;
  at("photo").hidden = at("controls").hidden = true;
  at("empty").hidden = false;
  at("found").replaceChildren();
}

function refresh() {
  const { detections } = photo.answer;
  const least = ({ name }) => (own ? model.score_thresholds[name] : Number(score.value));
  // The service compares 32-bit numbers: one that is just its threshold must not fall on the other side here.
  const found = detections.filter((one) => Math.fround(one.score) >= Math.fround(least(one)));
  hovered = found.includes(hovered) ? hovered : null;
  at("empty").hidden = true;
  at("photo").hidden = at("controls").hidden = false;
  at("value").textContent = own ? words.ownScore : words.above(Number(score.value).toFixed(2));
  at("own").disabled = own;
  tell(sentence(found.length, detections.length - found.length));
  at("found").replaceChildren(...found.map(row));
  draw(found);
}

function sentence(shown, weaker) {
  const hidden = weaker ? words.weaker(weaker) : "";
  if (shown) return words.found(shown) + hidden;
  return weaker ? words.noneHere + hidden : words.none;
}

function tell(text, kind = "") {
  at("told").textContent = text;
  at("told").className = kind;
}

function row(one) {
  const item = document.createElement("li");
  const [name, value] = [document.createElement("span"), document.createElement("data")];
  name.textContent = one.name;
  value.textContent = value.value = one.score.toFixed(2);
  item.append(swatch(one.label), name, value);
  item.addEventListener("pointerenter", () => ((hovered = one), refreshCanvas()));
  item.addEventListener("pointerleave", () => ((hovered = null), refreshCanvas()));
  item.detection = one;
  return item;
}

const refreshCanvas = () => draw([...at("found").children].map((item) => item.detection));

function swatch(label) {
  const space = "http://www.w3.org/2000/svg"; // a style attribute would need a hole in the page's security policy
  const svg = document.createElementNS(space, "svg");
  const dot = document.createElementNS(space, "circle");
  svg.setAttribute("width", 14);
  svg.setAttribute("height", 14);
  for (const [key, value] of Object.entries({ cx: 7, cy: 7, r: 6, fill: colour(label), stroke: "#000" }))
    dot.setAttribute(key, value);
  svg.append(dot);
  return svg;
}

// hsv(h, 0.85, 1), written as hsl
const colour = (label, alpha = 1) => `hsl(${(360 * (0.33 + (label - 1) * GOLDEN)) % 360} 100% 57.5% / ${alpha})`;

function draw(found) {
  const { bitmap, answer } = photo;
  const canvas = at("photo");
  const pen = canvas.getContext("2d");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  pen.drawImage(bitmap, 0, 0);
  const scale = [bitmap.width / answer.width, bitmap.height / answer.height];
  const placed = found.map((one) => ({ ...one, box: one.box.map((side, i) => side * scale[i % 2]), one })).reverse();
  // In pixels of the screen, so that letters can be read on a telephone too.
  const pixel = Math.max(bitmap.width / canvas.clientWidth, bitmap.height / canvas.clientHeight);
  const line = Math.max(2, 2.5 * pixel);
  for (const { box, label, one } of placed) frame(pen, box, label, line, one === hovered);
  for (const one of placed) tag(pen, one, Math.max(12, 14 * pixel), bitmap);
}

// A dark rim, so that the line is seen on any ground.
function frame(pen, [x1, y1, x2, y2], label, line, marked) {
  if (marked) {
    pen.fillStyle = colour(label, 0.3);
    pen.fillRect(x1, y1, x2 - x1, y2 - y1);
  }
  for (const [ink, width] of [
    ["#000", line + 2],
    [colour(label), line],
  ]) {
    pen.strokeStyle = ink;
    pen.lineWidth = width;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

// Above its box, in it where there is no room, and never outside of the photo.
function tag(pen, { box, label, name, score: value }, size, { width, height }) {
  const text = `${name} ${value.toFixed(2)}`;
  pen.font = `600 ${size}px system-ui, "Noto Sans CJK SC", sans-serif`;
  const [w, h] = [pen.measureText(text).width + size * 0.6, size * 1.35];
  const x = Math.max(0, Math.min(box[0], width - w));
  const y = box[1] >= h ? box[1] - h : Math.max(0, Math.min(box[1], height - h));
  pen.fillStyle = colour(label);
  pen.fillRect(x, y, w, h);
  pen.fillStyle = "#000";
  pen.textBaseline = "middle";
  pen.fillText(text, x + size * 0.3, y + h / 2);
}

function taken(list) {
  const file = [...(list ?? [])].find((one) => one instanceof File);
  if (file) show(file);
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  at("stage").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? at("stage").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("stage").classList.remove("over");
  taken(event.dataTransfer.files);
});
addEventListener("paste", (event) => taken(event.clipboardData.files));
at("file").addEventListener("change", (event) => {
  taken(event.target.files);
  event.target.value = ""; // the same photo may be chosen again
});
score.addEventListener("input", () => {
  own = false;
  if (photo) refresh();
});
at("own").addEventListener("click", () => {
  own = true;
  refresh();
});

at("language").addEventListener("click", () => {
  const other = words === WORDS.zh ? "en" : "zh";
  chosen(other);
  speak(other);
});

new ResizeObserver(() => photo && refreshCanvas()).observe(at("stage"));
speak(chosen() in WORDS ? chosen() : preferred());
start().catch((error) => tell(error.message, "refused"));
