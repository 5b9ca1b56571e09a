"use strict";
(() => {
  const { data, make, player, short } = Clips;
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, values) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
    return element;
  };
  const curve = (clip) => {
    const box = draw("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", class: "moments", role: "img" });
    box.setAttribute("aria-label", `probability of ${clip.label} over time, ${clip.probability.toFixed(2)} on average`);
    const points = clip.moments.map(([at, value]) => `${100 * at},${37 - 34 * value}`).join(" ");
    const now = draw("line", { x1: 0, x2: 0, y1: 0, y2: 40, class: "now" });
    box.append(draw("line", { x1: 0, x2: 100, y1: 20, y2: 20, class: "half" }), draw("polyline", { points }), now);
    return [box, (part) => { now.setAttribute("x1", 100 * part); now.setAttribute("x2", 100 * part); }];
  };
  const card = (clip) => {
    const box = make("li", "card"), about = make("div", "about"), chips = make("div", "chips");
    const [line, moved] = curve(clip);
    chips.append(make("span", "chip", `is ${clip.label}`));
    chips.append(make("span", clip.right ? "chip good" : "chip bad", `judged ${clip.judged}`));
    about.append(make("div", "name", short(clip.video)), chips);
    about.append(make("div", "quiet", `${clip.label} ${clip.probability.toFixed(3)} · ${Number(clip.sheet.seconds.toPrecision(3))} s`));
    about.title = clip.video;
    box.append(player(clip.sheet, `${clip.label}, ${clip.video}`, moved), line, about);
    return box;
  };
  for (const list of document.querySelectorAll("[data-clips]")) list.append(...data.clips[list.dataset.clips].map(card));
})();
