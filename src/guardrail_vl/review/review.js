// The review page. What a user or a model wrote is put in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SIDES = ["prompt", "response"];
const state = { turns: [], current: null, cursors: [null], token: sessionStorage.getItem("token") };

/** An element with a class and text; children may follow. */
function make(tag, name = "", text = null, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

function say(text) {
  $("status").textContent = text;
}

// ---- the server ------------------------------------------------------------------------------------------------

async function ask(path, body = null) {
  const headers = { "X-Guardrail-Review": "1" };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { headers, cache: "no-store", credentials: "omit" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const answer = await fetch(path, options);
  if (answer.status === 401) {
    await askForToken();
    return ask(path, body);
  }
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(value.error || `The server answered ${answer.status}.`);
  return value;
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    const gate = $("gate");
    $("token").value = "";
    gate.showModal();
    gate.addEventListener("cancel", (event) => event.preventDefault());
    $("gate-form").addEventListener("submit", () => {
      state.token = $("token").value.trim();
      sessionStorage.setItem("token", state.token);
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

// ---- the list --------------------------------------------------------------------------------------------------

function wanted() {
  const form = new FormData($("filters"));
  const query = new URLSearchParams();
  for (const [name, value] of form) if (value !== "" && !(name === "app" && value === "*")) query.set(name, value);
  // An app without a name is one too.
  if (form.get("app") === "") query.set("app", "");
  const after = state.cursors.at(-1);
  if (after) query.set("after", after);
  return query;
}

async function load(keep = null) {
  const found = await ask(`api/turns?${wanted()}`);
  state.turns = found.turns;
  $("count").textContent = found.total === 1 ? "1" : found.total.toLocaleString();
  $("newer").disabled = state.cursors.length === 1;
  $("older").disabled = !found.more;
  $("turns").replaceChildren(...found.turns.map(row));
  const next = found.turns.find((turn) => turn.id === keep) || found.turns[0];
  await (next ? open(next.id) : close());
}

function row(turn) {
  const button = make("button", "row");
  button.type = "button";
  button.dataset.id = turn.id;
  const top = make("span", "top", null, make("span", `chip ${turn.action}`, turn.action), make("span", "", turn.stage));
  if (turn.app) top.append(make("span", "app", turn.app));
  if (turn.correction) top.append(make("span", "chip done", "reviewed"));
  top.append(when(turn.time, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" }));
  button.append(top, make("span", "why", turn.reason));
  button.addEventListener("click", () => attempt(() => open(turn.id)));
  return make("li", "", null, button);
}

function when(text, style = { dateStyle: "medium", timeStyle: "short" }) {
  const time = make("time", "", new Date(text).toLocaleString([], style));
  time.dateTime = text;
  return time;
}

// ---- one turn --------------------------------------------------------------------------------------------------

function close() {
  state.current = null;
  $("turn").hidden = true;
  $("empty").hidden = false;
}

async function open(id) {
  const turn = await ask(`api/turns/${encodeURIComponent(id)}`);
  state.current = turn;
  for (const button of $("turns").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(button.dataset.id === id));
    if (button.dataset.id === id) button.scrollIntoView({ block: "nearest" });
  }
  show(turn);
  $("detail").scrollTop = 0;
}

function show(turn) {
  $("empty").hidden = true;
  $("turn").hidden = false;
  const labels = SIDES.filter((side) => turn[side]).map((side) =>
    make("span", `chip ${turn[side]}`, `${side}: ${turn[side]}${score(turn[`${side}_score`])}`));
  $("turn-title").replaceChildren(make("span", `chip ${turn.action}`, turn.action), ...labels);
  $("reason").textContent = turn.reason;
  const content = turn.content;
  $("absent").hidden = Boolean(content);
  $("absent").textContent = turn.problem || "The content of this turn was not stored, or it was purged.";
  $("messages").replaceChildren(...(content ? content.messages.map(message) : []));
  const reasoning = content && content.reasoning;
  $("thinking").hidden = !reasoning;
  $("reasoning").textContent = reasoning || "";
  $("facts").replaceChildren(...facts(turn));
  fill(turn, content);
}

function score(value) {
  return value === null ? "" : ` (${value.toFixed(2)})`;
}

function message(one) {
  const heading = make("h3", "", null, make("span", "", one.name ? `${one.role} (${one.name})` : one.role));
  if (!one.judged) heading.append(make("span", "quiet", "not what the verdict is about"));
  const pictures = one.parts.filter((part) => part.type === "image");
  const parts = one.parts.map((part) =>
    part.type === "image" ? picture(part, pictures.indexOf(part) + 1, pictures.length) : text(part));
  return make("div", one.judged ? "message judged" : "message", null, heading, ...parts);
}

function text(part) {
  const box = make("div", "part");
  if (part.type !== "text") box.append(make("div", "kind", part.type.replace("_", " ")));
  box.append(make("div", "text", part.text));
  return box;
}

function picture(part, number, count) {
  const name = count > 1 ? `Picture ${number} of ${count}` : "Picture";
  const image = make("img");
  image.src = part.url;
  image.draggable = false;
  const frame = make("div", "frame", null, image);
  const button = make("button", "reveal");
  button.type = "button";
  const set = (blurred) => {
    frame.classList.toggle("blurred", blurred);
    image.alt = blurred ? `${name}, blurred` : `${name}, ${part.width} by ${part.height} pixels`;
    button.textContent = blurred ? `Show ${name.toLowerCase()}` : `Blur ${name.toLowerCase()}`;
    button.setAttribute("aria-pressed", String(!blurred));
  };
  button.addEventListener("click", () => set(!frame.classList.contains("blurred")));
  set(true);
  return make("figure", "part", null, frame, button);
}

function facts(turn) {
  const tokens = turn.prompt_tokens + turn.completion_tokens;
  const known = {
    Time: when(turn.time),
    App: turn.app,
    Stage: turn.in_context ? `${turn.stage}, with what came before` : turn.stage,
    Categories: turn.categories.join(", "),
    Error: turn.error && `${turn.error}: ${turn.error_message}`,
    Model: turn.model,
    Format: [turn.format, turn.speed].filter(Boolean).join(", "),
    Policy: turn.policy,
    Took: turn.latency ? `${turn.latency.toFixed(2)} s${tokens ? `, ${tokens.toLocaleString()} tokens` : ""}` : "",
    Decision: turn.id,
  };
  return Object.entries(known).filter(([, value]) => value).map(([name, value]) =>
    make("div", "", null, make("dt", "", name), make("dd", "", null, value)));
}

// ---- labels ----------------------------------------------------------------------------------------------------

function fill(turn, content) {
  const form = $("labels");
  form.reset();
  // A response can be labelled where there is one, or where nobody knows.
  $("side-response").disabled = content ? !content.answered : turn.stage === "prompt";
  const said = turn.correction;
  for (const side of SIDES) choose(side, (said || {})[side]);
  form.elements.note.value = said ? said.note : "";
  $("agree").disabled = !SIDES.some((side) => turn[side]);
  $("said").hidden = !said;
  $("said").textContent = said ? `${said.reviewer || "Somebody"} reviewed this.` : "";
}

function choose(side, label) {
  for (const input of $("labels").elements[side]) input.checked = input.value === label && !$(`side-${side}`).disabled;
}

function chosen(side) {
  return $(`side-${side}`).disabled ? null : $("labels").elements[side].value || null;
}

function agree() {
  for (const side of SIDES) choose(side, state.current[side]);
  say("The model's labels. Save them with Enter.");
}

async function save() {
  const turn = state.current;
  if (!turn) return;
  const body = { note: $("labels").elements.note.value, reviewer: $("reviewer").value.trim() };
  for (const side of SIDES) body[side] = chosen(side);
  if (!body.prompt && !body.response) return say("Choose a label first.");
  if (!body.reviewer) {
    $("reviewer").focus();
    return say("Say who reviews.");
  }
  const now = await ask(`api/turns/${encodeURIComponent(turn.id)}/label`, body);
  const place = state.turns.findIndex((one) => one.id === turn.id);
  state.turns[place] = now;
  $("turns").children[place].replaceWith(row(now));
  await move(1);
  say("Saved.");
}

async function move(by) {
  const place = state.turns.findIndex((one) => state.current && one.id === state.current.id);
  const next = state.turns[place + by];
  if (next) return open(next.id);
  if (by < 0) return say("This is the first.");
  if (!$("older").disabled) return older();
  // What was reviewed leaves the list, which may have got new ones meanwhile.
  if (new FormData($("filters")).get("reviewed") === "false") return first();
  return say("This is the last.");
}

function older() {
  state.cursors.push(state.turns.at(-1).id);
  return load();
}

function newer() {
  if (state.cursors.length > 1) state.cursors.pop();
  return load();
}

function first() {
  state.cursors = [null];
  return load(state.current && state.current.id);
}

function toggle() {
  const buttons = [...document.querySelectorAll(".reveal")];
  const blurred = buttons.some((button) => button.getAttribute("aria-pressed") === "false");
  for (const button of buttons) if (blurred === (button.getAttribute("aria-pressed") === "false")) button.click();
}

// ---- events ----------------------------------------------------------------------------------------------------

let busy = false;
let refilter = false;

/** Do something, and tell what went wrong. One thing at a time: a second Enter must not label the next turn. */
async function attempt(what) {
  if (busy) return;
  busy = true;
  try {
    say("");
    await what();
  } catch (error) {
    say(error.message);
  } finally {
    busy = false;
    if (refilter) filter();
  }
}

/** List what the filters say; they may be changed while something else goes on. */
function filter() {
  refilter = busy;
  if (!busy) attempt(first);
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  n: () => move(1),
  a: agree,
  p: toggle,
  o: () => $("labels").elements.note.focus(),
  enter: save,
  1: () => label("prompt", "harmful"),
  2: () => label("prompt", "unharmful"),
  3: () => label("response", "harmful"),
  4: () => label("response", "unharmful"),
};

function label(side, value) {
  if ($(`side-${side}`).disabled) return say(`There is no ${side} to label.`);
  choose(side, value);
  return say(`${side}: ${value}`);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || $("gate").open) return;
  const typing = event.target.closest("textarea, select, input:not([type=radio]):not([type=checkbox])");
  if (event.key === "Escape" && typing) return typing.blur();
  if (typing || !$("keys").checked || !state.current) return;
  // Enter presses the button that has the focus, as everywhere.
  if (event.key === "Enter" && event.target.closest("button, summary, a")) return;
  const what = KEYS[event.key.toLowerCase()];
  if (!what) return;
  event.preventDefault();
  attempt(what);
});

$("filters").addEventListener("change", filter);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("older").addEventListener("click", () => attempt(older));
$("newer").addEventListener("click", () => attempt(newer));
$("agree").addEventListener("click", () => attempt(agree));
$("next").addEventListener("click", () => attempt(() => move(1)));
$("labels").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(save);
});
$("reviewer").addEventListener("change", () => localStorage.setItem("reviewer", $("reviewer").value.trim()));
$("keys").addEventListener("change", () => {
  localStorage.setItem("keys", $("keys").checked ? "on" : "off");
  document.body.classList.toggle("no-keys", !$("keys").checked);
});

attempt(async () => {
  $("keys").checked = localStorage.getItem("keys") !== "off";
  document.body.classList.toggle("no-keys", !$("keys").checked);
  const about = await ask("api/about");
  $("reviewer").value = localStorage.getItem("reviewer") || about.reviewer;
  const apps = $("filters").elements.app;
  for (const app of about.apps) apps.append(new Option(app || "(no name)", app));
  await load();
});
