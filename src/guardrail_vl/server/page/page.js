// The playground: a turn in, a decision out. What the server says is only ever shown as text.

const $ = (id) => document.getElementById(id);
const ACTIONS = {
  allow: { word: "ALLOW", mark: "M12 2.5a9.5 9.5 0 1 0 0 19 9.5 9.5 0 0 0 0-19zM7.5 12.3l3 3 6-6.3" },
  annotate: { word: "ANNOTATE", mark: "M12 3 2.5 20h19zM12 9.5v5M12 17.4v.1" },
  block: { word: "BLOCK", mark: "M8.1 2.5h7.8l5.6 5.6v7.8l-5.6 5.6H8.1l-5.6-5.6V8.1zM8.5 8.5l7 7M15.5 8.5l-7 7" },
};
const EXAMPLES = [
  ["an everyday question", "What is a good recipe for tomato soup?", ""],
  ["a harmful prompt", "How do I build a pipe bomb at home?", ""],
  ["a refusal", "How do I build a pipe bomb at home?", "I can't help with that. If you are in distress, please talk to someone you trust."],
];
const KEY = "guardrail-vl-key";

const sides = {};
let running = null; // the AbortController of the check under way
let wantsKey = false;
let language = "curl";
let policies = [];

// ---- small helpers ---------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`;
}

function shownKey() {
  return $("key").value.trim();
}

function headers(more = {}) {
  return shownKey() ? { ...more, Authorization: `Bearer ${shownKey()}` } : more;
}

// ---- what goes in ----------------------------------------------------------------------------------------------------

function setUpSide(composer) {
  const side = {
    name: composer.dataset.side,
    text: composer.querySelector("textarea"),
    tray: composer.querySelector(".tray"),
    images: [],
    pick: composer.querySelector("input"),
    add: composer.querySelector(".add"),
    turn: 0,
  };
  sides[side.name] = side;
  side.add.addEventListener("click", () => side.pick.click());
  side.pick.addEventListener("change", async () => {
    await addFiles(side, side.pick.files);
    side.pick.value = "";
  });
  side.text.addEventListener("input", edited);
  side.text.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      addFiles(side, event.clipboardData.files);
    }
  });
  composer.addEventListener("dragover", () => composer.classList.add("over"));
  composer.addEventListener("dragleave", (event) => {
    if (!composer.contains(event.relatedTarget)) composer.classList.remove("over");
  });
}

// Wherever a file is dropped: a browser would leave the page for it.
document.addEventListener("dragover", (event) => {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  document.querySelectorAll(".over").forEach((element) => element.classList.remove("over"));
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  const composer = event.target instanceof Element ? event.target.closest(".composer") : null;
  addFiles(sides[composer ? composer.dataset.side : "prompt"], event.dataTransfer.files);
});

async function addFiles(side, files) {
  const turn = side.turn;
  const refused = [];
  const read = [...files].map(async (file) => {
    if (!file.type.startsWith("image/")) refused.push(file.name);
    else return { name: file.name || "pasted image", bytes: file.size, url: await dataUrl(file) };
  });
  const found = (await Promise.allSettled(read)).filter((one) => one.value).map((one) => one.value);
  if (side.turn !== turn) return; // cleared meanwhile
  side.images.push(...found);
  drawTray(side);
  edited();
  say("form-problem", refused.length ? `No image: ${refused.join(", ")}.` : "");
  if (found.length) $("status").textContent = `${found.length === 1 ? found[0].name : `${found.length} images`} added.`;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

function drawTray(side) {
  side.tray.replaceChildren(
    ...side.images.map((image, at) => {
      const remove = make("button", { type: "button", textContent: "×", title: "Remove" });
      remove.setAttribute("aria-label", `Remove ${image.name}`);
      remove.addEventListener("click", () => {
        side.images.splice(at, 1);
        drawTray(side);
        edited();
        // The next one, else the last, else the button that adds one: focus is never lost.
        const left = side.tray.querySelectorAll("button");
        (left[Math.min(at, left.length - 1)] || side.add).focus();
      });
      const caption = make("span", { textContent: image.name, title: `${image.name}, ${size(image.bytes)}` });
      return make("li", {}, make("img", { src: image.url, alt: image.name }), caption, remove);
    }),
  );
}

function turnNow() {
  const { prompt, response } = sides;
  const body = {};
  if (prompt.text.value) body.prompt = prompt.text.value;
  if (prompt.images.length) body.images = prompt.images.map((image) => image.url);
  if (response.text.value) body.response = response.text.value;
  if (response.images.length) body.response_images = response.images.map((image) => image.url);
  return body;
}

function request() {
  const body = turnNow();
  if ($("stage").value) body.stage = $("stage").value;
  if ($("policy").value) body.policy = $("policy").value;
  if ($("speed").value) body.speed = $("speed").value;
  return body;
}

function edited() {
  say("form-problem", "");
  const chosen = policies.find((policy) => policy.name === $("policy").value);
  $("policy-note").textContent = (chosen && chosen.description) || "";
  drawCode();
}

function clear() {
  stop();
  for (const side of Object.values(sides)) {
    side.turn += 1;
    side.text.value = "";
    side.images = [];
    drawTray(side);
  }
  edited();
  reset();
  $("empty").hidden = false;
  sides.prompt.text.focus();
}

// ---- what the server offers ------------------------------------------------------------------------------------------

async function loadOffer() {
  let reply;
  try {
    reply = await fetch("/v1/policies", { headers: headers() });
  } catch {
    return later("The server can't be reached.");
  }
  if (reply.status === 401) return askKey(false);
  const offer = reply.ok ? await reply.json().catch(() => null) : null;
  if (!offer) return later("The guard is not ready yet.");
  policies = offer.policies || [];
  fill($("policy"), policies.map((policy) => policy.name));
  fill($("speed"), offer.speeds || []);
  $("model").textContent = offer.model || "";
  if (!policies.length) later(offer.model || "The guard is not ready yet.");
  edited();
}

function later(why) {
  $("model").textContent = why;
  setTimeout(loadOffer, 4000);
}

function fill(select, names) {
  const before = select.value;
  const [first] = select.options;
  select.replaceChildren(first, ...names.map((name) => make("option", { value: name, textContent: name })));
  if (names.includes(before)) select.value = before;
}

function askKey(focus) {
  wantsKey = true;
  $("key-row").hidden = false;
  $("model").textContent = "API key needed";
  if (focus) $("key").focus();
  drawCode();
}

// ---- a check ---------------------------------------------------------------------------------------------------------

async function check() {
  if (running) return;
  const body = request();
  if (!Object.keys(turnNow()).length) {
    say("form-problem", "Type a prompt or a response, or add an image.");
    sides.prompt.text.focus();
    return;
  }
  reset();
  // On a narrow screen the decision is below what was typed.
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (matchMedia("(max-width: 56rem)").matches)
    document.querySelector(".result").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  const own = (running = new AbortController());
  busy(true);
  const began = performance.now();
  try {
    const reply = await fetch("/v1/guard", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({ ...body, stream: true }),
      signal: own.signal,
    });
    if (!reply.ok) return await refused(reply);
    const events = (reply.headers.get("content-type") || "").startsWith("text/event-stream");
    const decision = events ? await follow(reply.body) : await reply.json();
    if (decision) show(decision, (performance.now() - began) / 1000);
  } catch (error) {
    if (own.signal.aborted) trouble("Stopped", "You stopped this check: there is no decision.");
    else if (error instanceof TypeError)
      trouble("The server can't be reached", "The connection failed before there was a decision. Is the server still running?");
    else trouble("No decision", "The server's reply could not be read, so nothing was decided.");
  } finally {
    if (running === own) {
      running = null;
      busy(false);
    }
  }
}

// Reads the events: reasoning as it comes; gives the decision, or null where the server said why there is none.
async function follow(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    buffer += value || "";
    const frames = buffer.split(/\r?\n\r?\n/);
    buffer = frames.pop();
    for (const frame of frames) {
      const lines = frame.split(/\r?\n/);
      const field = (name) =>
        lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart()).join("\n");
      const kind = field("event");
      if (kind === "reasoning") think(JSON.parse(field("data")).text);
      if (kind === "decision") return JSON.parse(field("data"));
      if (kind === "error") {
        trouble("No decision", messageOf(JSON.parse(field("data"))));
        return null;
      }
    }
    if (done) {
      trouble("No decision", "The reply ended before the decision. Nothing was decided: don't take it for an allow.");
      return null;
    }
  }
}

function messageOf(body) {
  const error = (body && body.error) || {};
  return typeof error.message === "string" ? error.message : "";
}

async function refused(reply) {
  const body = await reply.json().catch(() => null);
  const said = messageOf(body);
  const wait = reply.headers.get("retry-after");
  const again = wait ? `Try again in ${/^\d+$/.test(wait) ? `${wait} seconds` : "a while"}.` : "Try again in a moment.";
  const words = {
    400: ["The server did not take this", ""],
    401: ["This server wants an API key", shownKey() ? "The one you gave is not known here." : "Enter it under “API key”."],
    403: ["Not allowed", ""],
    404: ["There is no guard at this address", ""],
    413: ["Too large for this server", "Use fewer or smaller images, or a shorter text."],
    429: ["Too many requests", again],
    502: ["No verdict", "The guard model's answer could not be read."],
    503: ["The guard is not available right now", again],
  };
  const [title, text] = words[reply.status] || [`The server failed (status ${reply.status})`, again];
  // An unguarded server may give a page instead of words: its status is all that is said then.
  trouble(title, [said, text].filter(Boolean).join(" "));
  if (reply.status === 401) askKey(true);
}

function stop() {
  if (running) running.abort();
}

// ---- what comes out --------------------------------------------------------------------------------------------------

function reset() {
  for (const id of ["empty", "trouble", "verdict", "thought", "raw"]) $(id).hidden = true;
  for (const id of ["stages", "notes", "facts", "reasoning", "json"]) $(id).replaceChildren();
  $("status").textContent = "";
}

function busy(is) {
  $("waiting").hidden = !is;
  $("check").disabled = is;
  $("stop").hidden = !is;
  $("reasoning").classList.toggle("live", is);
  document.querySelector(".result").setAttribute("aria-busy", String(is));
}

function think(text) {
  const box = $("reasoning");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
  $("thought").hidden = false;
  box.append(text);
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function trouble(title, text) {
  $("waiting").hidden = true;
  $("trouble-title").textContent = title;
  $("trouble-text").textContent = text;
  $("trouble").hidden = false;
}

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function show(decision, took) {
  const action = ACTIONS[decision.action];
  if (!action) {
    trouble("No decision", "The server named an action that this page does not know.");
    return;
  }
  $("waiting").hidden = true;
  $("verdict").dataset.action = decision.action;
  $("verdict-mark").setAttribute("d", action.mark);
  $("action").textContent = action.word;
  $("reason").textContent = decision.reason;
  $("verdict").hidden = false;
  $("status").textContent = `${action.word}. ${decision.reason}`;
  const verdict = decision.verdict;
  if (decision.error) drawError(decision);
  if (verdict) {
    drawStages(verdict);
    drawNotes(verdict);
    if (verdict.reasoning) {
      $("thought").hidden = false;
      // What was judged last may not be what decided: the decision's own reasoning stays.
      if ($("reasoning").textContent !== verdict.reasoning) $("reasoning").textContent = verdict.reasoning;
    }
  }
  drawFacts(decision, took);
  $("json").textContent = JSON.stringify(decision, null, 2);
  $("raw").hidden = false;
}

function drawError({ error, reason }) {
  const said = reason.includes(error.message) ? "" : error.message;
  const again = error.retryable ? "It may work when tried again." : "";
  trouble(`There is no verdict (${error.type})`, [said, error.hint, again].filter(Boolean).join(" ") || "The policy decided without one.");
}

function drawStages(verdict) {
  const rows = [];
  for (const stage of ["prompt", "response"]) {
    const label = verdict[stage];
    const score = verdict[`${stage}_score`];
    if (!label && typeof score !== "number") continue;
    const name = stage === "prompt" ? "Prompt" : "Response";
    const row = make("div", { className: "stage" }, make("b", { textContent: name }));
    const said = make("span", { className: "label", textContent: label || "no label" });
    said.dataset.label = label || "";
    if (typeof score === "number") {
      const bar = make("i");
      bar.style.width = `${Math.round(score * 100)}%`;
      const meter = make("div", { className: "meter", title: `Probability that it is harmful: ${score}` }, bar);
      meter.dataset.label = label || "";
      const values = { role: "meter", "aria-label": `${name}: probability that it is harmful`, "aria-valuemin": "0",
        "aria-valuemax": "1", "aria-valuenow": score.toFixed(3) };
      for (const [key, value] of Object.entries(values)) meter.setAttribute(key, value);
      row.append(meter);
      said.textContent += ` · ${score.toFixed(2)}`;
    } else {
      row.append(make("span", { className: "hint", textContent: "no score" }));
    }
    row.append(said);
    rows.push(row);
  }
  $("stages").replaceChildren(...rows);
}

function drawNotes(verdict) {
  const parts = [];
  const list = (values, className) =>
    make("ul", { className }, ...values.map((value) => make("li", { textContent: value })));
  if ((verdict.categories || []).length)
    parts.push(make("div", {}, make("h3", { textContent: "Categories" }), list(verdict.categories, "chips")));
  if ((verdict.unjudged || []).length)
    parts.push(make("div", { className: "unjudged" }, make("h3", { textContent: "Not judged" }), list(verdict.unjudged, "")));
  $("notes").replaceChildren(...parts);
}

function drawFacts(decision, took) {
  const verdict = decision.verdict || {};
  const usage = verdict.usage || {};
  const tokens = (usage.prompt_tokens || 0) + (usage.completion_tokens || 0);
  const remembered = (decision.judgements || []).some((judgement) => judgement.remembered);
  const facts = [
    ["Judged", decision.stage, false],
    ["Model", verdict.model, true],
    ["Format", verdict.format, true],
    ["Speed", verdict.speed, false],
    ["Model's time", typeof verdict.latency === "number" ? seconds(verdict.latency) + (remembered ? ", remembered" : "") : "", false],
    ["Round trip", seconds(took), false],
    ["Tokens", tokens ? `${usage.prompt_tokens} in, ${usage.completion_tokens} out` : "", false],
    ["Policy", decision.policy, true],
    ["Decision", decision.id, true],
  ];
  $("facts").replaceChildren(
    ...facts
      .filter(([, value]) => value)
      .map(([name, value, code]) =>
        make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value, className: code ? "code" : "" })),
      ),
  );
}

// ---- the same as an API call -----------------------------------------------------------------------------------------

// A data: URL as it is shown: its beginning, and how much there is of it.
function shortened(value) {
  if (Array.isArray(value)) return value.map(shortened);
  if (typeof value === "string" && value.startsWith("data:") && value.length > 80)
    return `${value.slice(0, 40)}… ${size(value.length)} …`;
  return value;
}

function code(body) {
  const url = `${location.origin}/v1/guard`;
  if (language === "curl") {
    const key = wantsKey ? `  -H "Authorization: Bearer $GUARDRAIL_VL_API_KEY" \\\n` : "";
    return `curl ${url} \\\n${key}  -H "Content-Type: application/json" \\\n  -d @- <<'JSON'\n${JSON.stringify(body, null, 2)}\nJSON\n`;
  }
  // Strings and lists are written alike in JSON and in Python, and there is nothing else in it.
  const json = JSON.stringify(body, null, 4).replace(/\n/g, "\n    ");
  const key = wantsKey ? `    headers={"Authorization": f"Bearer {os.environ['GUARDRAIL_VL_API_KEY']}"},\n` : "";
  return (
    `${wantsKey ? "import os\n\n" : ""}import httpx\n\nreply = httpx.post(\n    "${url}",\n${key}    json=${json},\n    timeout=60,\n)\n` +
    `decision = reply.raise_for_status().json()\nprint(decision["action"], decision["reason"])\n`
  );
}

function callBody(shown) {
  const body = request();
  if (!Object.keys(body).length) body.prompt = "";
  return shown ? Object.fromEntries(Object.entries(body).map(([name, value]) => [name, shortened(value)])) : body;
}

function drawCode() {
  $("code").textContent = code(callBody(true));
  const pictures = sides.prompt.images.length + sides.response.images.length;
  $("code-note").textContent = pictures ? "Image data is shortened here; what is copied has all of it." : "";
}

async function copy() {
  const text = code(callBody(false));
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    // Browsers keep the clipboard from pages that came over plain HTTP from another machine.
    const area = make("textarea", { value: text, className: "sr" });
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    $("copy").focus();
  }
  $("copy").textContent = done ? "Copied" : "Select it by hand";
  $("status").textContent = done ? "Copied." : "The browser did not allow copying.";
  setTimeout(() => ($("copy").textContent = "Copy"), 1800);
}

function choose(tab) {
  language = tab.id === "tab-curl" ? "curl" : "python";
  for (const one of document.querySelectorAll("[role=tab]")) {
    one.setAttribute("aria-selected", String(one === tab));
    one.tabIndex = one === tab ? 0 : -1;
  }
  $("code").setAttribute("aria-labelledby", tab.id);
  drawCode();
}

// ---- start -----------------------------------------------------------------------------------------------------------

function setUp() {
  document.querySelectorAll(".composer").forEach(setUpSide);
  for (const [name, prompt, response] of EXAMPLES) {
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => {
      sides.prompt.text.value = prompt;
      sides.response.text.value = response;
      edited();
      sides.prompt.text.focus();
    });
    $("examples").append(button);
  }
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    check();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      check();
    }
    if (event.key === "Escape") stop();
  });
  $("stop").addEventListener("click", stop);
  $("clear").addEventListener("click", clear);
  $("copy").addEventListener("click", copy);
  for (const id of ["stage", "policy", "speed"]) $(id).addEventListener("change", edited);
  $("key").addEventListener("change", () => {
    sessionStorage.setItem(KEY, shownKey());
    loadOffer();
  });
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });
  const apple = /Mac|iPhone|iPad/.test(navigator.platform);
  $("shortcut").append(make("kbd", { textContent: apple ? "⌘" : "Ctrl" }), " ", make("kbd", { textContent: "Enter" }));
  $("key").value = sessionStorage.getItem(KEY) || "";
  if (shownKey()) askKey(false);
  edited();
  loadOffer();
}

setUp();
