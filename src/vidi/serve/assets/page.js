// Images to the server and its answers to the page. What comes from the server or from a file's
// name becomes text, never markup.
const about = JSON.parse(document.getElementById("about").textContent);
const status = document.getElementById("status");
const answers = document.getElementById("answers");
const drop = document.getElementById("drop");
const video = document.getElementById("video");
const live = document.getElementById("live");
// Shown large enough to see, small enough for a telephone's memory.
const SHOWN_PX = 640;
const MOST_SHOWN = 50;

function el(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0.999 && share < 1 ? 2 : 1)}%`;
}

async function ask(blob, heat) {
  const headers = { "Content-Type": blob.type.startsWith("image/") ? blob.type : "application/octet-stream" };
  if (about.token) headers.Authorization = `Bearer ${document.getElementById("token").value}`;
  const response = await fetch(`/predict?top=5${heat ? "&heat=true" : ""}`, { method: "POST", headers, body: blob });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.reason ? `${answer.error} (${answer.reason})` : answer.error);
  return answer;
}

/** The image, and over it where the model looked: the part that it saw, in warm colours. */
function paint(canvas, bitmap, heat, shown) {
  const scale = Math.min(1, SHOWN_PX / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (!heat || !shown) return;
  const rows = heat.rows.length;
  const columns = heat.rows[0].length;
  const map = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  heat.rows.flat().forEach((value, i) => pixels.data.set([255, 160 * (1 - value), 0, 200 * value], 4 * i));
  map.getContext("2d").putImageData(pixels, 0, 0);
  let width = canvas.width * heat.share;
  let height = canvas.height * heat.share;
  if (heat.resize !== "squash") {
    const choose = heat.resize === "pad" ? Math.max : Math.min;
    width = height = choose(canvas.width, canvas.height) * heat.share;
  }
  context.imageSmoothingEnabled = true;
  context.drawImage(map, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}

function rendered(answer, name, bitmap) {
  const item = el("li", "answer");
  const picture = el("div", "picture");
  const canvas = el("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  picture.append(canvas);
  const says = el("div", "says");
  says.append(el("p", "file", name), el("h2", answer.abstained ? "unsure" : "", answer.abstained ? "Not sure" : answer.label));
  const shares = el("ol", "shares");
  for (const each of answer.top) {
    const row = el("li");
    const bar = el("progress");
    bar.max = 1;
    bar.value = each.probability;
    bar.setAttribute("aria-label", each.label);
    row.append(el("span", "name", each.label), el("span", "number", percent(each.probability)), bar);
    shares.append(row);
  }
  says.append(shares);
  let shown = false;
  if (bitmap) paint(canvas, bitmap, answer.heat, shown);
  if (bitmap && answer.heat) {
    const toggle = el("button", "", "Where it looked");
    toggle.type = "button";
    toggle.setAttribute("aria-pressed", "false");
    toggle.addEventListener("click", () => {
      shown = !shown;
      toggle.setAttribute("aria-pressed", String(shown));
      paint(canvas, bitmap, answer.heat, shown);
    });
    says.append(toggle);
  }
  item.append(picture, says);
  return item;
}

async function look(blobs) {
  for (const blob of blobs) {
    const name = blob.name ?? "from the camera";
    status.textContent = `Looking at ${name}`;
    try {
      const answer = await ask(blob, about.heat);
      // Formats that the server reads and the browser does not have no picture here.
      const bitmap = await createImageBitmap(blob).catch(() => null);
      answers.prepend(rendered(answer, name, bitmap));
      status.textContent = "";
    } catch (error) {
      const item = el("li", "answer alone");
      const says = el("div", "says");
      says.append(el("p", "file", name), el("p", "wrong", error.message));
      item.append(says);
      answers.prepend(item);
      status.textContent = "";
    }
    while (answers.children.length > MOST_SHOWN) answers.lastElementChild.remove();
  }
}

document.getElementById("files").addEventListener("change", (event) => {
  look([...event.target.files]);
  event.target.value = "";
});
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  addEventListener(name, () => drop.classList.remove("over"));
}
addEventListener("drop", (event) => { event.preventDefault(); look([...event.dataTransfer.files]); });
addEventListener("paste", (event) => look([...event.clipboardData.files]));

let stream = null;
async function open() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    status.textContent = `There is no camera for this page: ${error.message}`;
    return;
  }
  video.srcObject = stream;
  await video.play();
  live.hidden = false;
}
function close() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  video.srcObject = null;
  live.hidden = true;
}
document.getElementById("camera").addEventListener("click", () => (stream ? close() : open()));
document.getElementById("close").addEventListener("click", close);
document.getElementById("look").addEventListener("click", () => {
  const canvas = el("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => look([blob]), "image/jpeg", 0.92);
});
document.documentElement.dataset.ready = "true";
