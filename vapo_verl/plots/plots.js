"use strict";
/* Draws the panels: each when it comes into sight, all again when the colours change. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)"); // a finger that drags wants to scroll
const LIGHT_COLORS = ["#0b62c4", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be185d", "#0e7490", "#57534e", "#4d7c0f", "#1e3a8a"];
const DARK_COLORS = ["#6cb0ff", "#ff9a5c", "#5fd38a", "#c99bff", "#e5c04b", "#ff8fc2", "#5cd3e6", "#c9c2ba", "#b5e05a", "#9fb4ff"];
const MANY = 6; // lines, whose legend takes room

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/* Text that plotly shows as it is: it reads some tags and entities. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
}

function faded(color, alpha) {
  const parts = [1, 3, 5].map(at => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${parts.join(",")},${alpha})`;
}

function bandOf(series, color) {
  const back = series.x.slice().reverse();
  return {
    x: series.x.concat(back), y: series.high.concat(series.low.slice().reverse()), mode: "lines",
    fill: "toself", fillcolor: faded(color, 0.18), line: {width: 0}, hoverinfo: "skip", showlegend: false,
  };
}

function lineOf(series, color) {
  const name = DATA.runs.length > 1 ? `${series.name} (${"AB"[series.run]})` : series.name;
  const trace = {
    x: series.x, y: series.y, name: plain(name), mode: series.x.length > 60 ? "lines" : "lines+markers",
    line: {color, width: 2, dash: series.run ? "dash" : "solid"}, marker: {size: 5, symbol: series.run ? "diamond" : "circle"},
    text: series.texts.map(plain), connectgaps: false,
  };
  if (series.bars) {
    trace.error_y = {
      type: "data", symmetric: false, color, thickness: 1,
      array: series.high.map((high, i) => high - series.y[i]),
      arrayminus: series.low.map((low, i) => series.y[i] - low),
    };
  }
  return trace;
}

function tracesOf(panel) {
  if (panel.heat) {
    return [{
      type: "heatmap", x: panel.heat.x, y: panel.heat.y.map(plain), z: panel.heat.values, zmin: 0,
      colorscale: "Viridis", colorbar: {thickness: 10},
    }];
  }
  const colors = dark.matches ? DARK_COLORS : LIGHT_COLORS;
  const alone = panel.series.every(series => series.color === 0);
  return panel.series.flatMap(series => {
    const color = colors[(alone ? series.run : series.color) % colors.length];
    const banded = series.low.length && !series.bars;
    return banded ? [bandOf(series, color), lineOf(series, color)] : [lineOf(series, color)];
  });
}

function shapesOf(panel) {
  const line = {color: css("--soft"), width: 1, dash: "dot"};
  const shapes = [];
  if (panel.level !== null) {
    shapes.push({type: "line", xref: "paper", x0: 0, x1: 1, y0: panel.level, y1: panel.level, line});
  }
  if (panel.diagonal) shapes.push({type: "line", x0: 0, x1: 1, y0: 0, y1: 1, line});
  return shapes;
}

function layoutOf(panel) {
  const axis = {gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true};
  const fewSteps = panel.x_title === "step" && panel.series.every(series => series.x.length < 8);
  const shares = panel.x_title !== "step" && panel.series.every(series => series.x.every(x => x >= 0 && x <= 1));
  const positive = panel.series.every(series => series.y.every(value => value === null || value >= 0));
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: css("--text"), size: 12},
    margin: {l: 50, r: 12, t: 8, b: 40}, showlegend: panel.series.length > 1 || (DATA.runs.length > 1 && !panel.heat),
    legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: {size: panel.series.length > MANY ? 10 : 12}, maxheight: 0.5}, dragmode: coarse.matches ? false : "zoom",
    xaxis: {...axis, title: {text: panel.x_title}, ...(fewSteps ? {dtick: 1} : {}), ...(shares && !panel.heat ? {range: [-0.02, 1.02]} : {})},
    yaxis: {...axis, title: {text: panel.y_title, standoff: 8}, ...(panel.y_range ? {range: [panel.y_range[0] - 0.02, panel.y_range[1] + 0.02]} : {rangemode: positive ? "nonnegative" : "normal"})},
    shapes: shapesOf(panel),
    annotations: panel.level === null ? [] : [{
      xref: "paper", x: 1, y: panel.level, text: plain(panel.level_name), showarrow: false, xanchor: "right", yanchor: "bottom",
      font: {size: 11, color: css("--soft")},
    }],
    hovermode: "closest",
  };
}

function draw(box) {
  const panel = DATA.panels[box.dataset.panel];
  box.classList.toggle("tall", panel.series.length > MANY);
  Plotly.react(box, tracesOf(panel), layoutOf(panel), {responsive: true, displayModeBar: false});
  box.dataset.drawn = "yes";
}

const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }
}, {rootMargin: "400px"});
const boxes = document.querySelectorAll(".plot");
boxes.forEach(box => seen.observe(box));
dark.addEventListener("change", () => document.querySelectorAll(".plot[data-drawn]").forEach(draw));
addEventListener("beforeprint", () => boxes.forEach(draw));
document.querySelector('nav a[href="#comparison"]').hidden = !document.getElementById("comparison");
