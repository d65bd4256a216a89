// Draws the figures and keeps them in the page's theme. Nothing here asks the network for anything.
(() => {
  "use strict";
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const templates = read("templates");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const plots = [...document.querySelectorAll(".plot")];
  const narrow = () => innerWidth < 640;
  let printing = false;

  // A page opened from a file may be denied its storage.
  const remembered = () => { try { return localStorage.getItem("holdfast-theme"); } catch { return null; } };
  const remember = (value) => { try { localStorage.setItem("holdfast-theme", value); } catch { /* for this visit only */ } };

  const theme = () => printing ? "light" : root.dataset.theme || (system.matches ? "dark" : "light");
  const label = () => { button.textContent = theme() === "dark" ? "Light theme" : "Dark theme"; };

  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  button.hidden = false;
  label();

  const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  for (const plot of plots) {
    const figure = read(plot.dataset.figure);
    figure.layout.template = templates[theme()];
    if (narrow()) for (const axis of Object.keys(figure.layout).filter((key) => key.startsWith("yaxis"))) {
      figure.layout[axis].tickfont = { size: 9 };
    }
    Plotly.newPlot(plot, figure.data, figure.layout, config);
  }

  const retheme = () => { label(); for (const plot of plots) Plotly.relayout(plot, { template: templates[theme()] }); };
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    retheme();
  });
  system.addEventListener("change", retheme);

  // A sheet of paper is white and about 700 pixels wide.
  addEventListener("beforeprint", () => {
    printing = true;
    for (const plot of plots) Plotly.relayout(plot, { template: templates.light, width: 680 });
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const plot of plots) Plotly.relayout(plot, { template: templates[theme()], width: null, autosize: true });
  });
})();
