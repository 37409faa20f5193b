"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = Object.fromEntries(data.columns.map((name, number) => [name, number]));
const cell = (row, name) => data.rows[row][at[name]] || "";
const key = (...parts) => parts.join("\0");
const $ = (id) => document.getElementById(id);
const marks = new Map(); // by kind, image and the other image, tag or number
let cards = [], shown = [], rendered = 0, now = 0, unsaved = false;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made[name] = value;
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

// Names as they are shown: what would act on the text stands as an escape.
const visible = (text) => text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => {
  const code = c.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
});
const text = (tag, value, name) => element(tag, name ? { class: name } : {}, visible(value));

// --- cards: one finding, or the pictures that findings of one kind join ---

function makeCards() {
  for (const kind of data.kinds) {
    const rows = data.rows.flatMap((row, number) => (row[at.kind] === kind.name ? [number] : []));
    const pairs = rows.filter((row) => cell(row, "other"));
    const parent = new Map();
    const root = (name) => {
      while (parent.has(name) && parent.get(name) !== name) name = parent.get(name);
      return name;
    };
    for (const row of pairs) {
      const [one, two] = [root(cell(row, "other")), root(cell(row, "sample_id"))];
      parent.set(two, one);
      parent.set(one, one);
    }
    const groups = new Map();
    const ofKind = [];
    for (const row of rows) {
      const name = cell(row, "other") ? root(cell(row, "other")) : key("", row);
      if (!groups.has(name)) {
        groups.set(name, { kind, rows: [], cells: new Map(), pick: 0 });
        ofKind.push(groups.get(name));
      }
      const card = groups.get(name);
      card.rows.push(row);
      for (const column of ["other", "sample_id"]) {
        const id = cell(row, column);
        if (id && !card.cells.has(id)) card.cells.set(id, row);
      }
    }
    for (const card of ofKind) {
      card.cells = [...card.cells].map(([id, row]) => ({ id, row }));
      const isTrained = ({ id }) => (data.images[id] || {}).split === "train";
      card.pick = card.cells.length !== 2 ? 0
        : kind.name === "leak" && isTrained(card.cells[0]) ? 0 : 1; // what may be dropped
    }
    ofKind.sort((a, b) => sizeOf(a) - sizeOf(b)); // stable: the surest stay first
    cards.push(...ofKind);
  }
}

// Images of a card, with those that the page leaves out.
const sizeOf = (card) => Math.max(card.cells.length,
  data.sizes[`${card.kind.name} ${cell(card.rows[0], "group")}`] || 0);

// --- marks ---

// The rows of the table that an image of a card has: its own, or that of its pair, turned round.
function rowsOf(card, id) {
  const own = card.rows.filter((row) => cell(row, "sample_id") === id);
  if (own.length) return own.map((row) => [row, false]);
  return card.rows.filter((row) => cell(row, "other") === id).slice(0, 1).map((row) => [row, true]);
}
const keyOf = (cells) => key(cells[at.kind], cells[at.sample_id],
  cells[data.named.includes(cells[at.kind]) ? at.note : at.other]);
const markKey = ([row, turned]) =>
  turned ? key(cell(row, "kind"), cell(row, "other"), cell(row, "sample_id")) : keyOf(data.rows[row]);

function markOf(card, id) {
  for (const row of rowsOf(card, id)) if (marks.has(markKey(row))) return marks.get(markKey(row));
  return {};
}
function mark(card, id, change) {
  const found = "different" in change
    ? rowsOf(card, id).map(([row]) => [row, false])
    : rowsOf(card, id);
  for (const row of found) {
    const made = { ...marks.get(markKey(row)), ...change };
    if (made.drop || made.different || made.corrected) marks.set(markKey(row), made);
    else marks.delete(markKey(row));
  }
  unsaved = true;
  keepInBrowser();
  refresh(card);
}
const isMarked = (card) => card.cells.some(({ id }) => Object.keys(markOf(card, id)).length)
  || card.rows.some((row) => marks.has(markKey([row, false])));
const isApart = (card, id) => rowsOf(card, id).some(([row]) => marks.get(markKey([row, false]))?.different);

function keepInBrowser() {
  try { localStorage.setItem(data.store, JSON.stringify([...marks])); } catch { /* no storage */ }
}
function recall() {
  for (const cells of [...data.rows, ...data.carried]) {
    const made = { drop: cells[at.drop], different: cells[at.different] === "true", corrected: cells[at.corrected] };
    if (made.drop || made.different || made.corrected) marks.set(keyOf(cells), made);
  }
  try {
    const stored = localStorage.getItem(data.store);
    if (stored) {
      marks.clear();
      for (const [name, made] of JSON.parse(stored)) marks.set(name, made);
    }
  } catch { /* no storage */ }
}

// --- the table: as featx audit --csv writes it ---

const safe = (value) => (/^[=+\-@\t\r\n']/.test(value) ? `'${value}` : value);
const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

function tableRows() {
  const rows = [];
  const left = new Map([...marks]);
  data.rows.forEach((cells, row) => {
    const own = marks.get(markKey([row, false])) || {};
    left.delete(markKey([row, false]));
    rows.push(marked(cells, own));
    const turned = marks.get(markKey([row, true]));
    if (turned && cell(row, "other") && left.delete(markKey([row, true]))) {
      const [id, other] = [cell(row, "other"), cell(row, "sample_id")];
      const image = data.images[id] || {};
      const made = [...cells];
      Object.assign(made, { [at.sample_id]: id, [at.other]: other, [at.likely]: "",
        [at.given]: image.label || "", [at.split]: image.split || "", [at.content]: image.content || "" });
      rows.push(marked(made, turned));
    }
  });
  for (const cells of data.carried) {
    if (left.delete(keyOf(cells))) rows.push(marked(cells, marks.get(keyOf(cells))));
  }
  return rows;
}
function marked(cells, own) {
  const made = [...cells];
  made[at.drop] = own.drop || "";
  made[at.different] = own.different ? "true" : "";
  made[at.corrected] = own.corrected || "";
  return made;
}
// Bytes of names that are no UTF-8 are lone surrogates here, and bytes again in the table.
function bytesOf(value) {
  const encoder = new TextEncoder();
  return value.split(/([\udc80-\udcff])/u).map((part) =>
    (/^[\udc80-\udcff]$/u.test(part) ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : encoder.encode(part)));
}
function table() {
  return [data.columns, ...tableRows()].map((row) => row.map((c) => quoted(safe(c))).join(",") + "\r\n").join("");
}
function save() {
  const link = element("a", { download: "audit.csv" });
  link.href = URL.createObjectURL(new Blob(bytesOf(table()), { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  unsaved = false;
  count();
}

// --- what is seen ---

function picture(id) {
  const image = data.images[id] || {};
  if (!image.picture) return element("div", { class: "picture" }, image.why || "not shown");
  const made = element("img", { src: image.picture, alt: "", loading: "lazy", decoding: "async" });
  made.onload = () => made.classList.toggle("tiny", Math.max(made.naturalWidth, made.naturalHeight) <= 80);
  return element("div", { class: "picture" }, made);
}
function figure(card, { id }, number) {
  const image = data.images[id] || {};
  const made = element("div", { class: "cell" }, picture(id), text("b", image.label || "no label"),
    ` · ${image.split || ""}`, text("small", id));
  made.onclick = () => { now = shown.indexOf(card); card.pick = number; refresh(card); focusCard(false); };
  return made;
}
const SHOWN = 24;

function contents(card) {
  const row = card.rows[0];
  const score = Number(cell(row, "score"));
  if (card.cells.length > 1) {
    const size = sizeOf(card);
    const many = size > data.many ? data.shown : SHOWN;
    const cells = card.cells.slice(0, many).map((each, number) => figure(card, each, number));
    const rest = size - cells.length;
    const lowest = Math.min(...card.rows.map((each) => Number(cell(each, "score"))));
    const notes = [...new Set(card.rows.map((each) => cell(each, "note")).filter(Boolean))];
    const how = lowest >= 1 ? "same content" : `alike by ${lowest.toFixed(2)}`;
    const more = rest > 0 ? ` · and ${rest.toLocaleString("en")} more, in the table` : "";
    const says = `${size > 2 ? `${size.toLocaleString("en")} images · ` : ""}`
      + [card.kind.pairs || how, ...notes].join(" · ") + more;
    return [element("div", { class: "cells" }, ...cells), text("small", says)];
  }
  const says = element("div", { class: "says" });
  const likely = cell(row, "likely");
  const given = cell(row, "given");
  if (likely) {
    says.append(element("div", { class: "labels" }, text("s", given || "no label"),
      element("span", { class: "arrow" }, "→"), text("b", likely, "likely")));
  } else says.append(element("div", { class: "labels" }, text("b", given || "no label")));
  if (data.shares.includes(card.kind.name)) {
    says.append(element("div", { class: "margin", title: "how much the given label is doubted" },
      element("span", { class: "meter" }, element("i", { style: `width:${Math.round(100 * Math.min(1, score))}%` })),
      `doubt ${score.toFixed(2)}`));
  } else if (cell(row, "score")) {
    const limit = cell(row, "limit");
    says.append(text("small", `${card.kind.measure || "score"} ${cell(row, "score")}${limit ? `, limit ${limit}` : ""}`));
  }
  if (cell(row, "note")) says.append(text("small", cell(row, "note")));
  const near = data.near[row] || [];
  if (near.length) {
    says.append(element("small", {}, "nearest trusted images"), element("div", { class: "near" },
      ...near.map((id) => {
        const label = (data.images[id] || {}).label || "";
        const agrees = data.tags ? false : label === likely;
        return element("span", { title: visible(`${id} (${label})`) }, picture(id),
          text("span", label, agrees ? "agrees" : ""));
      })));
  }
  says.append(text("small", `${cell(row, "sample_id")} · ${cell(row, "split")}`));
  const image = element("div", { class: "cell" }, picture(card.cells[0].id));
  return [element("div", { class: "one" }, image, says)];
}

function actions(card) {
  const { id } = card.cells[card.pick];
  const own = markOf(card, id);
  const row = card.rows[0];
  const likely = card.cells.length === 1 ? cell(row, "likely") : "";
  const button = (label, letter, pressed, act) => {
    const where = label.toLowerCase().indexOf(letter);
    const shownLabel = where < 0 ? [visible(label)] : [label.slice(0, where), element("u", {}, label[where]), visible(label.slice(where + 1))];
    return element("button", { "aria-pressed": Boolean(pressed), onclick: (event) => {
      event.stopPropagation();
      now = shown.indexOf(card);
      act();
    } }, ...shownLabel);
  };
  const made = [];
  if (likely && data.guesses.includes(card.kind.name)) made.push(button(`Label: ${likely}`, "l", own.corrected === likely, () => act("l")));
  made.push(button("Keep", "k", own.drop === "false", () => act("k")),
    button("Drop", "d", own.drop === "true", () => act("d")),
    button("Correct…", "c", own.corrected && own.corrected !== likely, () => act("c")));
  if (card.cells.length > 1) made.push(button("Not the same", "n", isApart(card, id), () => act("n")));
  const says = [];
  if (own.drop === "true") says.push(element("span", { class: "mark drop" }, "dropped"));
  if (own.drop === "false") says.push(element("span", { class: "mark keep" }, "kept"));
  if (own.corrected) says.push(text("span", `→ ${own.corrected}`, "mark fix"));
  if (isApart(card, id)) says.push(element("span", { class: "mark apart" }, "different"));
  return element("div", { class: "acts" }, ...made, ...says);
}

function draw(card) {
  const of = card.cells.map(({ id }) => ({ ...markOf(card, id), apart: isApart(card, id) }));
  const name = of.some((m) => m.corrected) ? "fix" : of.some((m) => m.drop === "true") ? "drop"
    : of.some((m) => m.apart) ? "apart" : of.some((m) => m.drop) ? "keep" : "";
  card.node.className = `card ${name} ${card.cells.length > 2 ? "large" : ""}`;
  card.node.replaceChildren(...contents(card), actions(card));
  const isNow = shown[now] === card;
  card.node.classList.toggle("now", isNow);
  if (isNow && card.cells.length > 1) card.node.querySelectorAll(".cell")[card.pick]?.classList.add("now");
}
function refresh(card) {
  if (card.node) draw(card);
  count();
}
function count() {
  const done = cards.filter(isMarked).length;
  $("count").textContent = `${done.toLocaleString("en")} of ${cards.length.toLocaleString("en")} marked${unsaved ? ", not saved" : ""}`;
}

function more(upTo = rendered + 40) {
  for (; rendered < Math.min(upTo, shown.length); rendered++) {
    const card = shown[rendered];
    let section = $("list").lastElementChild;
    if (!section || section.dataset.kind !== card.kind.name) {
      section = element("section", { "data-kind": card.kind.name, class: card.cells.length > 1 ? "pairs" : "" },
        element("header", {}, text("h2", card.kind.title), text("p", card.kind.text)));
      $("list").append(section);
    }
    card.node = element("article", { class: "card" });
    draw(card);
    section.append(card.node);
  }
}

const off = new Set(); // kinds that are not shown
function labelsOf(card) {
  const of = card.rows.flatMap((row) => [cell(row, "given"), cell(row, "likely")])
    .concat(card.cells.map(({ id }) => (data.images[id] || {}).label || ""));
  return data.tags ? of.flatMap((label) => label.split("|")) : of;
}
function show() {
  const current = shown[now];
  const [label, state] = [$("class").value, $("state").value];
  shown = cards.filter((card) => !off.has(card.kind.name)
    && (label === "" || labelsOf(card).includes(label.slice(1)))
    && (!state || isMarked(card) === (state === "done")));
  now = Math.max(0, shown.indexOf(current));
  rendered = 0;
  $("list").replaceChildren();
  if (!shown.length) $("list").append(element("p", { class: "none" }, cards.length ? "Nothing of that." : "Nothing was found."));
  more(Math.max(40, now + 20));
}

function focusCard(scroll = true) {
  more(now + 20);
  document.querySelectorAll(".card.now").forEach((node) => node.classList.remove("now"));
  const card = shown[now];
  if (!card) return;
  draw(card);
  if (scroll) card.node.scrollIntoView({ block: "nearest" });
}
function step(by) {
  const before = shown[now];
  now = Math.min(Math.max(0, now + by), shown.length - 1);
  if (before?.node && before !== shown[now]) draw(before);
  focusCard();
}
function act(letter) {
  const card = shown[now];
  if (!card) return;
  const { id } = card.cells[card.pick];
  const own = markOf(card, id);
  const likely = card.cells.length === 1 ? cell(card.rows[0], "likely") : "";
  const toggled = (name, value) => ({ [name]: own[name] === value ? "" : value });
  if (letter === "c") return correct(card, id);
  if (letter === "l" && !(likely && data.guesses.includes(card.kind.name))) return;
  if (letter === "n" && card.cells.length < 2) return;
  const change = {
    d: () => toggled("drop", "true"),
    k: () => ({ ...toggled("drop", "false"), corrected: "" }),
    l: () => toggled("corrected", likely),
    n: () => ({ different: !isApart(card, id) }),
    u: () => ({ drop: "", corrected: "" }),
  }[letter]();
  mark(card, id, change);
  if (letter === "u" && isApart(card, id)) mark(card, id, { different: false });
  if (card.cells.length <= 2 && letter !== "u" && Object.values(change)[0]) step(1);
  else focusCard(false);
}
function correct(card, id) {
  focusCard();
  const input = element("input", { list: "labels", placeholder: "right label", "aria-label": "right label" });
  input.value = markOf(card, id).corrected || "";
  const end = (value) => {
    input.onblur = null;
    if (value !== undefined) mark(card, id, { corrected: value.trim() });
    draw(card);
  };
  input.onkeydown = (event) => {
    event.stopPropagation();
    if (event.key === "Enter") { end(input.value); step(1); }
    if (event.key === "Escape") end();
  };
  input.onblur = () => end(input.value);
  card.node.querySelector(".acts").append(input);
  input.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  const card = shown[now];
  if (event.key === "ArrowDown") step(1);
  else if (event.key === "ArrowUp") step(-1);
  else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    if (!card || card.cells.length < 2) return;
    const last = Math.min(card.cells.length, card.node.querySelectorAll(".cell").length) - 1;
    card.pick = Math.min(Math.max(0, card.pick + (event.key === "ArrowRight" ? 1 : -1)), last);
    draw(card);
  } else if ("dklncu".includes(event.key) && event.key.length === 1) act(event.key);
  else if (event.key === "s") save();
  else if (event.key === "?") $("help").hidden = !$("help").hidden;
  else return;
  event.preventDefault();
});
window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });

// --- start ---

makeCards();
recall();
for (const kind of data.kinds) {
  const size = cards.filter((card) => card.kind === kind).length;
  $("kinds").append(element("button", { "aria-pressed": true, onclick: (event) => {
    if (off.has(kind.name)) off.delete(kind.name); else off.add(kind.name);
    event.currentTarget.setAttribute("aria-pressed", !off.has(kind.name));
    show();
  } }, `${kind.title} `, text("b", size.toLocaleString("en"))));
}
const labels = [...new Set(cards.flatMap(labelsOf))].filter(Boolean).sort();
$("class").append(element("option", { value: "" }, "all"), ...labels.map((label) =>
  element("option", { value: `=${label}` }, visible(label))));
for (const label of data.classes) $("labels").append(element("option", { value: label }));
$("class").onchange = $("state").onchange = show;
$("save").onclick = save;
$("keys").onclick = () => { $("help").hidden = !$("help").hidden; };
new IntersectionObserver((entries) => { if (entries[0].isIntersecting) more(); },
  { rootMargin: "1500px" }).observe($("end"));
show();
count();
