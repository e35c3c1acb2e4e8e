// The page on which pairs of points are clicked. Pixels are those of the pictures as stored; the centre of the first is
// (0, 0). No library and no network but the program that serves this page.
"use strict";

const SIDES = ["ir", "vis"];
const ZOOM = 6;
const pairs = []; // {frame, ir: [x, y], vis: [x, y] or null}
let sizes, names, fit = null, asked = 0;

const $ = (selector) => document.querySelector(selector);
const view = (side) => $(`figure[data-side=${side}] .view`);
const picture = (side) => view(side).querySelector("img");
const frame = () => Number($("#frame").value);
const last = () => pairs.at(-1);
const complete = () => pairs.filter((pair) => pair.vis);
const wanted = () => (last() && !last().vis ? "vis" : "ir");

async function start() {
  ({ names, sizes } = await (await fetch("frames.json")).json());
  names.forEach((name, number) => $("#frame").append(new Option(name, number)));
  for (const side of SIDES) {
    view(side).addEventListener("click", (event) => click(side, event));
    view(side).addEventListener("pointermove", (event) => magnify(side, event));
    view(side).addEventListener("pointerleave", () => ($("#loupe").hidden = true));
  }
  $("#frame").addEventListener("change", showFrame);
  $("#undo").addEventListener("click", takeBack);
  $("#save").addEventListener("click", () => finish("save", "Saved. The command in the terminal goes on; close this page."));
  $("#quit").addEventListener("click", () => finish("quit", "Nothing was saved. Close this page."));
  document.addEventListener("keydown", nudge);
  showFrame();
}

function showFrame() {
  if (last() && !last().vis) pairs.pop();
  for (const side of SIDES) picture(side).src = `${side}-${frame()}.png`;
  changed();
}

function place(side, event) {
  const box = picture(side).getBoundingClientRect();
  const [width, height] = sizes[side];
  return [((event.clientX - box.left) / box.width) * width - 0.5, ((event.clientY - box.top) / box.height) * height - 0.5];
}

function click(side, event) {
  if (side !== wanted()) return say(`Now the ${wanted() === "ir" ? "infrared" : "visible"} picture.`);
  const point = place(side, event);
  if (side === "ir") pairs.push({ frame: frame(), ir: point, vis: null });
  else last().vis = point;
  changed();
}

function nudge(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !last() || event.target.matches("select")) return;
  event.preventDefault();
  const point = last().vis ?? last().ir;
  const length = event.shiftKey ? 5 : 0.5;
  point[0] += step[0] * length;
  point[1] += step[1] * length;
  changed();
}

function takeBack() {
  if (last()?.vis) last().vis = null;
  else pairs.pop();
  changed();
}

async function changed() {
  draw();
  const number = ++asked;
  const rows = complete().map((pair) => [...pair.ir, ...pair.vis]);
  let answer = null;
  if (rows.length >= 4) answer = await send("fit", rows);
  if (number !== asked) return; // a later change has asked again
  fit = answer && !answer.error ? answer : null;
  draw();
  $("#save").disabled = !fit;
  if (answer?.error) say(answer.error);
  else if (fit) say(`${fit.kept} of ${fit.pairs} pairs agree: median ${fit.median_px.toFixed(2)}, 95 % within ${fit.p95_px.toFixed(2)} visible pixels.${fit.kept === 4 ? " Four pairs always do: add more." : ""}`);
  else say(`${rows.length} pairs; at least 4 are needed. Now the ${wanted() === "ir" ? "infrared" : "visible"} picture.`);
}

function draw() {
  for (const side of SIDES) {
    $(`figure[data-side=${side}]`).classList.toggle("wanted", wanted() === side);
    view(side).querySelectorAll(".mark").forEach((mark) => mark.remove());
  }
  const done = complete();
  pairs.forEach((pair, number) => {
    if (pair.frame !== frame()) return;
    const wrong = fit && pair.vis && fit.kept_pairs[done.indexOf(pair)] === false;
    for (const side of SIDES) if (pair[side]) mark(side, pair[side], `${number + 1}`, wrong ? "wrong" : "");
    if (!pair.vis && fit) mark("vis", mapped(fit.matrix, pair.ir), "about here", "hint");
  });
  $("#pairs").replaceChildren(...done.map(line));
  $("table").hidden = done.length === 0;
  $("#undo").disabled = pairs.length === 0;
}

function line(pair, number) {
  const row = document.createElement("tr");
  const far = fit?.distances_px[number];
  row.className = fit && fit.kept_pairs[number] === false ? "wrong" : "";
  const texts = [number + 1, ...SIDES.map((side) => pair[side].map((value) => value.toFixed(1)).join(", ")), far?.toFixed(2) ?? "–"];
  for (const text of texts) row.insertCell().textContent = text;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Remove";
  button.addEventListener("click", () => {
    pairs.splice(pairs.indexOf(pair), 1);
    changed();
  });
  row.insertCell().append(button);
  return row;
}

function mark(side, [x, y], text, kind) {
  const element = document.createElement("div");
  element.className = `mark ${kind}`;
  element.style.left = `${((x + 0.5) / sizes[side][0]) * 100}%`;
  element.style.top = `${((y + 0.5) / sizes[side][1]) * 100}%`;
  element.append(Object.assign(document.createElement("span"), { textContent: text }));
  view(side).append(element);
}

function mapped(matrix, [x, y]) {
  const [u, v, w] = matrix.map((row) => row[0] * x + row[1] * y + row[2]);
  return [u / w, v / w];
}

function magnify(side, event) {
  const loupe = $("#loupe");
  const image = picture(side);
  const box = image.getBoundingClientRect();
  const across = ((event.clientX - box.left) / box.width) * image.naturalWidth;
  const down = ((event.clientY - box.top) / box.height) * image.naturalHeight;
  const part = loupe.width / ZOOM;
  const pen = loupe.getContext("2d");
  loupe.hidden = false;
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, loupe.width, loupe.height);
  pen.drawImage(image, across - part / 2, down - part / 2, part, part, 0, 0, loupe.width, loupe.height);
  pen.strokeStyle = "#19e36b";
  pen.strokeRect(loupe.width / 2 - ZOOM / 2, loupe.height / 2 - ZOOM / 2, ZOOM, ZOOM);
}

async function send(path, rows) {
  try {
    return await (await fetch(path, { method: "POST", body: JSON.stringify(rows) })).json();
  } catch {
    return { error: "The program that serves this page has ended." };
  }
}

async function finish(path, words) {
  const answer = await send(path, complete().map((pair) => [...pair.ir, ...pair.vis]));
  if (answer.error) return say(answer.error);
  document.querySelectorAll("button, select").forEach((element) => (element.disabled = true));
  asked += 1;
  say(words);
}

function say(text) {
  $("#state").textContent = text;
}

start();
