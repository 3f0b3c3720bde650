"use strict";
// The answers: kept in the browser, exported and imported. The three scripts share one scope.
// Claims are what a model wrote: they reach the page as text nodes only, never as markup.

const sample = JSON.parse(document.getElementById("sample").textContent);
const QUESTIONS = [
  ["visually_dependent", "Visually dependent"],
  ["answerable", "Answerable"],
  ["label_right", "Label right"],
];
const ANSWERS = [["yes", "Yes"], ["no", "No"], ["unsure", "Unsure"]];
const STORED = "vapo-claims-audit:" + sample.page_id;
const claims = sample.images.flatMap((image, i) => image.claims.map((claim, c) => ({ ...claim, i, c })));
const byId = new Map(claims.map((claim) => [idOf(claim.i, claim.c), claim]));
const at = (id) => document.getElementById(id);
const state = { auditor: "", image: 0, verdicts: {} };

function idOf(image, claim) {
  return image + "." + claim;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function isDone(id) {
  return QUESTIONS.every(([name]) => state.verdicts[id]?.[name]);
}

function answer(id, question, value) {
  state.verdicts[id] = { ...state.verdicts[id], [question]: value };
}

function onlyValid(verdict) {
  const known = QUESTIONS.map(([name]) => [name, verdict?.[name]]);
  return Object.fromEntries(known.filter(([, value]) => ANSWERS.some(([word]) => word === value)));
}

function save() {
  try {
    localStorage.setItem(STORED, JSON.stringify(state));
  } catch {
    say("This browser keeps nothing: export your answers before you close the page.");
  }
}

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORED)) ?? {};
    state.auditor = String(kept.auditor ?? "");
    state.image = Number.isInteger(kept.image) && sample.images[kept.image] ? kept.image : 0;
    for (const id of byId.keys()) {
      const verdict = onlyValid(kept.verdicts?.[id]);
      if (Object.keys(verdict).length) state.verdicts[id] = verdict;
    }
  } catch {
    say("This browser keeps nothing: export your answers before you close the page.");
  }
}

function exported() {
  const verdicts = [...byId]
    .filter(([id]) => state.verdicts[id])
    .map(([id, claim]) => ({
      image_key: sample.images[claim.i].key,
      claim: claim.text,
      label: claim.label,
      ...state.verdicts[id],
    }));
  const { page_id, seed } = sample;
  return { format: "vapo-claims-audit", version: 1, page_id, seed, num_claims: claims.length,
    auditor: state.auditor, exported_at: new Date().toISOString(), verdicts };
}

function exportFile() {
  const text = JSON.stringify(exported(), null, 1);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const name = state.auditor.trim().replace(/[^\p{L}\p{N}]+/gu, "-") || "anonymous";
  make("a", { href: url, download: `audit-${sample.page_id}-${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function importFile(file) {
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    content = null;
  }
  if (content?.format !== "vapo-claims-audit" || !Array.isArray(content.verdicts)) {
    say("Not imported: " + file.name + " is no export of this page.");
    return;
  }
  const key = (image, text, label) => JSON.stringify([image, text, label]);
  const known = new Map();
  for (const [id, claim] of byId) known.set(key(sample.images[claim.i].key, claim.text, claim.label), id);
  let count = 0;
  for (const verdict of content.verdicts) {
    const id = known.get(key(verdict?.image_key, verdict?.claim, verdict?.label));
    if (id === undefined) continue;
    state.verdicts[id] = { ...state.verdicts[id], ...onlyValid(verdict) };
    count += 1;
  }
  state.auditor = state.auditor || String(content.auditor ?? "");
  changed();
  show(state.image);
  say(`Imported ${count} of ${content.verdicts.length} answers from ${file.name}.`);
}
