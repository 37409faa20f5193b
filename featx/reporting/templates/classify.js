const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function say(text, bad = false) {
  at("state").textContent = text;
  at("state").classList.toggle("bad", bad);
}

// Bytes of a part: from the page itself, compressed and as base64, or from a file beside it.
async function part(name) {
  const element = at(name);
  if (!element) {
    const answer = await fetch(data.files[name]);
    if (!answer.ok) throw new Error(`${data.files[name]} is not beside this page (${answer.status}).`);
    return new Uint8Array(await answer.arrayBuffer());
  }
  const text = element.textContent;
  element.remove();
  const packed = new Uint8Array(Math.floor((text.length * 3) / 4) - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0));
  const step = 1 << 20;
  for (let start = 0, end = 0; start < text.length; start += step) {
    const bytes = atob(text.slice(start, start + step));
    for (let i = 0; i < bytes.length; i++) packed[end++] = bytes.charCodeAt(i);
  }
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Pixels as the model takes them: RGB in reading order, upright, transparent ones over white.
async function pixelsOf(blob) {
  if (!blob.size) throw new Error("This file is empty.");
  if (blob.type === "image/svg+xml") throw new Error("SVG is a drawing; this model takes photos: JPEG, PNG, WebP or GIF.");
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`This browser cannot read ${blob.name ? `“${blob.name}”` : "this"} as an image. JPEG, PNG, WebP and GIF work everywhere.`);
  }
  return fromSource(bitmap, bitmap.width, bitmap.height);
}

function fromSource(source, width, height) {
  if (width * height > data.max_pixels) throw new Error(`The image has ${(width * height / 1e6).toFixed(0)} million pixels; at most ${data.max_pixels / 1e6} million fit.`);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  source.close?.();
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    const alpha = rgba[i + 3], white = 255 * (255 - alpha);
    for (let c = 0; c < 3; c++) rgb[j++] = alpha === 255 ? rgba[i + c] : Math.round((rgba[i + c] * alpha + white) / 255);
  }
  return { rgb, width, height };
}

let session;

async function run({ rgb, width, height }) {
  const image = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  const outputs = await session.run({ image });
  const values = Array.from(outputs[data.output].data, Number);
  for (const each of Object.values(outputs)) each.dispose?.();
  if (data.output !== "logits") return values;
  if (data.task === "multi-label") return values.map((value) => 1 / (1 + Math.exp(-value)));
  const top = Math.max(...values), parts = values.map((value) => Math.exp(value - top));
  const sum = parts.reduce((a, b) => a + b, 0);
  return parts.map((value) => value / sum);
}

function show(values) {
  const order = values.map((_, i) => i);
  const numbers = data.task === "regression", tags = data.task === "multi-label";
  if (!numbers) order.sort((a, b) => values[b] - values[a]);
  at("results").replaceChildren(...order.slice(0, numbers ? 50 : tags ? 12 : 5).map((i, place) => {
    const bar = document.createElement("div"), name = document.createElement("b"), text = document.createElement("span");
    const chosen = tags ? values[i] >= data.thresholds[i] : place === 0;
    bar.className = `bar ${numbers ? "" : chosen ? "yes" : "no"}`;
    name.textContent = data.classes[i];
    name.dir = "auto";
    text.textContent = numbers ? Number(values[i].toPrecision(4)) : percent(values[i]);
    bar.append(name, text);
    if (!numbers) {
      const track = document.createElement("i"), filled = document.createElement("u");
      filled.style.width = `${100 * values[i]}%`;
      track.append(filled);
      if (tags) {
        const mark = document.createElement("s");
        mark.style.left = `${100 * data.thresholds[i]}%`;
        mark.title = `given from ${percent(data.thresholds[i])} on`;
        track.append(mark);
      }
      bar.append(track);
    }
    return bar;
  }));
}

// One image at a time; of those that come meanwhile, the last one.
let busy = false, waiting = null;

async function classify(blob) {
  if (!session || busy) {
    waiting = blob;
    return;
  }
  busy = true;
  stopCamera();
  const before = at("picture").src;
  at("picture").src = URL.createObjectURL(blob);
  at("picture").hidden = false;
  at("hint").hidden = true;
  if (before) URL.revokeObjectURL(before);
  say("…");
  try {
    const start = performance.now();
    show(await run(await pixelsOf(blob)));
    say(`${Math.round(performance.now() - start)} ms`);
  } catch (error) {
    at("results").replaceChildren();
    at("picture").hidden = true;
    at("hint").hidden = false;
    say(error.message, true);
  }
  await next();
}

async function next() {
  busy = false;
  const blob = waiting;
  waiting = null;
  if (blob) await classify(blob);
}

let camera = null, asking = false;

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  at("video").hidden = true;
  at("video").srcObject = null;
  at("hint").hidden = !at("picture").hidden;
  at("camera").textContent = "Use the camera";
}

async function startCamera() {
  const video = at("video");
  let own = null;
  asking = true;
  try {
    own = camera = video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
  } catch (error) {
    if (own && camera !== own) return; // stopped meanwhile
    stopCamera();
    say(`The camera cannot be used: ${error.message}`, true);
    return;
  } finally {
    asking = false;
  }
  if (camera !== own) return;
  if (document.hidden) return stopCamera();
  video.hidden = false;
  at("picture").hidden = at("hint").hidden = true;
  at("camera").textContent = "Stop the camera";
  while (camera === own) {
    if (session && !busy && video.videoWidth) {
      busy = true;
      try {
        const start = performance.now();
        show(await run(fromSource(video, video.videoWidth, video.videoHeight)));
        say(`${Math.round(performance.now() - start)} ms an image`);
      } catch (error) {
        say(error.message, true);
      }
      await next();
    }
    await new Promise((done) => setTimeout(done, 150));
  }
}

at("file").addEventListener("change", (event) => event.target.files[0] && classify(event.target.files[0]));
at("camera").hidden = !navigator.mediaDevices?.getUserMedia;
at("camera").addEventListener("click", () => asking || (camera ? stopCamera() : startCamera()));
document.addEventListener("visibilitychange", () => document.hidden && stopCamera());
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) classify(file);
  else say("There is no image in what was pasted.", true);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) classify(event.dataTransfer.files[0]);
  else say("There is no image in what was dropped.", true);
});

try {
  if (location.protocol === "file:" && !at("model")) throw new Error("A folder page has to be served, for instance by “python -m http.server”; a page that opens from disk is made with --single-file.");
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = (await part("wasm")).buffer;
  session = await ort.InferenceSession.create(await part("model"), { executionProviders: ["wasm"] });
  ort.env.wasm.wasmBinary = undefined;
  say("Ready.");
  await next();
} catch (error) {
  say(`The model cannot be run here. ${error.message}`, true);
}

// For a program that embeds the page: probabilities, or values, of a Blob in the order of the classes.
globalThis.featx = { classes: data.classes, predict: async (blob) => run(await pixelsOf(blob)) };
