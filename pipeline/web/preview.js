"use strict";
(() => {
  const PAGE = 48;
  const { data, make, player, playAll, short } = Clips;
  const get = (id) => document.getElementById(id);
  const fields = ["search", "label", "split", "group", "state", "shortest", "longest", "sort"];
  let shown = [], count = 0;

  const fill = (id, name) => {
    const values = [...new Set(data.clips.map((clip) => clip[name]))].sort();
    get(id).append(new Option("all", ""), ...values.map((value) => new Option(value, "=" + value)));
  };
  const number = (value, unit) => (value === null ? "" : `${Number(value.toPrecision(3))} ${unit}`);
  const about = (clip) => {
    const box = make("div", "about");
    box.append(make("div", "name", short(clip.video)));
    const chips = make("div", "chips");
    chips.append(make("span", "chip", clip.label), make("span", "chip", clip.split));
    if (clip.state !== "kept") chips.append(make("span", "chip bad", clip.state));
    box.append(chips);
    const facts = [number(clip.seconds, "s"), clip.motion === null ? "" : `motion ${Number(clip.motion.toPrecision(2))}`];
    box.append(make("div", "quiet", facts.filter(Boolean).join(" · ")));
    if (clip.group !== clip.video) box.append(make("div", "quiet", `group ${short(clip.group)}`));
    if (clip.reason) box.append(make("div", "bad", clip.reason));
    box.title = clip.video;
    return box;
  };
  const card = (clip, tag) => {
    const box = make(tag, "card");
    if (clip.sheet) box.append(player(clip.sheet, `${clip.label}, ${clip.video}`));
    box.append(about(clip));
    return box;
  };

  const wanted = (clip) => {
    const text = get("search").value.toLowerCase();
    const is = (name) => !get(name).value || get(name).value === "=" + clip[name];
    const low = parseFloat(get("shortest").value), high = parseFloat(get("longest").value);
    return is("label") && is("split") && is("group") && is("state")
      && (!text || clip.video.toLowerCase().includes(text) || clip.group.toLowerCase().includes(text))
      && (isNaN(low) || (clip.seconds !== null && clip.seconds >= low)) && (isNaN(high) || (clip.seconds !== null && clip.seconds <= high));
  };
  const order = () => {
    const by = get("sort").value, down = by.startsWith("-") ? -1 : 1, name = by.replace("-", "");
    return (a, b) => {
      const x = a[name], y = b[name];
      if (x === null || y === null) return (x === null) - (y === null);
      return down * (x < y ? -1 : x > y ? 1 : 0) || a.place - b.place;
    };
  };
  const more = () => {
    get("grid").append(...shown.slice(count, count + PAGE).map((clip) => card(clip, "li")));
    count = Math.min(shown.length, count + PAGE);
    get("more").hidden = count >= shown.length;
    get("count").textContent = `${shown.length} of ${data.clips.length} match` + (count < shown.length ? `, the first ${count} are shown` : "");
    if (get("play").getAttribute("aria-pressed") === "true") playAll(get("grid"), true);
  };
  const refresh = () => {
    shown = data.clips.filter(wanted).sort(order());
    count = 0;
    get("grid").replaceChildren();
    more();
  };

  data.clips.forEach((clip, place) => { clip.place = place; });
  for (const name of ["label", "split", "group", "state"]) fill(name, name);
  for (const name of fields) get(name).addEventListener("input", refresh);
  get("bar").addEventListener("submit", (event) => event.preventDefault());
  get("bar").addEventListener("reset", () => setTimeout(refresh));
  get("more").addEventListener("click", more);
  get("play").addEventListener("click", () => {
    const on = get("play").getAttribute("aria-pressed") !== "true";
    get("play").setAttribute("aria-pressed", on);
    get("play").textContent = on ? "Pause all" : "Play all";
    playAll(get("grid"), on);
  });
  get("pairs").append(...data.pairs.map((pair) => {
    const box = make("div", "pair");
    box.append(make("p", pair.harms ? "bad" : "", pair.text), card(pair.a, "div"), card(pair.b, "div"));
    return box;
  }));
  refresh();
})();
