"use strict";
// Polls the node's status once a second, and draws the difference between two reports. Every text is set as
// textContent, so that nothing in it is read as HTML.

const EVERY_MS = 1000;
const POINTS_MAX = 120;
// Time limit of a request. After it the page shows that the node does not answer.
const TIMEOUT_MS = 4000;

const at = (id) => document.getElementById(id);
const points = [];
let before = null;
let token = "";
// What the dialog asks about: `{ path, done }`.
let asking = null;
let meanings = {};
let hour = { every_ms: 10000, points: [] };
// All sessions, while a filter needs them.
let all = null;
// Rows that a filter shows at most. A browser draws no more of them in a second.
const ROWS_MAX = 200;

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 ? Math.round(count) : count.toFixed(count < 10 ? 2 : 1)} ${units[unit]}`;
}
const rate = (count) => (count === null || count === undefined ? "–" : `${bytes(count)}/s`);
const perSecond = (count) => (count >= 10 || count === 0 ? count.toFixed(0) : count.toFixed(1));
const number = (count) => count.toLocaleString("en");
function took(us) {
  if (us < 1000) return `${us} µs`;
  return us < 1e6 ? `${(us / 1e3).toFixed(1)} ms` : `${(us / 1e6).toFixed(1)} s`;
}
function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

function set(id, text) { at(id).textContent = text; }
function show(id, isShown) { at(id).hidden = !isShown; }
function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
// A text that somebody selects to copy must not be replaced: it would be selected no more.
function isSelected(node) {
  const selection = document.getSelection();
  return selection !== null && !selection.isCollapsed &&
    (node.contains(selection.anchorNode) || node.contains(selection.focusNode));
}
function fill(table, rows) {
  const body = at(table).tBodies[0];
  if (isSelected(body)) return;
  const names = [...at(table).tHead.rows[0].cells].map((head) => head.textContent);
  body.replaceChildren(...rows.map((cells) => {
    const row = element("tr");
    row.append(...cells);
    cells.forEach((cell, place) => { cell.dataset.name = names[place]; });
    return row;
  }));
  show(table, rows.length > 0);
  show(`no-${table}`, rows.length === 0);
}
const cell = (text) => element("td", text);
const figure = (text) => element("td", text, "number");
function code(text, title) {
  const inside = element("code", text);
  if (title) inside.title = title;
  const made = element("td");
  made.append(inside);
  return made;
}
function target(row) {
  if (!row.uuid) return code("–");
  const uuid = row.uuid.length > 16 ? `${row.uuid.slice(0, 12)}…` : row.uuid;
  return code(`${uuid}:${row.port}`, `${row.uuid}:${row.port}`);
}

const up = (status) => status.bytes.up_copied + status.bytes.up_spliced + status.bytes.up_tls;
const down = (status) => status.bytes.down_copied + status.bytes.down_spliced + status.bytes.down_tls;

function draw(status) {
  const seconds = before ? Math.max(0.001, (status.at - before.at) / 1000) : null;
  // After a restart the node counts from 0 again, and the rate is shown as 0.
  const grown = (of) => (before ? Math.max(0, of(status) - of(before)) / seconds : 0);
  const point = { up: grown(up), down: grown(down) };
  if (before) {
    points.push(point);
    if (points.length > POINTS_MAX) points.shift();
  }
  drawFigures(status, point, grown);
  drawAlert(status);
  drawPlot();
  drawHour();
  drawListeners(status);
  drawRefusals(status, grown);
  drawSource(status);
  drawSlowest(status);
  drawThreads(status, seconds);
  drawTop(status);
  before = status;
}

function drawFigures(status, point, grown) {
  set("version", status.version);
  const state = at("state");
  state.textContent = status.why ? `${status.readiness}: ${status.why}` : status.readiness;
  state.className = status.readiness;
  set("asked", "");
  set("active", number(status.sessions.active));
  set("active-more", `of at most ${number(status.sessions.max)}`);
  set("opened", `${perSecond(grown((s) => s.sessions.opened))}/s`);
  set("opened-more", `${number(status.sessions.opened)} so far`);
  for (const [id, now, sum] of [["up", point.up, up(status)], ["down", point.down, down(status)]]) {
    set(id, rate(now));
    set(`${id}-more`, `${bytes(sum)} so far`);
    set(`plot-${id}`, rate(now));
  }
}

// What is held: a group, a relation, or everything.
const subject = (hold) => hold.group || hold.relation || "everything";

function drawAlert(status) {
  const { holds, last_error: error, state_unsaved: unsaved } = status.source;
  // The first line says more than the conditions of these names do.
  const said = ["SluicegateHold", "SluicegateStateUnsaved", "SluicegateNoRefresh"];
  const others = status.conditions.filter((each) => !said.includes(each.alert)).map((each) => `${each.alert}: ${each.text}`);
  let words = "";
  if (holds.length > 0) {
    const each = holds.map((hold) => `${subject(hold)} for ${span(status.at - hold.since)} (rule ${hold.rule}, ` +
      `${number(hold.rows)} rows${hold.figures ? `: ${hold.figures}` : ""})`);
    words = `The guard holds ${each.join("; ")}. Everything else takes effect; ` +
      "`sluicegate authz status` says what to do.";
  } else if (unsaved) {
    words = `The state on disk is older than what is in force: ${unsaved}. A restart would begin with the older one.`;
  } else if (error) {
    words = `The store cannot be read: ${error}. The last good state stays in force.`;
  }
  // Set it only when it changes: a screen reader reads every change.
  const lines = words === "" ? others : [words, ...others];
  if (at("alert").dataset.words !== lines.join("\n")) {
    at("alert").dataset.words = lines.join("\n");
    at("alert").replaceChildren(...lines.map((line) => element("p", line)));
  }
  show("alert", lines.length > 0);
}

function drawPlot() {
  drawLines("plot", points, POINTS_MAX);
  set("plot-span", points.length > 1 ? `the last ${span(points.length * EVERY_MS)}` : "collecting");
}

function drawHour() {
  const { points: past, every_ms: every } = hour;
  drawLines("hour", past, 3600000 / every);
  const most = (of) => Math.max(0, ...past.map(of));
  const sum = (of) => past.reduce((total, point) => total + of(point), 0);
  set("hour-up", rate(most((point) => point.up)));
  set("hour-down", rate(most((point) => point.down)));
  set("hour-sessions", number(most((point) => point.sessions)));
  set("hour-opened", number(sum((point) => point.opened)));
  set("hour-refused", number(sum((point) => Object.values(point.refusals).reduce((total, count) => total + count, 0))));
  set("hour-span", past.length > 0 ? `the last ${span(past.length * every)}` : "collecting");
  const held = new Map();
  for (const point of past) for (const subject of point.holds) held.set(subject, (held.get(subject) || 0) + every);
  const words = [...held].map(([subject, time]) => `${subject} for ${span(time)}`);
  set("hour-holds", `The guard held ${words.join(", ")}.`);
  show("hour-holds", words.length > 0);
}

function drawListeners(status) {
  show("listeners-card", status.node !== null);
  if (status.node) {
    fill("listeners", status.node.listeners.map((each) => [code(each.address), cell(each.serves), cell(each.tls ? "yes" : "no"),
      figure(number(each.sessions)), figure(number(each.opened)), figure(number(each.refused))]));
  }
}

function drawLines(id, points, most_points) {
  const canvas = at(id);
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colours = getComputedStyle(document.documentElement);
  const colour = (name) => colours.getPropertyValue(name).trim();
  const most = Math.max(1024, ...points.map((point) => Math.max(point.up, point.down)));
  const [left, foot] = [84, 8];
  const x = (place) => left + ((place + most_points - points.length) / (most_points - 1)) * (width - left - 2);
  const y = (value) => height - foot - (value / most) * (height - foot - 10);
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const share of [0, 0.5, 1]) {
    pen.strokeStyle = colour("--line");
    pen.beginPath();
    pen.moveTo(left, y(most * share));
    pen.lineTo(width, y(most * share));
    pen.stroke();
    pen.fillStyle = colour("--quiet");
    pen.fillText(share === 0 ? "0" : rate(most * share), left - 8, y(most * share));
  }
  for (const name of ["up", "down"]) {
    pen.beginPath();
    points.forEach((point, place) => pen[place === 0 ? "moveTo" : "lineTo"](x(place), y(point[name])));
    pen.strokeStyle = colour(`--${name}`);
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.stroke();
    if (points.length > 1) {
      pen.lineTo(x(points.length - 1), y(0));
      pen.lineTo(x(0), y(0));
      pen.globalAlpha = 0.1;
      pen.fillStyle = colour(`--${name}`);
      pen.fill();
      pen.globalAlpha = 1;
    }
  }
}

function drawRefusals(status, grown) {
  const causes = Object.entries(status.refusals).sort(([, a], [, b]) => b - a);
  const ofHour = (cause) => hour.points.reduce((total, point) => total + (point.refusals[cause] || 0), 0);
  fill("refusals", causes.map(([cause, count]) => {
    const named = code(cause);
    if (meanings[cause]) named.append(element("div", meanings[cause], "meaning quiet"));
    return [named, figure(perSecond(grown((s) => s.refusals[cause] || 0))), figure(number(ofHour(cause))), figure(number(count))];
  }));
}

function drawSource(status) {
  const { source } = status;
  const facts = [
    ["generation", source.generation === null ? "none: nothing can be decided" : number(source.generation)],
    ["confirmed", source.confirmed_at ? `${span(status.at - source.confirmed_at)} ago` : "never"],
    ["guard", source.holds.length > 0 ? `holds ${source.holds.map(subject).join(", ")}` : "holds nothing back"],
    ["rows", `credentials ${number(source.rows.credentials)}, grants ${number(source.rows.grants)}, ` +
      `devices ${number(source.rows.devices)}`],
    ["could not decide", `${number(status.sessions.undecided)} clients so far`],
  ];
  if (source.store) facts.splice(2, 0, ["store", source.store]);
  if (source.last_error && status.decides_until) {
    facts.splice(2, 0, ["decides for", `${span(status.decides_until - status.at)} more, if the store stays away`]);
  }
  if (status.node) {
    const { name, started_at: startedAt } = status.node;
    facts.unshift(["node", `${name ? `${name}, ` : ""}up for ${span(status.at - startedAt)}`]);
  }
  for (const [name, { last }, success] of [
    ["probe", status.probe.local, "served"], ["probe of nodes", status.probe.forwarded, "each answers"],
  ]) {
    if (last) facts.push([name, last.failure ? `fails: ${last.failure}` : `${success} in ${took(last.took_us)}`]);
  }
  if (source.disputed_devices) {
    facts.push(["disputed", `${number(source.disputed_devices)} devices: it is not clear whose their address is`]);
  }
  for (const expected of source.expectations) {
    facts.push(["expected", `${number(expected.used)} of ${number(expected.rows)} rows of ${expected.relation}.${expected.kind}`]);
  }
  for (const relation of source.relations) {
    if (relation.error) facts.push([relation.relation, `cannot be read: ${relation.error}`]);
  }
  if (source.on_probation) facts.push(["probation", "refusals are compared with those of the previous generation"]);
  if (source.quarantined) facts.push(["quarantined", `${number(source.quarantined)} rows that do not decode`]);
  if (isSelected(at("source"))) return;
  at("source").replaceChildren(...facts.flatMap(([name, words]) => [element("dt", name), element("dd", words)]));
}

function drawSlowest(status) {
  fill("slowest", status.slowest.map((handshake) => [
    figure(took(handshake.us)), cell(handshake.outcome), target(handshake), figure(span(status.at - handshake.at)),
  ]));
}

function drawThreads(status, seconds) {
  if (isSelected(at("threads"))) return;
  at("threads").replaceChildren(...status.threads.map((thread, place) => {
    const then = before && before.threads[place];
    const line = element("div", undefined, "load");
    const bar = element("progress");
    bar.max = 1;
    let words = "–";
    if (then && thread.cpu_ns !== null && then.cpu_ns !== null) {
      const load = Math.min(1, Math.max(0, thread.cpu_ns - then.cpu_ns) / 1e9 / seconds);
      bar.value = load;
      words = `${Math.round(load * 100)} %`;
    } else {
      bar.value = 0;
    }
    bar.setAttribute("aria-label", `load of engine thread ${thread.number}`);
    line.append(element("span", `engine ${thread.number}`), bar, element("span", words),
      element("span", `${number(thread.sessions)} sessions`, "quiet"));
    return line;
  }));
}

function drawTop(status) {
  const { see_sessions: isShown, end_with_token: hasToken } = status.may;
  const mayEnd = hasToken && token !== "";
  show("enter", hasToken && token === "");
  if (!isShown) {
    set("why-hidden", hasToken ? "Enter the admin token to see sessions." :
      "Sessions are shown on this machine alone: open this page there, or configure admin.token_file.");
  } else if (!hasToken) {
    set("why-hidden", "To end a session, run `sluicegate sessions kill ID`, or configure admin.token_file to do it here.");
  }
  show("why-hidden", !isShown || !hasToken);
  show("filters", isShown);
  const isDraining = status.readiness === "draining";
  show("drain", mayEnd);
  set("drain", isDraining ? "Serve new clients again" : "Drain this node");
  const focused = document.activeElement && document.activeElement.dataset.session;
  const wanted = filterText();
  const found = wanted === "" ? status.top || [] : (all || []).filter((row) => mentions(row, wanted));
  set("top-title", wanted === "" ? "Fastest sessions" : "Sessions");
  set("shown", wanted === "" ? "" : `${number(found.length)} of ${number((all || []).length)} sessions` +
    `${found.length > ROWS_MAX ? `, the first ${ROWS_MAX} are shown` : ""}`);
  fill("top", found.slice(0, ROWS_MAX).map((row) => {
    const button = element("button", "End", "end");
    button.disabled = !mayEnd;
    button.dataset.session = row.id;
    button.setAttribute("aria-label", `end the session of ${row.client || "a client that is gone"}`);
    button.addEventListener("click", () => askToEnd(row));
    const last = element("td", undefined, "number");
    last.append(button);
    const paths = row.path_up === row.path_down ? row.path_up : `${row.path_up}/${row.path_down}`;
    return [
      code(row.id), code(row.client || "–"), target(row), cell(row.principal_name || (row.principal === null ? "–" : String(row.principal))), cell(row.state),
      figure(rate(row.rate_up)), figure(rate(row.rate_down)), figure(bytes(row.bytes_up)), figure(bytes(row.bytes_down)),
      cell(row.path_up ? paths : "–"), figure(span(status.at - row.since)), last,
    ];
  }));
  show("no-top", isShown && found.length === 0 && (status.top !== null || wanted !== ""));
  // The rows were replaced, so give the keyboard focus back to the same session.
  const again = focused && document.querySelector(`[data-session="${CSS.escape(focused)}"]`);
  if (again) again.focus();
}

function ask(what, more, button, path, body, done) {
  asking = { path, body, done };
  set("ask-what", what);
  set("ask-more", more);
  set("end", button);
  at("ask").showModal();
}
function askToEnd(row) {
  ask(`End session ${row.id}, from ${row.client || "a client that is gone"} to ${row.uuid || "no device yet"}?`,
    "Both sides get a reset. It is written to the audit log.", "End it",
    `/sessions/${encodeURIComponent(row.id)}/end`, undefined, `ended session ${row.id}`);
}
function askToDrain() {
  if (before.readiness === "draining") {
    ask("Serve new clients again?", "It is written to the audit log.", "Serve", "/drain/cancel", undefined, "new clients are served again");
  } else {
    ask("Refuse new clients from now on?", "Open tunnels go on, and /readyz says 503. It is written to the audit log.", "Drain",
      "/drain", {}, "the node drains");
  }
}

// The filter is kept in the address, so that a reload and a bookmark have it too.
const filterText = () => at("filter").value.trim().toLowerCase();
function keepFilter() {
  const text = at("filter").value.trim();
  history.replaceState(null, "", text === "" ? location.pathname : `#filter=${encodeURIComponent(text)}`);
}
function readFilter() {
  const kept = location.hash.match(/^#filter=(.*)$/);
  if (kept) {
    try { at("filter").value = decodeURIComponent(kept[1]); } catch { /* Somebody else's address. */ }
  }
}
const mentions = (row, text) => [row.id, row.client, row.uuid, row.principal_name, row.principal, row.state, row.port]
  .some((each) => each !== null && each !== undefined && String(each).toLowerCase().includes(text));

// A cell of CSV. One that a spreadsheet would take for a formula gets a quote in front.
function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
const CSV_COLUMNS = ["id", "client", "uuid", "port", "principal", "principal_name", "credential", "grant", "state", "since",
  "bytes_up", "bytes_down", "rate_up", "rate_down", "path_up", "path_down"];
function csv(sessions) {
  const lines = sessions.map((row) => CSV_COLUMNS.map((name) => csvCell(name === "since" ? new Date(row.since).toISOString() : row[name])));
  return [CSV_COLUMNS, ...lines].map((cells) => `${cells.join(",")}\r\n`).join("");
}
async function saveCsv() {
  try {
    const { sessions } = await request("/sessions", "GET");
    const wanted = filterText();
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv(sessions.filter((row) => wanted === "" || mentions(row, wanted)))], { type: "text/csv" }));
    link.download = `sessions-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    set("ended", error.message);
    show("ended", true);
  }
}

async function request(path, method, content) {
  const headers = token === "" ? {} : { Authorization: `Bearer ${token}` };
  if (content !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS),
    body: content === undefined ? undefined : JSON.stringify(content) });
  const body = await answer.json();
  if ((answer.status === 401 || answer.status === 429) && token !== "") {
    token = "";
    set("denied", body.error);
  }
  if (!answer.ok) throw new Error(body.error || `the node answered ${answer.status}`);
  return body;
}

// Reads what changes slowly, or is long.
let turn = 0;
async function readMore() {
  if (turn % 10 === 0) {
    hour = await request("/history.json", "GET");
    if (Object.keys(meanings).length === 0) meanings = await request("/causes.json", "GET");
  }
  if (filterText() === "") all = null;
  else if (before && before.may.see_sessions && (all === null || turn % 3 === 0)) all = (await request("/sessions", "GET")).sessions;
  turn += 1;
}

async function poll() {
  try {
    await readMore();
    const status = await request("/status.json", "GET");
    if (token !== "") set("denied", "");
    draw(status);
  } catch (error) {
    if (token === "" && at("denied").textContent) {
      show("enter", true);
    } else {
      set("state", "no answer");
      at("state").className = "lost";
      set("asked", `last update ${before ? new Date(before.at).toLocaleTimeString() : "never"}; ${error.message}`);
    }
  }
  setTimeout(poll, EVERY_MS);
}

at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  set("denied", "");
});
at("keep").addEventListener("click", () => at("ask").close());
at("end").addEventListener("click", async () => {
  at("ask").close();
  try {
    await request(asking.path, "POST", asking.body);
    set("ended", asking.done);
  } catch (error) {
    set("ended", error.message);
  }
  show("ended", true);
});
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filter").addEventListener("input", () => { keepFilter(); if (before) drawTop(before); });
at("csv").addEventListener("click", saveCsv);
at("drain").addEventListener("click", askToDrain);
const redraw = () => { drawPlot(); drawHour(); };
window.addEventListener("resize", redraw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
readFilter();
poll();
