"use strict";

const ANSWER_MS = 5000; // an unanswered ping so old means that the server is gone
const STALLED_S = 2;
const HISTORY = 120; // seconds in the charts
const PINGS = 10; // the clocks are compared by the quickest of so many
const FARTHEST_MM = 65535;
const GREY = 128;

const $ = (id) => document.getElementById(id);
const canvases = { photo: $("photo"), depth: $("depth"), mixed: $("mixed") };
const narrow = matchMedia("(max-width: 30rem)");

let hello = null; // setup, limits_m, colours
let limits = { near: 0, far: 1 };
const palette = new Uint32Array(FARTHEST_MM + 1); // RGBA by millimetres
let shown = null; // the frame on the page: header, photo, jpeg, depth (Uint16Array, mm), age_ms
let frozen = false;
let view = narrow.matches ? "wipe" : "sides";
const mix = { sides: 50, overlay: 50, wipe: 50 };
let probe = null; // [x, y] in pixels of the frame

// The address has done its duty: the token is in a cookie now, and need not be in the history.
if (location.search) history.replaceState(null, "", location.pathname);

// ---------------------------------------------------------------- connection

let socket = null;
let asked = 0; // packets that are on their way
let failures = 0;
let retryAt = 0; // performance.now() of the next attempt
let lost = "";
let pingAt = null; // performance.now() of the ping that is under way
let pings = []; // { trip, offset }, ms; offset = server's clock - ours
let status = null;
let queue = Promise.resolve();

function connect() {
  retryAt = 0;
  const mine = new WebSocket(location.href.replace(/^http/, "ws").replace(/[?#].*/, "") + "frames");
  socket = mine;
  pingAt = null;
  mine.binaryType = "arraybuffer";
  pings = [];
  asked = 0;
  mine.onmessage = ({ data }) => {
    if (mine !== socket) return;
    if (typeof data !== "string")
      queue = queue.then(() => mine === socket && take(data)).catch(console.error).then(() => {
        if (mine !== socket) return;
        asked--;
        ask();
      });
    else if (pingAt === null) greet(JSON.parse(data));
    else pong(JSON.parse(data));
  };
  mine.onclose = (event) => mine === socket && disconnected(event.code === 1013 ? event.reason : "");
  // A connection that never opens would otherwise keep us waiting for minutes.
  setTimeout(() => mine === socket && mine.readyState === WebSocket.CONNECTING && disconnected(""), ANSWER_MS);
}

async function disconnected(reason) {
  const dead = socket;
  socket = null;
  dead.close();
  pingAt = null;
  status = null;
  lost = reason || "The device does not answer";
  const wait = Math.min(10, 0.5 * 2 ** failures++) * (0.75 + Math.random() / 2);
  retryAt = performance.now() + 1000 * wait;
  tell();
  if (reason) return;
  try {
    const answer = await fetch("healthz", { signal: AbortSignal.timeout(ANSWER_MS) });
    if (answer.status === 401 || answer.status === 421) lost = (await answer.text()).trim();
  } catch { /* no answer is what we say already */ }
}

function greet(message) {
  const known = hello !== null;
  hello = message;
  failures = 0;
  lost = "";
  const { source, model, backend, device, precision } = hello.setup;
  $("setup").textContent = `${model} · ${[backend, precision, device].filter(Boolean).join(" ")} · ${source}`;
  document.title = `Live depth: ${source}`;
  if (!known) reset();
  else recolour();
  ping();
  ask();
  tell();
}

function ping() {
  if (!socket || socket.readyState !== WebSocket.OPEN) return;
  if (pingAt === null) {
    pingAt = performance.now();
    socket.send("ping");
  } else if (performance.now() - pingAt > ANSWER_MS) disconnected("");
}

function pong(answer) {
  const now = performance.now();
  const trip = now - pingAt;
  pings = [...pings, { trip, offset: answer.now_ms - now + trip / 2 }].slice(-PINGS);
  pingAt = null;
  status = answer;
  if (pings.length < 5) ping();
}

const clock = () => pings.reduce((best, one) => (one.trip < best.trip ? one : best), { trip: Infinity });

// A second packet on its way pays where the way is longer than the drawing; elsewhere it would only grow old here.
function ask() {
  if (frozen || document.hidden || socket?.readyState !== WebSocket.OPEN) return;
  for (const most = busy < clock().trip ? 2 : 1; asked < most; asked++) socket.send("next");
}

// ---------------------------------------------------------------- packets

let busy = 0; // ms that a packet takes here, smoothed

async function take(data) {
  if (frozen || document.hidden) return;
  const begun = performance.now();
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const jpeg = new Blob([new Uint8Array(data, 4 + length, header.jpeg_bytes)], { type: "image/jpeg" });
  const [photo, depth] = await Promise.all([
    createImageBitmap(jpeg),
    decodedDepth(new Uint8Array(data, 4 + length + header.jpeg_bytes), header),
  ]);
  if (frozen) photo.close();
  else show({ header, photo, jpeg, depth });
  busy += (performance.now() - begun - busy) / 5;
}

async function piped(bytes, transform) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(transform)).arrayBuffer());
}

// The inverse of packets.coded_depth.
async function decodedDepth(bytes, { width, height }) {
  const planes = await piped(bytes, new DecompressionStream("deflate"));
  const size = width * height;
  const depth = new Uint16Array(size);
  for (let i = 0, y = 0; y < height; y++)
    for (let x = 0, sum = 0; x < width; x++, i++) {
      const folded = (planes[i] << 8) | planes[size + i];
      sum += (folded >>> 1) ^ -(folded & 1);
      depth[i] = sum + (y ? depth[i - width] : 0);
    }
  return depth;
}

// ---------------------------------------------------------------- pictures

let ages = []; // of the last second
let drawn = 0;

function show(frame) {
  shown?.photo.close();
  shown = frame;
  const { width, height } = frame.header;
  if (canvases.depth.width !== width || canvases.depth.height !== height) {
    for (const canvas of Object.values(canvases)) [canvas.width, canvas.height] = [width, height];
    $("pictures").style.setProperty("--aspect", width / height);
    forget();
  }
  draw();
  const { offset } = clock();
  frame.age_ms = offset === undefined ? null : performance.now() + offset - frame.header.captured_ms;
  if (frame.age_ms !== null) ages.push(frame.age_ms);
  drawn++;
  for (const id of ["freeze", "save-png", "save-npy", "save-jpg"]) $(id).disabled = false;
}

function draw() {
  if (!shown) return;
  const { photo, depth, header: { width, height } } = shown;
  if (view === "sides") canvases.photo.getContext("2d").drawImage(photo, 0, 0);
  const picture = new ImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = palette[depth[i]];
  canvases.depth.getContext("2d").putImageData(picture, 0, 0);
  drawMixed();
  read();
}

function drawMixed() {
  if (!shown) return;
  const { width, height } = canvases.mixed;
  const mixed = canvases.mixed.getContext("2d");
  mixed.drawImage(shown.photo, 0, 0);
  if (view === "wipe") {
    const left = Math.round((width * mix.wipe) / 100);
    if (left < width) mixed.drawImage(canvases.depth, left, 0, width - left, height, left, 0, width - left, height);
    mixed.fillStyle = "#fff";
    mixed.fillRect(left - 1, 0, 2, height);
  } else {
    mixed.globalAlpha = mix[view] / 100;
    mixed.drawImage(canvases.depth, 0, 0);
    mixed.globalAlpha = 1;
  }
}

function look(chosen) {
  view = chosen;
  document.querySelector(`#view [value=${view}]`).checked = true;
  $("pictures").classList.toggle("one", view !== "sides");
  for (const id of ["photo", "depth"]) canvases[id].closest("figure").hidden = view !== "sides";
  $("mix-name").textContent = view === "wipe" ? "Wipe" : "Overlay";
  $("mix").value = mix[view];
  draw();
}

// ---------------------------------------------------------------- colours

// As postprocess.colourise computes it, rounding to float32 where it does.
function recolour() {
  const { near, far } = limits;
  const f = Math.fround;
  const range = f(far - near);
  for (let mm = 0; mm <= FARTHEST_MM; mm++) {
    const nearness = f(f(f(far) - f(mm / 1000)) / range);
    const level = Math.trunc(f(Math.min(Math.max(nearness, 0), 1) * 255));
    const [red, green, blue] = mm ? hello.colours[level] : [GREY, GREY, GREY];
    palette[mm] = 0xff000000 | (blue << 16) | (green << 8) | red; // as ImageData's bytes lie on little-endian machines
  }
  drawBar();
  draw();
}

function drawBar() {
  const { near, far } = limits;
  const strip = new ImageData($("bar").width, 1);
  const pixels = new Uint32Array(strip.data.buffer);
  const at = (share) => near + (far - near) * share;
  for (let x = 0; x < pixels.length; x++)
    pixels[x] = palette[Math.min(Math.max(Math.round(1000 * at((x + 0.5) / pixels.length)), 1), FARTHEST_MM)];
  $("bar").getContext("2d").putImageData(strip, 0, 0);
  const step = niceStep((far - near) / (narrow.matches ? 4 : 8));
  const whole = Array.from({ length: Math.ceil(far / step) }, (_, k) => k * step);
  const ticks = [near, ...whole.filter((metres) => Math.min(metres - near, far - metres) > 0.6 * step), far].map((metres) => {
    const tick = document.createElement("span");
    tick.textContent = `${+metres.toFixed(2)} m`;
    tick.style.left = `${(100 * (metres - near)) / (far - near)}%`;
    return tick;
  });
  $("ticks").replaceChildren(...ticks);
  for (const end of ["near", "far"]) {
    $(end).value = limits[end];
    $(`${end}-m`).textContent = `${limits[end].toFixed(2)} m`;
    $(end).setAttribute("aria-valuetext", `${limits[end].toFixed(2)} metres`);
  }
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].find((digit) => digit * power >= rough * 0.999) * power;
}

function reset() {
  const [near, far] = hello.limits_m;
  const most = Math.max(far, 10);
  $("near").max = $("far").max = most;
  limits = { near, far };
  recolour();
}

function moveEnd(end) {
  const value = +$(end).value;
  const gap = +$(end).step;
  if (end === "near") limits = { near: Math.min(value, +$("far").max - gap), far: Math.max(limits.far, value + gap) };
  else limits = { near: Math.max(0, Math.min(limits.near, value - gap)), far: Math.max(value, gap) };
  if (hello) recolour();
}

// ---------------------------------------------------------------- distance of a point

function metresOf(mm, digits) {
  if (mm === 0) return "no depth";
  return mm === FARTHEST_MM ? "farther than 65.5 m" : `${(mm / 1000).toFixed(digits)} m`;
}

function read() {
  for (const spot of document.querySelectorAll(".spot")) spot.hidden = !probe;
  if (!probe || !shown) return;
  const { depth, header: { width, height } } = shown;
  const [x, y] = probe;
  const mm = depth[y * width + x];
  $("metres").textContent = `${metresOf(mm, 3)} at (${x}, ${y})`;
  for (const spot of document.querySelectorAll(".spot")) {
    spot.style.left = `${(100 * (x + 0.5)) / width}%`;
    spot.style.top = `${(100 * (y + 0.5)) / height}%`;
    spot.classList.toggle("left", x > 0.65 * width);
    spot.dataset.metres = metresOf(mm, 2);
  }
}

function moveProbe(x, y) {
  if (!shown) return;
  const { width, height } = shown.header;
  const within = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
  probe = [within(x, width), within(y, height)];
  read();
}

function forget() {
  probe = null;
  $("metres").textContent = "Point at a picture to measure.";
  read();
}

function point(event) {
  if (!shown || (event.pointerType !== "mouse" && event.type === "pointermove" && !event.buttons)) return;
  const box = event.currentTarget.getBoundingClientRect();
  const { width, height } = shown.header;
  moveProbe(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
}

function step(event) {
  const far = event.shiftKey ? 10 : 1;
  const way = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
  if (event.key === "Escape") forget();
  if (!way || !shown) return;
  event.preventDefault();
  const [x, y] = probe ?? [shown.header.width / 2, shown.header.height / 2];
  moveProbe(x + way[0], y + way[1]);
  $("said").textContent = $("metres").textContent;
}

// ---------------------------------------------------------------- files

function bytesOf(text) {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

// PNG, third edition: 16-bit greyscale, no filter.
async function png16({ depth, header: { width, height } }) {
  const rows = new DataView(new ArrayBuffer(height * (1 + 2 * width)));
  for (let i = 0, at = 0, y = 0; y < height; y++) {
    at++; // filter type 0
    for (let x = 0; x < width; x++, i++, at += 2) rows.setUint16(at, depth[i]);
  }
  const size = new DataView(new ArrayBuffer(13));
  size.setUint32(0, width);
  size.setUint32(4, height);
  size.setUint8(8, 16);
  const pixels = await piped(rows.buffer, new CompressionStream("deflate"));
  const chunks = [["IHDR", new Uint8Array(size.buffer)], ["IDAT", pixels], ["IEND", new Uint8Array(0)]];
  return new Blob([bytesOf("\x89PNG\r\n\x1a\n"), ...chunks.flatMap(chunk)], { type: "image/png" });
}

function chunk([name, data]) {
  const body = new Uint8Array(4 + data.length);
  body.set(bytesOf(name));
  body.set(data, 4);
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, data.length);
  let crc = -1;
  for (const byte of body) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  const check = new DataView(new ArrayBuffer(4));
  check.setUint32(0, ~crc);
  return [length, body, check];
}

// NPY format 1.0: the values begin at a multiple of 64.
function npy({ depth, header: { width, height } }) {
  let text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${height}, ${width}), }`;
  text += " ".repeat(63 - ((10 + text.length) % 64)) + "\n";
  const metres = new DataView(new ArrayBuffer(4 * depth.length));
  depth.forEach((mm, i) => metres.setFloat32(4 * i, mm / 1000, true));
  const length = String.fromCharCode(text.length & 255, text.length >> 8);
  return new Blob([bytesOf("\x93NUMPY\x01\x00" + length + text), metres]);
}

function save(blob, suffix, number) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `mde-${String(number).padStart(6, "0")}${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---------------------------------------------------------------- figures

const past = { age: [], rate: [], heat: [] };
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
let lastAge = null;
let drawnHz = null;
let since = performance.now();

function secondPassed() {
  const now = performance.now();
  drawnHz = (1000 * drawn) / (now - since);
  lastAge = ages.length ? median(ages) : null;
  [drawn, ages, since] = [0, [], now];
  ping();
  const zones = Object.entries(status?.temperatures ?? {});
  const hottest = zones.reduce((best, zone) => (zone[1] > best[1] ? zone : best), ["", -Infinity]);
  const values = { age: lastAge, rate: status?.rate_hz ?? null, heat: zones.length ? hottest[1] : null };
  for (const [name, value] of Object.entries(values)) past[name] = [...past[name], value].slice(-HISTORY);
  const slack = clock().trip / 2;
  $("age-now").textContent = lastAge === null ? "–" : `${lastAge.toFixed(0)} ± ${Math.max(1, Math.ceil(slack))} ms`;
  $("rate-now").textContent = values.rate === null ? "–" : `${values.rate.toFixed(1)} Hz, ${drawnHz.toFixed(1)} drawn here`;
  $("heat-now").textContent = zones.length ? `${hottest[1].toFixed(0)} °C (${hottest[0]})` : status ? "no sensor" : "–";
  plot("age", 0, 50);
  plot("rate", 0, 10);
  plot("heat", 20, 60);
  tell();
}

// The line of a figure over the last two minutes; the axis holds at least `low` to `high`.
function plot(name, low, high) {
  const canvas = $(`${name}-chart`);
  const box = canvas.getBoundingClientRect();
  const scale = devicePixelRatio;
  const [width, height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const style = getComputedStyle(document.documentElement);
  const colour = (variable) => style.getPropertyValue(variable);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, box.width, box.height);
  const values = past[name].filter((value) => value !== null);
  const bottom = Math.min(low, ...values.map((value) => 10 * Math.floor(value / 10)));
  const step = niceStep((Math.max(high, ...values) - bottom) / 2);
  const top = bottom + 2 * step;
  const [left, right, upper, lower] = [34, box.width - 4, 8, box.height - 18];
  const x = (second) => right - ((right - left) * second) / (HISTORY - 1);
  const y = (value) => lower - ((lower - upper) * (value - bottom)) / (top - bottom);
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = colour("--soft");
  pen.strokeStyle = colour("--line");
  pen.lineWidth = 1;
  pen.textAlign = "right";
  for (let k = 0; k <= 2; k++) {
    const level = bottom + k * step;
    pen.beginPath();
    pen.moveTo(left, Math.round(y(level)) + 0.5);
    pen.lineTo(right, Math.round(y(level)) + 0.5);
    pen.stroke();
    pen.fillText(`${+level.toFixed(1)}`, left - 6, y(level) + 4);
  }
  pen.fillText("now", right, box.height - 3);
  pen.textAlign = "left";
  pen.fillText("2 min ago", left, box.height - 3);
  pen.strokeStyle = colour({ age: "--s0", rate: "--s2", heat: "--s1" }[name]);
  pen.lineWidth = 2;
  pen.lineJoin = pen.lineCap = "round";
  pen.beginPath();
  let begun = false;
  past[name].forEach((value, k, all) => {
    if (value !== null) {
      const at = [x(all.length - 1 - k), y(value)];
      if (!begun) pen.moveTo(...at);
      pen.lineTo(...at);
    }
    begun = value !== null;
  });
  pen.stroke();
  canvas.setAttribute("aria-label", `${canvas.parentNode.querySelector("figcaption").textContent}, over two minutes`);
}

// What goes on, in words.
function tell() {
  const said = $("state");
  const stalled = status && status.silent_s > STALLED_S;
  let words = "Live";
  if (!socket) words = lost;
  else if (!status) words = "Connecting …";
  else if (stalled) words = "Stalled";
  else if (frozen) words = "Frozen";
  else if (!shown) words = "Waiting for a frame";
  if (said.textContent !== words) said.textContent = words;
  said.className = !socket || stalled ? "lost" : words === "Live" ? "live" : "";
  document.body.classList.toggle("lost-it", Boolean(!socket || stalled));
  $("retry").hidden = Boolean(socket);
  // What changes by itself is not in the part that screen readers announce.
  const parts = [];
  if (!socket) parts.push(`trying again in ${Math.max(0, Math.ceil((retryAt - performance.now()) / 1000))} s`);
  if (stalled) parts.push(`no new frame for ${status.silent_s.toFixed(0)} s`);
  if (shown && (frozen || !socket)) parts.push(`frame ${shown.header.number}`);
  if (frozen && shown.age_ms !== null) parts.push(`${shown.age_ms.toFixed(0)} ms old when drawn`);
  else if (lastAge !== null && socket && !stalled) parts.push(`${lastAge.toFixed(0)} ms old`);
  if (status && status.rate_hz !== null) parts.push(`${status.rate_hz.toFixed(1)} Hz`);
  if (status && status.latency_ms !== null && !narrow.matches) parts.push(`latency ${status.latency_ms.toFixed(0)} ms`);
  if (status && !narrow.matches) parts.push(`${status.dropped} dropped`);
  $("figures").textContent = parts.join(" · ");
}

// ---------------------------------------------------------------- controls

$("freeze").onclick = () => {
  frozen = !frozen;
  $("freeze").setAttribute("aria-pressed", frozen);
  ask();
  tell();
};
$("save-png").onclick = async () => { const frame = shown; save(await png16(frame), ".depth.png", frame.header.number); };
$("save-npy").onclick = () => save(npy(shown), ".depth.npy", shown.header.number);
$("save-jpg").onclick = () => save(shown.jpeg, ".jpg", shown.header.number);
$("retry").onclick = connect;
$("reset").onclick = () => hello && reset();
$("near").oninput = () => moveEnd("near");
$("far").oninput = () => moveEnd("far");
$("mix").oninput = () => { mix[view] = +$("mix").value; drawMixed(); };
for (const button of document.querySelectorAll("#view input")) button.onchange = () => look(button.value);
for (const picture of document.querySelectorAll(".picture")) {
  picture.onpointermove = picture.onpointerdown = point;
  picture.onkeydown = step;
}
document.onvisibilitychange = ask;
window.ononline = () => !socket && connect();

look(view);
if (window.DecompressionStream) connect();
else $("state").textContent = "This browser is too old: it needs DecompressionStream (2023).";
setInterval(secondPassed, 1000);
setInterval(() => {
  if (!socket && retryAt && performance.now() > retryAt) connect();
  else if (!socket) tell();
}, 250);
