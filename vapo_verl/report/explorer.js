/* One response at a time. Whatever a model wrote becomes text nodes, never markup. */
const $ = id => document.getElementById(id);
const strongest = (() => {
  const values = DATA.samples.flatMap(sample => sample.attention).filter(value => value !== null).sort((a, b) => a - b);
  return values.length ? Math.max(values[Math.floor(0.98 * (values.length - 1))], 1e-6) : 0;
})();
let shownSamples = [], place = 0;

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function answer(value) {
  return value === null ? "–" : value ? "yes" : "no";
}

function number(value) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(3)));
}

function lacksAttention(sample) {
  const others = DATA.samples.some(other => other.run === sample.run && other.attention.length);
  return others
    ? "This response has no visual attention: its prompt shows no image, or more than vapo.attention.max_spans."
    : "No visual attention was exported: vapo.attention.enabled=true colours the tokens.";
}

function tokenSpan(sample, at) {
  const span = element("span", sample.tokens[at]), value = sample.attention[at];
  if (value !== null && value !== undefined) {
    span.style.backgroundColor = `rgb(${css("--heat").split(" ").join(",")},${(0.75 * Math.min(value / strongest, 1)).toFixed(3)})`;
    span.title = `token ${at + 1}: ${number(value)}`;
  }
  span.dataset.token = at;
  return span;
}

function anchorMark(anchor, at) {
  const kind = anchor.correct ? "right" : "wrong";
  const mark = element("button", `${at + 1} ${anchor.correct ? "✓" : "✗"}`, `anchor ${kind}`);
  mark.type = "button";
  mark.title = `${anchor.claim}\nlabel ${anchor.label ? "true" : "false"}, answer ${answer(anchor.answer)}, p(yes) ${number(anchor.p_yes)}`;
  mark.setAttribute("aria-label", `Anchor ${at + 1}, ${kind}`);
  mark.addEventListener("click", () => choose(at));
  return mark;
}

function choose(at) {
  const rows = document.querySelectorAll("#anchors tbody tr");
  rows.forEach((row, i) => row.classList.toggle("chosen", i === at));
  rows[at].scrollIntoView({block: "nearest"});
}

function fillResponse(sample) {
  const marks = new Map();
  sample.anchors.forEach((anchor, i) => {
    const at = Math.min(anchor.position ?? 0, sample.tokens.length);
    marks.set(at, [...(marks.get(at) ?? []), anchorMark(anchor, i)]);
  });
  const parts = [];
  for (let at = 0; at <= sample.tokens.length; at++) {
    parts.push(...(marks.get(at) ?? []));
    if (at < sample.tokens.length) parts.push(tokenSpan(sample, at));
  }
  $("response").replaceChildren(...parts);
}

function fillImages(sample) {
  $("images").replaceChildren(...sample.images.map((at, i) => {
    const image = new Image();
    image.alt = `Image ${i + 1} of the prompt`;
    image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 128));
    image.src = DATA.images[at];
    return image;
  }));
}

function fillAnchors(sample) {
  const names = [...document.querySelectorAll("#anchors th")].map(head => head.textContent);
  const rows = sample.anchors.map((anchor, i) => {
    const row = document.createElement("tr");
    const cells = [i + 1, anchor.position ?? "–", anchor.claim ?? "", anchor.label ? "true" : "false", answer(anchor.answer), number(anchor.p_yes)];
    row.append(...cells.map(cell => element("td", cell)));
    row.append(element("td", anchor.correct ? "✓ correct" : "✗ incorrect", anchor.correct ? "right" : "wrong"));
    [...row.cells].forEach((cell, at) => { cell.dataset.name = names[at]; });
    return row;
  });
  document.querySelector("#anchors tbody").replaceChildren(...rows);
  $("anchors").hidden = rows.length === 0;
  $("no-anchors").textContent = rows.length ? "" :
    "This response was not probed: vapo.anchors.num_anchors > 0 probes correct ones, vapo.anchors.gate=always all.";
}

function facts(sample) {
  const rewards = Object.entries(sample.reward).map(([part, value]) => `${part} ${number(value)}`).join(", ");
  const right = sample.correct === null ? "not scored" : sample.correct ? "✓ correct" : "✗ incorrect";
  const run = DATA.runs.length > 1 ? `${DATA.runs[sample.run]}, ` : "";
  return `${run}step ${sample.step ?? "–"}, ${sample.data_source} ${sample.index ?? ""}, sample ${sample.sample ?? "–"}: ${right}; ` +
    `expected answer ${sample.ground_truth}; ${sample.num_tokens} tokens; ${rewards}`;
}

function show() {
  const sample = shownSamples[place];
  $("count").textContent = sample ? `${place + 1} of ${shownSamples.length}` : "No response fits.";
  $("previous").disabled = place <= 0;
  $("next").disabled = place >= shownSamples.length - 1;
  $("sample").hidden = !sample;
  if (!sample) return;
  $("facts").textContent = facts(sample);
  fillImages(sample);
  $("prompt").textContent = sample.prompt;
  $("legend").hidden = sample.attention.length === 0;
  $("hint").textContent = [
    sample.attention.length ? "" : lacksAttention(sample),
    sample.num_tokens > sample.tokens.length ? `The first ${sample.tokens.length} tokens are shown.` : "",
  ].join(" ").trim();
  $("value").textContent = "";
  fillResponse(sample);
  fillAnchors(sample);
}

function filter() {
  const run = $("run").value, step = $("step").value, right = $("right").value;
  shownSamples = DATA.samples.filter(sample =>
    String(sample.run) === run && (!step || String(sample.step) === step) && (!right || String(sample.correct === true) === right));
  place = 0;
  show();
}

function fillSteps() {
  const steps = DATA.samples.filter(sample => String(sample.run) === $("run").value).map(sample => sample.step);
  const options = [...new Set(steps)].map(step => new Option(step, step));
  $("step").replaceChildren(new Option("all", ""), ...options);
}

DATA.runs.forEach((name, i) => $("run").append(new Option(name, i)));
$("run-choice").hidden = DATA.runs.length < 2;
$("low").textContent = "0";
$("high").textContent = `${number(strongest)} and more`;
$("run").addEventListener("change", () => { fillSteps(); filter(); });
$("step").addEventListener("change", filter);
$("right").addEventListener("change", filter);
$("previous").addEventListener("click", () => { place -= 1; show(); });
$("next").addEventListener("click", () => { place += 1; show(); });
$("response").addEventListener("click", event => {
  if (event.target.dataset.token) $("value").textContent = event.target.title;
});
$("tools").hidden = DATA.samples.length === 0;
fillSteps();
filter();
if (DATA.samples.length === 0) $("count").textContent = "";
