// What is on the page: the counts, the image, and a card for each of its claims.

function say(text) {
  at("message").textContent = text;
}

function changed() {
  save();
  showCounts();
}

function showCounts() {
  const done = [...byId.keys()].filter(isDone).length;
  at("progress").textContent =
    `Image ${state.image + 1} of ${sample.images.length}, ${done} of ${claims.length} claims judged`;
  at("done").max = claims.length;
  at("done").value = done;
  const tiles = QUESTIONS.map(([name, title]) => {
    const given = Object.values(state.verdicts).map((verdict) => verdict[name]).filter(Boolean);
    const yes = given.filter((value) => value === "yes").length;
    const unsure = given.filter((value) => value === "unsure").length;
    const share = given.length ? (100 * yes / given.length).toFixed(1) + " %" : "–";
    const counts = `${yes} of ${given.length}` + (unsure ? `, ${unsure} unsure` : "");
    const value = make("dd", {}, make("b", { textContent: share }), " ",
      make("small", { textContent: counts }));
    value.dataset.share = name;
    return make("div", {}, make("dt", { textContent: title }), value);
  });
  at("shares").replaceChildren(...tiles);
  for (const card of at("claims").children) card.classList.toggle("done", isDone(card.dataset.id));
}

function question(id, name, title) {
  const choices = ANSWERS.map(([value, word]) => {
    const radio = make("input", { type: "radio", name: id + name, value });
    radio.checked = state.verdicts[id]?.[name] === value;
    radio.addEventListener("change", () => { answer(id, name, value); changed(); });
    return make("label", {}, radio, make("span", { textContent: word }));
  });
  const field = make("fieldset", {}, make("legend", { textContent: title }),
    make("span", { className: "choices" }, ...choices));
  field.dataset.question = name;
  return field;
}

function card(image, claim, number) {
  const id = idOf(image, number);
  const all = make("button", { type: "button", className: "yes-all", textContent: "All yes" });
  all.addEventListener("click", () => { allYes(id); });
  const text = make("div", { className: "claim" },
    make("span", { className: "number", textContent: number + 1 }),
    make("span", { className: "text", dir: "auto", textContent: claim.text }),
    make("span", { className: "label " + claim.label, textContent: "labelled " + claim.label }), all);
  const questions = QUESTIONS.map(([name, title]) => question(id, name, title));
  const item = make("li", { tabIndex: -1 }, text, make("div", { className: "answers" }, ...questions));
  item.dataset.id = id;
  item.setAttribute("aria-label", `Claim ${number + 1}: ${claim.text}`);
  return item;
}

function show(image) {
  state.image = image;
  const { uri, width, source, model, claims: own } = sample.images[image];
  at("image").src = uri;
  at("image").alt = `Image ${image + 1} of the sample`;
  at("image").classList.toggle("small", width < 320);
  at("zoom").setAttribute("aria-pressed", "false");
  at("caption").textContent = `${source}, claims by ${model}`;
  at("claims").replaceChildren(...own.map((claim, number) => card(image, claim, number)));
  at("previous").disabled = image === 0;
  at("next").disabled = image === sample.images.length - 1;
  showCounts();
}

function cardOf(id) {
  return at("claims").querySelector(`[data-id="${id}"]`);
}

function mark(id, name) {
  for (const radio of cardOf(id).querySelectorAll(`[data-question="${name}"] input`)) {
    radio.checked = radio.value === state.verdicts[id]?.[name];
  }
}

function allYes(id) {
  for (const [name] of QUESTIONS) {
    answer(id, name, "yes");
    mark(id, name);
  }
  changed();
}
