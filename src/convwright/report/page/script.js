"use strict";
(function () {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = {};
  let printing = false;

  function shown() {
    return root.dataset.theme || (dark.matches ? "dark" : "light");
  }

  // "$after" in a figure is the page's colour of that name, as it is now.
  function filled(value, style) {
    if (typeof value === "string") {
      return value[0] === "$" ? style.getPropertyValue("--" + value.slice(1)).trim() : value;
    }
    if (Array.isArray(value)) {
      return value.map((each) => filled(each, style));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) =>
        [key, ["x", "y", "z", "text", "customdata", "array"].includes(key) && Array.isArray(each) ? each : filled(each, style)]));
    }
    return value;
  }

  function draw(place) {
    const figure = figures[place.dataset.figure];
    const variant = figure.variants[chosen[place.dataset.figure] || 0];
    const style = getComputedStyle(root);
    const layout = filled(variant.layout, style);
    layout.height = figure.height;
    layout.width = place.clientWidth;
    layout.colorway = undefined;
    return Plotly.react(place, filled(variant.data, style), layout, { displayModeBar: false, responsive: false });
  }

  function drawAll() {
    root.dataset.shown = printing ? "light" : shown();
    if (window.Plotly) {
      document.querySelectorAll(".plot").forEach(draw);
    }
  }

  document.querySelectorAll("select[data-chart]").forEach((list) => list.addEventListener("change", () => {
    chosen[list.dataset.chart] = Number(list.value);
    draw(document.querySelector('.plot[data-figure="' + list.dataset.chart + '"]'));
  }));
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = shown() === "dark" ? "light" : "dark";
    drawAll();
  });
  dark.addEventListener("change", drawAll);
  let waiting = 0;
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) { return; }
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 120);
  });
  // Paper is white and narrower than most windows: what is folded is opened, and charts are drawn anew.
  const media = window.matchMedia("print");
  media.addEventListener("change", () => {
    printing = media.matches;
    document.querySelectorAll("details").forEach((each) => { each.open = each.open || printing; });
    drawAll();
  });
  drawAll();
  root.dataset.ready = "yes";
})();
