"use strict";
/* Clips that play: a sheet of frames below each other, moved by one timer for all of the page. */
const Clips = (() => {
  const playing = new Set();
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const show = (clip, part) => {
    const frame = Math.min(clip.sheet.n - 1, Math.floor(part * clip.sheet.n));
    clip.image.style.transform = `translateY(${(-100 * frame) / clip.sheet.n}%)`;
    clip.time.style.transform = `scaleX(${part})`;
    clip.button.dataset.frame = frame;
    if (clip.moved) clip.moved(part);
  };
  let last = 0;
  const tick = (now) => {
    if (!playing.size) return;
    for (const clip of playing) {
      if (!clip.button.isConnected) { playing.delete(clip); continue; }
      clip.at = (clip.at + Math.min(250, now - last) / 1000 / clip.seconds) % 1;
      show(clip, clip.at);
    }
    last = now;
    requestAnimationFrame(tick);
  };
  const set = (clip, on) => {
    if (clip.sheet.n < 2 || on === playing.has(clip)) return;
    clip.button.setAttribute("aria-pressed", on);
    clip.sign.textContent = on ? "❚❚" : clip.speed;
    if (!on) { playing.delete(clip); return; }
    playing.add(clip);
    if (playing.size === 1) { last = performance.now(); requestAnimationFrame(tick); }
  };
  /* A button that shows the clip: pressed, it plays until it is pressed again; under a pointer, it plays, too. */
  const player = (sheet, alt, moved) => {
    const button = make("button", "clip");
    const image = make("img");
    const clip = { sheet, button, image, moved, at: 0, held: false, time: make("span", "time"), sign: make("span", "sign") };
    /* A few seconds are shown as they were, an hour in six. */
    clip.seconds = Math.max(0.2, Math.min(sheet.seconds, Math.max(6, sheet.n / 8)));
    const faster = sheet.seconds / clip.seconds;
    clip.speed = "▶" + (faster > 1.05 ? ` ${faster.toPrecision(2)}×` : "");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", `Play: ${alt}`);
    button.style.aspectRatio = `${sheet.w} / ${sheet.h}`;
    image.alt = alt;
    image.src = sheet.url;
    clip.sign.textContent = sheet.n > 1 ? clip.speed : "";
    button.append(image, clip.time, clip.sign);
    button.addEventListener("click", () => { clip.held = !clip.held; set(clip, clip.held); });
    button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse" && !still.matches) set(clip, true); });
    button.addEventListener("pointerleave", () => { if (!clip.held) set(clip, false); });
    button.clip = clip;
    show(clip, 0);
    return button;
  };
  const playAll = (root, on) => {
    for (const button of root.querySelectorAll(".clip")) { button.clip.held = on; set(button.clip, on); }
  };
  /* What of a path fits on a card: its end tells most. */
  const short = (path) => {
    const end = path.split("/").slice(-2).join("/");
    return end.length <= 44 ? end : "…" + end.slice(-43);
  };
  const data = JSON.parse(document.getElementById("data").textContent);
  return { data, make, player, playAll, short };
})();
