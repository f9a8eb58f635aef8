"use strict";
(function () {
  const list = document.getElementById("cases");
  if (!list) return;
  const form = document.getElementById("filters");
  const told = document.getElementById("told");
  const more = document.getElementById("more");
  const cases = Array.from(list.children);
  const STEP = 40;
  let room = STEP;
  const fits = (one, wanted) =>
    (!wanted.set || one.dataset.set === wanted.set) &&
    (!wanted.category || one.dataset.category === wanted.category) &&
    one.dataset.kinds.split(" ").some((word) => {
      if (wanted.kind === "disagree") return word === "disagree";
      const [run, kind] = word.split(":");
      return kind && (!wanted.run || run === wanted.run) && (!wanted.kind || kind === wanted.kind);
    });
  const show = () => {
    const wanted = {};
    for (const field of form.elements) if (field.name) wanted[field.name] = field.value;
    let found = 0;
    for (const one of cases) {
      const fitting = fits(one, wanted);
      if (fitting) found += 1;
      one.hidden = !fitting || found > room;
    }
    told.textContent = `${Math.min(found, room)} of ${found} shown`;
    more.hidden = found <= room;
  };
  form.addEventListener("change", () => { room = STEP; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { room += STEP; show(); });
  form.hidden = false;
  show();
})();
