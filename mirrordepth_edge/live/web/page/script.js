"use strict";

const ANSWER_TIMEOUT_MS = 5000; // time without an answer after which the server counts as gone
const STALLED_S = 2;
const HISTORY_S = 120; // length of the charts
const MAX_PINGS = 10; // the clock offset comes from the fastest of these
const MAX_MM = 65535;
const GREY = 128;

const $ = (id) => document.getElementById(id);
const canvases = { photo: $("photo"), depth: $("depth"), mixed: $("mixed") };
const narrow = matchMedia("(max-width: 30rem)");

let greeting = null; // setup, limits_m, colours
let limits = { near: 0, far: 1 };
const palette = new Uint32Array(MAX_MM + 1); // RGBA for each depth in millimetres
let shown = null; // the frame on the page: header, photo, jpeg, depth (Uint16Array, mm), age_ms
let frozen = false;
let view = narrow.matches ? "wipe" : "sides";
const mix = { sides: 50, overlay: 50, wipe: 50 };
let probe = null; // [x, y] in pixels of the frame

// The token is in a cookie now, so remove it from the address and the browser history.
if (location.search) history.replaceState(null, "", location.pathname);

// ---------------------------------------------------------------- connection

let socket = null;
let requested = 0; // packets in flight
let failures = 0;
let retryAt = 0; // performance.now() of the next attempt
let closeReason = "";
let pingAt = null; // performance.now() of the ping in flight
let pings = []; // { roundTrip, offset }, ms; offset = server clock - browser clock
let status = null;
let queue = Promise.resolve();

function connect() {
  retryAt = 0;
  const current = new WebSocket(location.href.replace(/^http/, "ws").replace(/[?#].*/, "") + "frames");
  socket = current;
  pingAt = null;
  current.binaryType = "arraybuffer";
  pings = [];
  requested = 0;
  current.onmessage = ({ data }) => {
    if (current !== socket) return;
    if (typeof data !== "string")
      queue = queue.then(() => current === socket && receive(data)).catch(console.error).then(() => {
        if (current !== socket) return;
        requested--;
        requestFrames();
      });
    else if (pingAt === null) onGreeting(JSON.parse(data));
    else onPong(JSON.parse(data));
  };
  current.onclose = (event) => current === socket && disconnected(event.code === 1013 ? event.reason : "");
  // Otherwise a connection that never opens would take minutes to fail.
  setTimeout(() => current === socket && current.readyState === WebSocket.CONNECTING && disconnected(""), ANSWER_TIMEOUT_MS);
}

async function disconnected(reason) {
  const closed = socket;
  socket = null;
  closed.close();
  pingAt = null;
  status = null;
  closeReason = reason || "The device does not answer";
  const wait = Math.min(10, 0.5 * 2 ** failures++) * (0.75 + Math.random() / 2);
  retryAt = performance.now() + 1000 * wait;
  showStatus();
  if (reason) return;
  try {
    const answer = await fetch("healthz", { signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
    if (answer.status === 401 || answer.status === 421) closeReason = (await answer.text()).trim();
  } catch { /* closeReason is correct already */ }
}

function onGreeting(message) {
  const isFirst = greeting === null;
  greeting = message;
  failures = 0;
  closeReason = "";
  const { source, model, backend, device, precision } = greeting.setup;
  $("setup").textContent = `${model} · ${[backend, precision, device].filter(Boolean).join(" ")} · ${source}`;
  document.title = `Live depth: ${source}`;
  if (isFirst) reset();
  else recolour();
  ping();
  requestFrames();
  showStatus();
}

function ping() {
  if (!socket || socket.readyState !== WebSocket.OPEN) return;
  if (pingAt === null) {
    pingAt = performance.now();
    socket.send("ping");
  } else if (performance.now() - pingAt > ANSWER_TIMEOUT_MS) disconnected("");
}

function onPong(answer) {
  const now = performance.now();
  const roundTrip = now - pingAt;
  pings = [...pings, { roundTrip, offset: answer.now_ms - now + roundTrip / 2 }].slice(-MAX_PINGS);
  pingAt = null;
  status = answer;
  if (pings.length < 5) ping();
}

const clock = () => pings.reduce((best, ping) => (ping.roundTrip < best.roundTrip ? ping : best), { roundTrip: Infinity });

// A second packet in flight helps if the network takes longer than drawing; otherwise it would only wait here and age.
function requestFrames() {
  if (frozen || document.hidden || socket?.readyState !== WebSocket.OPEN) return;
  for (const limit = processingMs < clock().roundTrip ? 2 : 1; requested < limit; requested++) socket.send("next");
}

// ---------------------------------------------------------------- packets

let processingMs = 0; // smoothed time to decode and draw a packet

async function receive(data) {
  if (frozen || document.hidden) return;
  const start = performance.now();
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const jpeg = new Blob([new Uint8Array(data, 4 + length, header.jpeg_bytes)], { type: "image/jpeg" });
  const [photo, depth] = await Promise.all([
    createImageBitmap(jpeg),
    decodeDepth(new Uint8Array(data, 4 + length + header.jpeg_bytes), header),
  ]);
  if (frozen) photo.close();
  else showFrame({ header, photo, jpeg, depth });
  processingMs += (performance.now() - start - processingMs) / 5;
}

async function transformBytes(bytes, transform) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(transform)).arrayBuffer());
}

// The inverse of packets.encode_depth.
async function decodeDepth(bytes, { width, height }) {
  const planes = await transformBytes(bytes, new DecompressionStream("deflate"));
  const size = width * height;
  const depth = new Uint16Array(size);
  for (let i = 0, y = 0; y < height; y++)
    for (let x = 0, sum = 0; x < width; x++, i++) {
      const unsigned = (planes[i] << 8) | planes[size + i];
      sum += (unsigned >>> 1) ^ -(unsigned & 1);
      depth[i] = sum + (y ? depth[i - width] : 0);
    }
  return depth;
}

// ---------------------------------------------------------------- images

let ages = []; // ms, of the frames drawn in the last second
let drawnFrames = 0;

function showFrame(frame) {
  shown?.photo.close();
  shown = frame;
  const { width, height } = frame.header;
  if (canvases.depth.width !== width || canvases.depth.height !== height) {
    for (const canvas of Object.values(canvases)) [canvas.width, canvas.height] = [width, height];
    $("images").style.setProperty("--aspect", width / height);
    clearProbe();
  }
  draw();
  const { offset } = clock();
  frame.age_ms = offset === undefined ? null : performance.now() + offset - frame.header.captured_ms;
  if (frame.age_ms !== null) ages.push(frame.age_ms);
  drawnFrames++;
  for (const id of ["freeze", "save-png", "save-npy", "save-jpg"]) $(id).disabled = false;
}

function draw() {
  if (!shown) return;
  const { photo, depth, header: { width, height } } = shown;
  if (view === "sides") canvases.photo.getContext("2d").drawImage(photo, 0, 0);
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = palette[depth[i]];
  canvases.depth.getContext("2d").putImageData(image, 0, 0);
  drawMixed();
  showReading();
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

function setView(name) {
  view = name;
  document.querySelector(`#view [value=${view}]`).checked = true;
  $("images").classList.toggle("one", view !== "sides");
  for (const id of ["photo", "depth"]) canvases[id].closest("figure").hidden = view !== "sides";
  $("mix-name").textContent = view === "wipe" ? "Wipe" : "Overlay";
  $("mix").value = mix[view];
  draw();
}

// ---------------------------------------------------------------- colours

// Rounds to float32 where postprocess.colourise does, to give the same colours.
function recolour() {
  const { near, far } = limits;
  const f = Math.fround;
  const range = f(far - near);
  for (let mm = 0; mm <= MAX_MM; mm++) {
    const nearness = f(f(f(far) - f(mm / 1000)) / range);
    const level = Math.trunc(f(Math.min(Math.max(nearness, 0), 1) * 255));
    const [red, green, blue] = mm ? greeting.colours[level] : [GREY, GREY, GREY];
    palette[mm] = 0xff000000 | (blue << 16) | (green << 8) | red; // byte order of ImageData on little-endian machines
  }
  drawBar();
  draw();
}

function drawBar() {
  const { near, far } = limits;
  const strip = new ImageData($("bar").width, 1);
  const pixels = new Uint32Array(strip.data.buffer);
  for (let x = 0; x < pixels.length; x++)
    pixels[x] = palette[Math.min(Math.max(Math.round(1000 * (near + ((far - near) * (x + 0.5)) / pixels.length)), 1), MAX_MM)];
  $("bar").getContext("2d").putImageData(strip, 0, 0);
  const step = niceStep((far - near) / (narrow.matches ? 4 : 8));
  const multiples = Array.from({ length: Math.ceil(far / step) }, (_, k) => k * step);
  const ticks = [near, ...multiples.filter((metres) => Math.min(metres - near, far - metres) > 0.6 * step), far].map((metres) => {
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
  const [near, far] = greeting.limits_m;
  $("near").max = $("far").max = Math.max(far, 10);
  limits = { near, far };
  recolour();
}

// Moves the other limit along where they would meet.
function setLimit(end) {
  const value = +$(end).value;
  const gap = +$(end).step;
  if (end === "near") limits = { near: Math.min(value, +$("far").max - gap), far: Math.max(limits.far, value + gap) };
  else limits = { near: Math.max(0, Math.min(limits.near, value - gap)), far: Math.max(value, gap) };
  if (greeting) recolour();
}

// ---------------------------------------------------------------- distance of a point

function formatMetres(mm, digits) {
  if (mm === 0) return "no depth";
  return mm === MAX_MM ? "farther than 65.5 m" : `${(mm / 1000).toFixed(digits)} m`;
}

function showReading() {
  for (const marker of document.querySelectorAll(".marker")) marker.hidden = !probe;
  if (!probe || !shown) return;
  const { depth, header: { width, height } } = shown;
  const [x, y] = probe;
  const mm = depth[y * width + x];
  $("metres").textContent = `${formatMetres(mm, 3)} at (${x}, ${y})`;
  for (const marker of document.querySelectorAll(".marker")) {
    marker.style.left = `${(100 * (x + 0.5)) / width}%`;
    marker.style.top = `${(100 * (y + 0.5)) / height}%`;
    marker.classList.toggle("left", x > 0.65 * width);
    marker.dataset.metres = formatMetres(mm, 2);
  }
}

function moveProbe(x, y) {
  if (!shown) return;
  const { width, height } = shown.header;
  const clamp = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
  probe = [clamp(x, width), clamp(y, height)];
  showReading();
}

function clearProbe() {
  probe = null;
  $("metres").textContent = "Point at an image to measure a distance.";
  showReading();
}

function onPointer(event) {
  if (!shown || (event.pointerType !== "mouse" && event.type === "pointermove" && !event.buttons)) return;
  const box = event.currentTarget.getBoundingClientRect();
  const { width, height } = shown.header;
  moveProbe(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
}

function onKey(event) {
  const step = event.shiftKey ? 10 : 1;
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (event.key === "Escape") clearProbe();
  if (!move || !shown) return;
  event.preventDefault();
  const [x, y] = probe ?? [shown.header.width / 2, shown.header.height / 2];
  moveProbe(x + move[0], y + move[1]);
  $("announcement").textContent = $("metres").textContent;
}

// ---------------------------------------------------------------- files

function toBytes(text) {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

// 16-bit greyscale without row filters (PNG specification, third edition).
async function encodePng({ depth, header: { width, height } }) {
  const rows = new DataView(new ArrayBuffer(height * (1 + 2 * width)));
  for (let i = 0, at = 0, y = 0; y < height; y++) {
    at++; // filter type 0
    for (let x = 0; x < width; x++, i++, at += 2) rows.setUint16(at, depth[i]);
  }
  const size = new DataView(new ArrayBuffer(13));
  size.setUint32(0, width);
  size.setUint32(4, height);
  size.setUint8(8, 16);
  const pixels = await transformBytes(rows.buffer, new CompressionStream("deflate"));
  const chunks = [["IHDR", new Uint8Array(size.buffer)], ["IDAT", pixels], ["IEND", new Uint8Array(0)]];
  return new Blob([toBytes("\x89PNG\r\n\x1a\n"), ...chunks.flatMap(chunk)], { type: "image/png" });
}

function chunk([name, data]) {
  const body = new Uint8Array(4 + data.length);
  body.set(toBytes(name));
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

// NPY format 1.0: the header is padded so that the values start at a multiple of 64 bytes.
function encodeNpy({ depth, header: { width, height } }) {
  let text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${height}, ${width}), }`;
  text += " ".repeat(63 - ((10 + text.length) % 64)) + "\n";
  const metres = new DataView(new ArrayBuffer(4 * depth.length));
  depth.forEach((mm, i) => metres.setFloat32(4 * i, mm / 1000, true));
  const length = String.fromCharCode(text.length & 255, text.length >> 8);
  return new Blob([toBytes("\x93NUMPY\x01\x00" + length + text), metres]);
}

function save(blob, suffix, number) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `mde-${String(number).padStart(6, "0")}${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---------------------------------------------------------------- figures

const charts = { age: [], rate: [], temperature: [] };
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
let medianAge = null; // ms, of the last second
let drawnHz = null;
let lastUpdate = performance.now();

function updateFigures() {
  const now = performance.now();
  drawnHz = (1000 * drawnFrames) / (now - lastUpdate);
  medianAge = ages.length ? median(ages) : null;
  [drawnFrames, ages, lastUpdate] = [0, [], now];
  ping();
  const zones = Object.entries(status?.temperatures ?? {});
  const hottest = zones.reduce((best, zone) => (zone[1] > best[1] ? zone : best), ["", -Infinity]);
  const values = { age: medianAge, rate: status?.rate_hz ?? null, temperature: zones.length ? hottest[1] : null };
  for (const [name, value] of Object.entries(values)) charts[name] = [...charts[name], value].slice(-HISTORY_S);
  const uncertainty = clock().roundTrip / 2;
  $("age-now").textContent = medianAge === null ? "–" : `${medianAge.toFixed(0)} ± ${Math.max(1, Math.ceil(uncertainty))} ms`;
  $("rate-now").textContent = values.rate === null ? "–" : `${values.rate.toFixed(1)} Hz, ${drawnHz.toFixed(1)} drawn here`;
  $("temperature-now").textContent = zones.length ? `${hottest[1].toFixed(0)} °C (${hottest[0]})` : status ? "no sensor" : "–";
  plot("age", 0, 50);
  plot("rate", 0, 10);
  plot("temperature", 20, 60);
  showStatus();
}

// Draws the chart of a figure; the axis covers at least `low` to `high`.
function plot(name, low, high) {
  const canvas = $(`${name}-chart`);
  const box = canvas.getBoundingClientRect();
  const scale = devicePixelRatio;
  const [width, height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  const values = charts[name].filter((value) => value !== null);
  const bottom = Math.min(low, ...values.map((value) => 10 * Math.floor(value / 10)));
  const step = niceStep((Math.max(high, ...values) - bottom) / 2);
  const area = { left: 34, right: box.width - 4, upper: 8, lower: box.height - 18 };
  const x = (second) => area.right - ((area.right - area.left) * second) / (HISTORY_S - 1);
  const y = (value) => area.lower - ((area.lower - area.upper) * (value - bottom)) / (2 * step);
  const style = getComputedStyle(document.documentElement);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = style.getPropertyValue("--muted");
  context.strokeStyle = style.getPropertyValue("--line");
  drawAxes(context, area, [bottom, bottom + step, bottom + 2 * step], y);
  context.strokeStyle = style.getPropertyValue({ age: "--s0", rate: "--s2", temperature: "--s1" }[name]);
  drawLine(context, charts[name], x, y);
  canvas.setAttribute("aria-label", `${canvas.parentNode.querySelector("figcaption").textContent}, over two minutes`);
}

function drawAxes(context, { left, right, lower }, levels, y) {
  context.lineWidth = 1;
  context.textAlign = "right";
  for (const level of levels) {
    context.beginPath();
    context.moveTo(left, Math.round(y(level)) + 0.5);
    context.lineTo(right, Math.round(y(level)) + 0.5);
    context.stroke();
    context.fillText(`${+level.toFixed(1)}`, left - 6, y(level) + 4);
  }
  context.fillText("now", right, lower + 15);
  context.textAlign = "left";
  context.fillText("2 min ago", left, lower + 15);
}

function drawLine(context, values, x, y) {
  context.lineWidth = 2;
  context.lineJoin = context.lineCap = "round";
  context.beginPath();
  let connected = false; // a missing value interrupts the line
  values.forEach((value, k) => {
    if (value !== null) {
      const position = [x(values.length - 1 - k), y(value)];
      if (!connected) context.moveTo(...position);
      context.lineTo(...position);
    }
    connected = value !== null;
  });
  context.stroke();
}

// Shows the connection state and the figures as text.
function showStatus() {
  const state = $("state");
  const stalled = status && status.silent_s > STALLED_S;
  let text = "Live";
  if (!socket) text = closeReason;
  else if (!status) text = "Connecting …";
  else if (stalled) text = "Stalled";
  else if (frozen) text = "Frozen";
  else if (!shown) text = "Waiting for a frame";
  if (state.textContent !== text) state.textContent = text;
  state.className = !socket || stalled ? "error" : text === "Live" ? "live" : "";
  document.body.classList.toggle("stale", Boolean(!socket || stalled));
  $("retry").hidden = Boolean(socket);
  // Values that change by themselves are outside the element that screen readers announce.
  const parts = [];
  if (!socket) parts.push(`reconnecting in ${Math.max(0, Math.ceil((retryAt - performance.now()) / 1000))} s`);
  if (stalled) parts.push(`no new frame for ${status.silent_s.toFixed(0)} s`);
  if (shown && (frozen || !socket)) parts.push(`frame ${shown.header.number}`);
  if (frozen && shown.age_ms !== null) parts.push(`${shown.age_ms.toFixed(0)} ms old when drawn`);
  else if (medianAge !== null && socket && !stalled) parts.push(`${medianAge.toFixed(0)} ms old`);
  if (status && status.rate_hz !== null) parts.push(`${status.rate_hz.toFixed(1)} Hz`);
  if (status && status.latency_ms !== null && !narrow.matches) parts.push(`latency ${status.latency_ms.toFixed(0)} ms`);
  if (status && !narrow.matches) parts.push(`${status.dropped} dropped`);
  $("figures").textContent = parts.join(" · ");
}

// ---------------------------------------------------------------- controls

$("freeze").onclick = () => {
  frozen = !frozen;
  $("freeze").setAttribute("aria-pressed", frozen);
  requestFrames();
  showStatus();
};
$("save-png").onclick = async () => { const frame = shown; save(await encodePng(frame), ".depth.png", frame.header.number); };
$("save-npy").onclick = () => save(encodeNpy(shown), ".depth.npy", shown.header.number);
$("save-jpg").onclick = () => save(shown.jpeg, ".jpg", shown.header.number);
$("retry").onclick = connect;
$("reset").onclick = () => greeting && reset();
$("near").oninput = () => setLimit("near");
$("far").oninput = () => setLimit("far");
$("mix").oninput = () => { mix[view] = +$("mix").value; drawMixed(); };
for (const button of document.querySelectorAll("#view input")) button.onchange = () => setView(button.value);
for (const image of document.querySelectorAll(".image")) {
  image.onpointermove = image.onpointerdown = onPointer;
  image.onkeydown = onKey;
}
document.onvisibilitychange = requestFrames;
window.ononline = () => !socket && connect();

setView(view);
if (window.DecompressionStream) connect();
else $("state").textContent = "This browser is too old: it lacks DecompressionStream (2023).";
setInterval(updateFigures, 1000);
setInterval(() => {
  if (!socket && retryAt && performance.now() > retryAt) connect();
  else if (!socket) showStatus();
}, 250);
