"use strict";
(function () {
  const root = document.documentElement;
  const figures = document.getElementById("figures").textContent;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = {};
  let printing = false;

  function shown() {
    return root.dataset.theme || (dark.matches ? "dark" : "light");
  }

  // "var(--after)" in a figure is the page's colour of that name, as it is now.
  function filled(text) {
    const style = getComputedStyle(root);
    const value = (name) => JSON.stringify(style.getPropertyValue(name).trim()).slice(1, -1);
    return JSON.parse(text.replace(/var\((--\w+)\)/g, (all, name) => value(name)));
  }

  function draw(place) {
    const figure = filled(figures)[place.dataset.figure];
    const { data, layout } = figure.variants[chosen[place.dataset.figure] || 0];
    layout.height = figure.height;
    layout.width = place.clientWidth;
    return Plotly.react(place, data, layout, { displayModeBar: false, responsive: false });
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
