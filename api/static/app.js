// The review page: a client of the public API like any other. Addresses are relative, so it also works under a prefix.
"use strict";

const POLL_MS = { first: 400, most: 2500 };
const HEALTH_MS = { ready: 30000, else: 3000 };
const FINAL = new Set(["succeeded", "partial", "failed", "canceled", "expired"]);
const STATUS = {
  queued: "Waiting for a worker", preparing: "Fetching the pictures", processing: "Cutting out", succeeded: "Done",
  partial: "Done, but not every cutout worked", failed: "Failed", canceled: "Canceled", expired: "Expired",
};

const $ = (selector, root = document) => root.querySelector(selector);
const chosen = { front: null, back: null }; // files that were dropped or chosen
const originals = { front: null, back: null }; // addresses that show what was sent
let shownJob = null; // only the newest job may draw

// --- the key ----------------------------------------------------------------------------------------------------
// Kept for this tab alone, and sent in a header: an address ends up in histories and logs.
const KEY = "cutout-key";

function call(address, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  return fetch(address, { ...options, headers }).then((reply) => {
    if (reply.status === 401) askForKey();
    return reply;
  });
}

function askForKey() {
  $("#key-open").hidden = $("#key-form").hidden = false;
  $("#key").focus();
}

$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  // Only what a header can hold; anything else is no key.
  const key = $("#key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) return;
  sessionStorage.setItem(KEY, key);
  $("#key").value = "";
  $("#key-form").hidden = true;
  $("#key-open").hidden = false;
  showProblem("");
  showKeptJob();
});
$("#key-forget").addEventListener("click", () => { sessionStorage.removeItem(KEY); $("#key").focus(); });
$("#key-open").addEventListener("click", askForKey);
$("#key-open").hidden = !sessionStorage.getItem(KEY);

// --- the service's health ---------------------------------------------------------------------------------------
async function showHealth() {
  let state = "bad", text = "The service does not answer";
  try {
    const health = await (await call("health", { cache: "no-store" })).json();
    const models = Object.entries(health.models);
    showModels(models.map(([name]) => name));
    if (health.status === "ready") {
      const devices = [...new Set(models.map(([, model]) => model.device).filter(Boolean))].join(", ");
      const starter = models.some(([, model]) => model.profile === "starter");
      [state, text] = ["ready", `Ready${devices && ` on ${devices}`}${starter ? ", with starter weights" : ""}`];
    } else if (health.redis.status !== "ready") {
      text = "Redis does not answer";
    } else {
      const failed = models.filter(([, model]) => model.status === "failed");
      const waiting = models.filter(([, model]) => model.status !== "ready");
      [state, text] = failed.length
        ? ["bad", failed.map(([name, model]) => `${name} failed: ${model.error || "see the worker's log"}`).join("; ")]
        : ["busy", `Not ready yet: ${waiting.map(([name, model]) => `${name} is ${model.status}`).join(", ") || "no worker is ready"}`];
    }
  } catch { /* told by the first value of text */ }
  $("#health").dataset.state = state;
  if ($("#health-text").textContent !== text) $("#health-text").textContent = text;
  setTimeout(showHealth, state === "ready" ? HEALTH_MS.ready : HEALTH_MS.else);
}

function showModels(names) {
  const place = $("#models");
  if (place.childElementCount || names.length < 2) return;
  for (const name of names) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: true, value: name });
    label.append(box, name);
    place.append(label);
  }
}

// --- choosing pictures ------------------------------------------------------------------------------------------
function choose(side, file) {
  const fieldset = $(`[data-side="${side}"]`), image = $("img", fieldset), hint = $(".hint", fieldset);
  if (image.src) URL.revokeObjectURL(image.src);
  chosen[side] = file;
  image.hidden = !file;
  $(".clear", fieldset).hidden = !file;
  if (file) {
    image.src = URL.createObjectURL(file);
    image.alt = `${side}: ${file.name}`;
    $("input[type=url]", fieldset).value = "";
  } else {
    image.removeAttribute("src");
    $("input[type=file]", fieldset).value = "";
  }
  hint.hidden = Boolean(file);
}

function prepareSide(fieldset) {
  const side = fieldset.dataset.side, drop = $(".drop", fieldset), input = $("input[type=file]", fieldset);
  const image = $("img", fieldset), hint = $(".hint", fieldset);
  input.addEventListener("change", () => choose(side, input.files[0] || null));
  $("input[type=url]", fieldset).addEventListener("input", (event) => {
    if (event.target.value && chosen[side]) choose(side, null);
  });
  $(".clear", fieldset).addEventListener("click", () => { choose(side, null); input.focus(); });
  // Not every picture that the service reads can be shown by the browser (TIFF, CMYK, ...).
  image.addEventListener("error", () => {
    if (!chosen[side]) return;
    image.hidden = true;
    hint.hidden = false;
    $("strong", hint).textContent = chosen[side].name;
  });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    // Two files dropped on the front are front and back.
    if (side === "front" && files.length > 1) choose("back", files[1]);
    if (files.length) choose(side, files[0]);
  });
}

// --- sending ----------------------------------------------------------------------------------------------------
async function send(event) {
  event.preventDefault();
  showProblem("");
  const form = new FormData();
  form.set("id", $("#design-id").value.trim());
  for (const side of ["front", "back"]) {
    const address = $(`#${side}-url`).value.trim();
    if (chosen[side]) form.set(side, chosen[side], chosen[side].name || side);
    else if (address) form.set(side, address);
    // An address of its own: the form lets go of its one when another file is chosen.
    if (originals[side]) URL.revokeObjectURL(originals[side]);
    originals[side] = chosen[side] ? URL.createObjectURL(chosen[side]) : null;
  }
  if (!form.has("front") && !form.has("back")) {
    showProblem("Choose a picture for the front, the back or both.");
    return;
  }
  const boxes = [...document.querySelectorAll("#models input")];
  if (boxes.some((box) => !box.checked)) {
    form.set("options", JSON.stringify({ models: boxes.filter((box) => box.checked).map((box) => box.value) }));
  }
  $("#submit").disabled = true;
  try {
    const reply = await call("process", { method: "POST", body: form, headers: { Prefer: "respond-async" } });
    const body = await reply.json();
    if (!reply.ok) throw new Error(`${body.detail}\n${body.code}, request ${body.request_id}`);
    history.replaceState(null, "", `#job=${body.job_id}`);
    follow(body, true);
  } catch (error) {
    showProblem(error instanceof TypeError ? "The service does not answer. Nothing was sent." : error.message);
    $("#submit").disabled = false;
  }
}

function showProblem(text) {
  $("#problem").textContent = text;
  $("#problem").hidden = !text;
}

// --- following a job --------------------------------------------------------------------------------------------
async function follow(job, hasFocus) {
  shownJob = job.job_id;
  $("#rows").replaceChildren();
  $("#results").hidden = false;
  showJob(job);
  if (hasFocus) $("#results").focus();
  let pause = POLL_MS.first;
  while (!FINAL.has(job.status)) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 1.3, POLL_MS.most);
    if (shownJob !== job.job_id) return;
    try {
      const reply = await call(`jobs/${job.job_id}`, { cache: "no-store" });
      const body = await reply.json();
      if (shownJob !== job.job_id) return;
      if ([401, 404].includes(reply.status)) { showProblem(body.detail); break; }
      if (reply.status === 429) pause = 1000 * Number(reply.headers.get("Retry-After"));
      if (reply.ok) { job = body; showJob(job); }
    } catch { $("#status").textContent = "The service does not answer; still asking …"; }
  }
  $("#submit").disabled = false;
}

function showJob(job) {
  const place = job.queue_position ? `, place ${job.queue_position}` : "";
  const seconds = job.result ? `, ${job.result.processing_time_seconds.toFixed(1)} s` : "";
  const { done, total } = job.progress;
  $("#status").textContent = `${STATUS[job.status]}${place} (${done} of ${total}${seconds})`;
  Object.assign($("#progress"), { value: done, max: total, hidden: FINAL.has(job.status) });
  for (const [name, cell] of Object.entries(job.cells)) showCell(name, cell, job);
  for (const [side, report] of Object.entries(job.extraction)) showExtraction(side, report);
  for (const [side, opinion] of Object.entries(job.result?.sides ?? {})) showOpinion(side, opinion);
  if (job.error) showProblem(`${job.error.detail}\n${job.error.code}, job ${job.job_id}`);
}

function rowFor(side) {
  const found = $(`.row[data-side="${side}"]`, $("#rows"));
  if (found) return found;
  const row = $("#row").content.cloneNode(true).firstElementChild;
  row.dataset.side = side;
  $("h3", row).textContent = side;
  $("#rows").append(row);
  if (originals[side]) showOriginal(row, side, originals[side]);
  return row;
}

function showOriginal(row, side, address) {
  $('[data-cell="original"]', row)?.remove();
  const cell = addCell(row, "original", "original");
  $(".cells", row).prepend(cell);
  $(".wait", cell).remove();
  $(".download", cell).remove();
  Object.assign($("img", cell), { src: address, alt: `${side}, original` });
  $("img", cell).addEventListener("error", () => cell.remove());
  $(".picture", cell).href = address;
  return cell;
}

// The cutouts show what Gemini has drawn; what it was drawn from stands beside them.
function showExtraction(side, report) {
  const row = rowFor(side);
  if (!report.original_url || row.dataset.extracted) return;
  row.dataset.extracted = "shown";
  const cell = showOriginal(row, side, localAddress(report.original_url));
  $(".facts", cell).textContent = `design extracted by ${report.model}, score ${report.score.toFixed(2)}`;
}

function addCell(row, name, title) {
  const cell = $("#cell").content.cloneNode(true).firstElementChild;
  cell.dataset.cell = name;
  $("strong", cell).textContent = title;
  $(".cells", row).append(cell);
  return cell;
}

function showCell(name, record, job) {
  const [side, model] = [name.slice(0, name.indexOf("_")), name.slice(name.indexOf("_") + 1)];
  const row = rowFor(side);
  const cell = $(`[data-cell="${name}"]`, row) || addCell(row, name, model);
  const status = FINAL.has(job.status) && !["succeeded", "failed"].includes(record.status) ? "failed" : record.status;
  if (cell.dataset.status === status) return;
  cell.dataset.status = status;
  const picture = $(".picture", cell), facts = $(".facts", cell), download = $(".download", cell);
  picture.hidden = download.hidden = status !== "succeeded";
  facts.textContent = status === "succeeded" ? "" : status;
  if (status === "succeeded") {
    $(".wait", cell)?.remove();
    const address = localAddress(record.url);
    Object.assign($("img", cell), { src: address, alt: `${side} cut out by ${model}` });
    picture.href = download.href = address;
    download.setAttribute("aria-label", `Download ${side} by ${model} as PNG`);
    facts.textContent = [
      record.width && `${record.width} × ${record.height}`,
      record.bytes && (record.bytes < 1e6 ? `${Math.ceil(record.bytes / 1e3)} kB` : `${(record.bytes / 1e6).toFixed(1)} MB`),
      record.seconds !== null && `${record.seconds.toFixed(1)} s`,
      record.own_alpha && "its own alpha, no model was run",
    ].filter(Boolean).join(" · ");
    showPreflight(cell, record.preflight);
  } else if (status === "failed") {
    const failed = document.createElement("p");
    failed.className = "failed";
    const error = record.error || job.error;
    failed.textContent = error ? `${error.detail} (${error.code})` : "No cutout";
    $(".wait", cell)?.replaceWith(failed);
  }
}

// What a printer would check: the worst level first, every sentence on demand.
function showPreflight(cell, preflight) {
  const place = $(".preflight", cell);
  if (!place) return;
  place.hidden = !preflight;
  if (!preflight) return;
  const wrong = preflight.checks.filter((check) => check.level !== "ok").length;
  place.dataset.level = preflight.level;
  $("summary", place).textContent = wrong ? `Print check: ${wrong} to look at` : "Print check: all good";
  $("ul", place).replaceChildren(...preflight.checks.map((check) => {
    const item = document.createElement("li");
    item.dataset.level = check.level;
    item.textContent = check.message;
    return item;
  }));
}

function showOpinion(side, opinion) {
  const row = rowFor(side), place = $(".opinion", row);
  const agreement = opinion.agreement == null ? "" : `The models agree on ${(100 * opinion.agreement).toFixed(1)} %. `;
  const review = opinion.needs_review ? `Please look: ${opinion.review_reason} ` : "";
  place.textContent = `${agreement}${review}${opinion.recommended ? `Recommended: ${opinion.recommended}. ${opinion.reason}` : ""}`;
  place.dataset.review = opinion.needs_review;
  place.hidden = !place.textContent;
  for (const cell of row.querySelectorAll(".cell")) {
    cell.classList.toggle("recommended", cell.dataset.cell === `${side}_${opinion.recommended}`);
  }
}

// The service's own files are fetched from where this page came from, whatever BASE_URL says: a download link works
// only on the same origin, and so does the page's content policy.
function localAddress(url) {
  const { pathname, search } = new URL(url, location.href); // the search is a signed address's signature
  return `outputs/${pathname.split("/").pop()}${search}`;
}

// --- backgrounds ------------------------------------------------------------------------------------------------
function setGround(value) {
  $("#rows").dataset.ground = value;
  $(`#grounds input[value="${value}"]`).checked = true;
}

$("#grounds").addEventListener("change", (event) => {
  if (event.target.name === "ground") setGround(event.target.value);
});
$("#colour").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--colour", event.target.value);
  setGround("colour");
});

document.querySelectorAll("fieldset.side").forEach(prepareSide);
// A picture dropped beside its place must not replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
$("#form").addEventListener("submit", send);
showHealth();

// A job in the address is shown again after a reload.
function showKeptJob() {
  const kept = /^#job=([A-Za-z0-9-]{1,64})$/.exec(location.hash);
  if (!kept) return;
  call(`jobs/${kept[1]}`, { cache: "no-store" })
    .then(async (reply) => { if (reply.ok) follow(await reply.json(), false); })
    .catch(() => {});
}
showKeptJob();
