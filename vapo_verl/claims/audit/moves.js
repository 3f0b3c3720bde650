// Keys, buttons and files. Last of the three scripts: it starts the page.

function goTo(image) {
  if (!sample.images[image]) return;
  show(image);
  save();
  document.querySelector("main").scrollIntoView();
  focusCard(at("claims").firstElementChild, true);
}

function focusCard(element, stay = false) {
  element?.focus({ preventScroll: stay });
  if (!stay) element?.scrollIntoView({ block: "nearest" });
}

function goToOpen() {
  const open = [...byId.keys()].find((id) => !isDone(id));
  if (open === undefined) {
    say("Every claim is judged: export your answers.");
    return;
  }
  const { i } = byId.get(open);
  if (i !== state.image) goTo(i);
  focusCard(cardOf(open));
}

function currentCard() {
  return document.activeElement?.closest?.("#claims > li");
}

function step(by) {
  const here = currentCard();
  const wanted = by > 0 ? here?.nextElementSibling : here?.previousElementSibling;
  if (wanted || !here) focusCard(wanted ?? at("claims").firstElementChild);
  else if (by > 0) at(at("next").disabled ? "open" : "next").focus();
}

function turn(number) {
  const here = currentCard();
  if (!here) return;
  const id = here.dataset.id;
  const name = QUESTIONS[number][0];
  const words = ANSWERS.map(([word]) => word);
  const next = words[(words.indexOf(state.verdicts[id]?.[name]) + 1) % words.length];
  answer(id, name, next);
  mark(id, name);
  changed();
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  n: () => goTo(state.image + 1),
  p: () => goTo(state.image - 1),
  o: goToOpen,
  y: () => {
    const here = currentCard();
    if (here) { allYes(here.dataset.id); step(1); }
  },
  1: () => turn(0),
  2: () => turn(1),
  3: () => turn(2),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.('input[type="text"]');
  const action = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : undefined;
  if (!action || typing || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  action();
});
at("auditor").addEventListener("input", (event) => { state.auditor = event.target.value; save(); });
at("export").addEventListener("click", exportFile);
at("import").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) await importFile(file);
  at("auditor").value = state.auditor;
  event.target.value = "";
});
at("zoom").addEventListener("click", () => {
  const pressed = at("zoom").getAttribute("aria-pressed") === "true";
  at("zoom").setAttribute("aria-pressed", String(!pressed));
});
at("previous").addEventListener("click", () => goTo(state.image - 1));
at("next").addEventListener("click", () => goTo(state.image + 1));
at("open").addEventListener("click", goToOpen);
new ResizeObserver(([entry]) => {
  const height = Math.ceil(entry.borderBoxSize[0].blockSize);
  document.documentElement.style.setProperty("--header", `calc(${height}px + .8rem)`);
}).observe(document.querySelector("header"));

load();
at("auditor").value = state.auditor;
show(state.image);
