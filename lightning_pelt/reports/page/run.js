"use strict";
/* Draws the charts and the heat map of gates. Names from the run are only ever set as text. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tip = document.getElementById("tip");
  const two = data.runs.length > 1;
  const DASHES = ["", "8 5", "2 4", "10 4 2 4"];
  const MOST_IN_TIP = 10;
  const drawn = [];

  // -- elements and numbers ---------------------------------------------------------------------

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const html = (tag, attributes = {}, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  function shown(value) {
    if (value === null || value === undefined) return "not a number";
    const size = Math.abs(value);
    return size >= 1e6 || (size && size < 1e-3) ? (+value.toPrecision(3)).toExponential() : String(+value.toPrecision(4));
  }
  const whole = (step) => step.toLocaleString("en");

  function epochText(run, step) {
    const { epochs } = data.runs[run];
    // Gates of the first steps are logged before the number of the epoch is.
    const found = epochs.findLast(([start]) => start <= step) ?? epochs[0];
    return found ? `, epoch ${found[1]}` : "";
  }

  function colourAt(t) {
    const place = Math.min(Math.max(t, 0), 1) * (data.colours.length - 1);
    const low = Math.floor(place);
    const next = data.colours[Math.min(low + 1, data.colours.length - 1)];
    return data.colours[low].map((c, i) => Math.round(c + (place - low) * (next[i] - c)));
  }
  const rgb = (channels) => `rgb(${channels.join(",")})`;
  // The darkest colours vanish on a dark card, and the lightest on a light one.
  const depthColour = (t) => rgb(colourAt(dark.matches ? 0.3 + 0.7 * t : 0.86 * t));

  function inkOn(channels) {
    const linear = channels.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.26 ? "#ffffff" : "#1f2430";
  }

  function ticks(low, high, most) {
    const raw = (high - low) / most || 1;
    const size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * size).find((each) => each >= raw * 0.999);
    const first = Math.ceil(low / step - 1e-9);
    const count = Math.floor(high / step + 1e-9) - first + 1;
    return Array.from({ length: Math.max(count, 0) }, (_, i) => +((first + i) * step).toPrecision(12));
  }

  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++)
      for (const factor of high - low > 2.5 ? [1] : [1, 2, 5]) {
        const place = power + Math.log10(factor);
        if (place >= low - 1e-9 && place <= high + 1e-9) found.push(+(factor * 10 ** power).toPrecision(6));
      }
    return found;
  }

  // -- what floats beside the pointer -----------------------------------------------------------

  function showTip(rows, x, y) {
    tip.replaceChildren(...rows);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${Math.max(Math.min(y + 16, innerHeight - box.height - 4), 4)}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  // -- charts -----------------------------------------------------------------------------------

  const bounds = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);

  /** The first and the last step of some runs. */
  function stepsOf(runs) {
    const steps = runs.flatMap((run) => [
      ...data.charts.flatMap((chart) => chart.runs[run].flatMap((line) => line.points.map((p) => p[0]))),
      ...data.runs[run].gates.steps,
    ]);
    const [first, last] = steps.length ? bounds(steps) : [0, 1];
    return [first, Math.max(last, first + 1)];
  }

  const shared = stepsOf(data.runs.map((_, run) => run));
  const own = data.runs.map((_, run) => stepsOf([run]));
  const ownSteps = document.getElementById("own-steps"); // a box, if there are two runs
  const spanOf = (run) => (ownSteps?.checked ? own[run] : shared);

  const strokeOf = (line) => (line.depth === undefined ? `var(--c${line.colour})` : depthColour(line.depth));
  const dashOf = (line) => DASHES[(line.dash ?? 0) % DASHES.length];

  function nearest(points, step) {
    let [low, high] = [0, points.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? points[low] : points[high];
  }

  class Chart {
    constructor(host, spec) {
      this.spec = spec;
      this.log = (spec.section === "rates" && this.differ()) || (spec.section === "curves" && this.hasPeak());
      this.steps = [...new Set(spec.runs.flat().flatMap((l) => l.points.map((p) => p[0])))].sort((a, b) => a - b);
      this.figure = html("figure", two ? { class: "wide" } : {}, html("figcaption", {}, spec.title));
      this.legend = html("div", { class: "legend" });
      const plots = html("div", { class: "plots" });
      this.places = spec.runs.map((_, run) => {
        const place = html("div");
        if (two) place.append(html("h4", {}, data.runs[run].name));
        plots.append(place);
        return place;
      });
      this.figure.append(this.legend, plots);
      host.append(this.figure);
      drawn.push(this);
    }

    /** Whether lines would be flat at the bottom of a linear scale. */
    differ() {
      const tops = this.spec.runs.flat().map((l) => Math.max(...l.points.map((p) => p[1] ?? 0))).filter((v) => v > 0);
      return tops.length > 1 && Math.max(...tops) > 8 * Math.min(...tops);
    }

    /** Whether a few values are so high that the others would be flat. */
    hasPeak() {
      const values = this.spec.runs.flat().flatMap((l) => l.points.map((p) => p[1])).filter((v) => v !== null).sort((a, b) => a - b);
      return values.length > 20 && values[0] > 0 && values.at(-1) > 10 * values[Math.floor(values.length * 0.95)];
    }

    y(value) { return this.log ? (value > 0 ? Math.log10(value) : null) : value; }

    domain() {
      const values = this.spec.runs.flat().flatMap((l) => l.points.map((p) => p[1])).filter((v) => v !== null);
      const places = values.map((v) => this.y(v)).filter((v) => v !== null);
      if (!places.length) return [0, 1];
      const ends = this.spec.shared ?? places;
      const [low, high] = bounds(ends);
      const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 0.5;
      const floor = !this.log && low >= 0 && low < room * 4 ? 0 : low - room;
      return [floor, high + room];
    }

    draw() {
      this.drawLegend();
      this.range = this.domain();
      this.cursors = [];
      this.places.forEach((place, run) => {
        place.querySelector("svg")?.remove();
        place.querySelector("p")?.remove();
        const lines = this.spec.runs[run];
        if (lines.length) place.append(this.plot(place.clientWidth, run, lines));
        else place.append(html("p", { class: "none" }, "Not logged in this run."));
      });
    }

    drawLegend() {
      const seen = new Map(this.spec.runs.flat().map((line) => [line.label, line]));
      const items = this.spec.ramp ? [depthKey()] : [...seen.values()].map((line) =>
        html("span", {}, svg("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" },
          svg("line", { x1: 1, x2: 29, y1: 6, y2: 6, style: `stroke:${strokeOf(line)}`, "stroke-width": 4, "stroke-dasharray": dashOf(line) })),
        line.label));
      const values = this.spec.runs.flat().flatMap((l) => l.points.map((p) => p[1])).filter((v) => v > 0);
      if (values.length && ["curves", "rates", "other"].includes(this.spec.section)) {
        const box = html("input", { type: "checkbox" });
        box.checked = this.log;
        box.addEventListener("change", () => { this.log = box.checked; this.draw(); this.legend.querySelector("input").focus(); });
        items.push(html("label", {}, box, " log scale"));
      }
      this.legend.replaceChildren(...items);
    }

    plot(width, run, lines) {
      const span = spanOf(run);
      const [low, high] = this.range;
      const marks = this.log ? logTicks(low, high) : ticks(low, high, 6);
      const left = 40 + 9 * Math.max(1, ...marks.map((m) => shown(m).length));
      const size = { left, right: width - 14, top: 12, bottom: 232 };
      const x = (step) => size.left + ((step - span[0]) / (span[1] - span[0])) * (size.right - size.left);
      const y = (value) => size.bottom - ((this.y(value) - low) / (high - low)) * (size.bottom - size.top);
      const root = svg("svg", { viewBox: `0 0 ${width} 284`, height: 284, tabindex: 0, role: "img", "aria-label": this.describe(run, lines) });
      for (const mark of marks) root.append(
        svg("line", { class: "grid", x1: size.left, x2: size.right, y1: y(mark), y2: y(mark) }),
        svg("text", { class: "faint", x: size.left - 8, y: y(mark) + 5, "text-anchor": "end" }, shown(mark)));
      for (const mark of ticks(...span, Math.max(2, width / 120)).filter(Number.isInteger)) root.append(
        svg("line", { class: "axis", x1: x(mark), x2: x(mark), y1: size.bottom, y2: size.bottom + 6 }),
        svg("text", { class: "faint", x: x(mark), y: size.bottom + 22, "text-anchor": "middle" }, whole(mark)));
      root.append(
        svg("line", { class: "axis", x1: size.left, x2: size.right, y1: size.bottom, y2: size.bottom }),
        svg("text", { x: (size.left + size.right) / 2, y: 280, "text-anchor": "middle" }, "optimizer step"),
        svg("text", { transform: `translate(14 ${(size.top + size.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, short(this.spec.axis, 30)));
      for (const line of lines) this.drawLine(root, line, x, y, size);
      this.listen(root, run, lines, { x, y, size, span });
      return root;
    }

    drawLine(root, line, x, y, size) {
      let path = "", open = false, lastCross = -Infinity;
      const stroke = strokeOf(line);
      const kept = line.points.filter((p) => p[1] !== null && this.y(p[1]) !== null);
      for (const [step, value] of line.points) {
        const here = value !== null && this.y(value) !== null;
        if (here) path += `${open ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
        if (value === null && x(step) - lastCross > 14) lastCross = x(step), root.append(svg("path", { class: "cross", style: `stroke:${stroke}`,
          d: `M${x(step) - 5} ${size.bottom - 12}l10 10m0 -10l-10 10` }, svg("title", {}, `${line.label} is not a number at step ${step}`)));
        open = here;
      }
      root.append(svg("path", { class: "line", d: path, style: `stroke:${stroke}`, "stroke-dasharray": dashOf(line) }));
      if (kept.length <= 12) for (const [step, value] of kept)
        root.append(svg("circle", { cx: x(step), cy: y(value), r: kept.length === 1 ? 6 : 4, style: `fill:${stroke}` }));
    }

    describe(run, lines) {
      const ends = lines.slice(0, 8).map((l) => `${l.label} ${shown(l.points[0][1])} to ${shown(l.points.at(-1)[1])}`);
      return `${this.spec.title}${two ? `, ${data.runs[run].name}` : ""}, by optimizer step. ${ends.join("; ")}. Arrow keys move through the values.`;
    }

    listen(root, run, lines, { x, y, size, span }) {
      const cursor = svg("g", { visibility: "hidden" });
      root.append(cursor);
      this.cursors[run] = (step) => {
        cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
        if (step === null) return;
        cursor.replaceChildren(svg("line", { class: "cursor", x1: x(step), x2: x(step), y1: size.top, y2: size.bottom }));
        for (const line of lines) {
          const [at, value] = nearest(line.points, step);
          if (value !== null && this.y(value) !== null) cursor.append(svg("circle", { cx: x(at), cy: y(value), r: 5, style: `fill:${strokeOf(line)}` }));
        }
      };
      const show = (step, pageX, pageY, height = null) => {
        this.at = step;
        for (const move of this.cursors) move?.(step);
        showTip(this.rows(step, height), pageX, pageY);
      };
      const hide = () => { for (const move of this.cursors) move?.(null); hideTip(); };
      const scale = () => root.getBoundingClientRect();
      root.addEventListener("pointermove", (event) => {
        const box = scale();
        const step = span[0] + ((event.clientX - box.left - size.left) / (size.right - size.left)) * (span[1] - span[0]);
        show(nearest(this.steps.map((s) => [s]), step)[0], event.clientX, event.clientY, (value) =>
          this.y(value) === null ? Infinity : Math.abs(y(value) - (event.clientY - box.top)));
      });
      root.addEventListener("pointerleave", hide);
      root.addEventListener("blur", hide);
      root.addEventListener("keydown", (event) => {
        const last = this.steps.length - 1;
        const index = Math.max(this.steps.indexOf(this.at ?? this.steps[last]), 0);
        const next = { ArrowLeft: index - 1, ArrowRight: index + 1, PageUp: index + 10, PageDown: index - 10, Home: 0, End: last }[event.key];
        if (event.key === "Escape") hide();
        if (next === undefined) return;
        event.preventDefault();
        const step = this.steps[Math.min(Math.max(next, 0), last)];
        const box = scale();
        show(step, box.left + x(step), box.top + size.top);
      });
    }

    rows(step, distance) {
      const rows = [];
      this.spec.runs.forEach((lines, run) => {
        if (!lines.length) return;
        rows.push(html("p", {}, html("b", {}, `${two ? `${data.runs[run].name}, ` : ""}step ${whole(step)}`), epochText(run, step)));
        let found = lines.map((line) => [line, nearest(line.points, step)]);
        if (found.length > MOST_IN_TIP && distance) found = [...found].sort((a, b) => distance(a[1][1] ?? NaN) - distance(b[1][1] ?? NaN));
        for (const [line, [at, value]] of found.slice(0, MOST_IN_TIP)) {
          const mark = html("i");
          mark.style.background = strokeOf(line);
          rows.push(html("p", {}, mark, `${line.label}: `, html("b", {}, shown(value)), at === step ? "" : ` at step ${whole(at)}`));
        }
        if (found.length > MOST_IN_TIP) rows.push(html("p", { class: "none" }, `and ${found.length - MOST_IN_TIP} more`));
      });
      return rows;
    }
  }

  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  function depthKey() {
    const ramp = html("span", { class: "ramp" });
    ramp.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(depthColour).join(",")})`;
    return html("span", {}, `block ${data.blocks[0]}`, ramp, data.blocks.at(-1));
  }

  // -- the heat map of gates --------------------------------------------------------------------

  class HeatMap {
    constructor(host) {
      this.steps = [...new Set(data.runs.flatMap((run) => run.gates.steps))].sort((a, b) => a - b);
      this.figure = html("figure", { class: two ? "wide" : "" }, html("figcaption", {}, "Mean gate over the batch, by block and submodule"));
      this.slider = html("input", { type: "range", min: 0, max: this.steps.length - 1, step: 1, id: "step" });
      this.slider.value = this.steps.length - 1;
      this.output = html("output", { for: "step" });
      this.stretch = html("input", { type: "checkbox" });
      this.key = html("div", { class: "legend" });
      const plots = html("div", { class: "plots" });
      this.places = data.runs.map((run) => {
        const place = html("div");
        if (two) place.append(html("h4", {}, run.name));
        plots.append(place);
        return place;
      });
      this.figure.append(html("div", { class: "slider" }, html("label", { for: "step" }, "Step"), this.slider, this.output), this.key, plots);
      host.append(this.figure);
      this.slider.addEventListener("input", () => this.draw());
      this.stretch.addEventListener("change", () => this.draw());
      drawn.push(this);
    }

    bounds() {
      if (!this.stretch.checked) return [0, 1];
      const values = data.runs.flatMap((run) => run.gates.values.flat(2)).filter((v) => v !== null);
      const [low, high] = bounds(values);
      return high > low ? [low, high] : [0, 1];
    }

    draw() {
      const step = this.steps[this.slider.value];
      const text = `${whole(step)} of ${whole(this.steps.at(-1))}${two ? "" : epochText(0, step)}`;
      this.output.textContent = text;
      this.slider.setAttribute("aria-valuetext", `step ${text}`);
      const [low, high] = this.bounds();
      const ramp = html("span", { class: "ramp" });
      ramp.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map((t) => rgb(colourAt(t))).join(",")})`;
      const ends = this.stretch.checked ? [shown(low), shown(high)] : ["0 closed", "1 open"];
      if (!this.key.firstChild) this.key.append(html("span"), html("label", {}, this.stretch, " fit colours to values"));
      this.key.firstChild.replaceChildren(ends[0], ramp, ends[1]);
      this.places.forEach((place, run) => {
        place.querySelector("svg")?.remove();
        place.querySelector("p")?.remove();
        const gates = data.runs[run].gates;
        if (!gates.steps.length) { place.append(html("p", { class: "none" }, "No gates were logged in this run.")); return; }
        let index = gates.steps.findLastIndex((each) => each <= step);
        index = Math.max(index, 0);
        if (two) place.append(html("p", { class: "none" }, `step ${whole(gates.steps[index])}${epochText(run, gates.steps[index])}`));
        place.append(this.grid(place.clientWidth, run, gates.values[index], gates.steps[index], low, high));
      });
    }

    grid(width, run, values, step, low, high) {
      const left = 34 + 8.6 * Math.max(...data.blocks.map((b) => Math.min(b.length, 24)));
      const cell = Math.min((width - left - 4) / data.sites.length, 150);
      const tall = data.blocks.length <= 14 ? 34 : data.blocks.length <= 28 ? 25 : 18;
      const longest = Math.max(...data.sites.map((s) => Math.min(s.length, 24)));
      const turned = longest * 8.6 > cell - 6;
      const top = turned ? 12 + longest * 6.2 : 26;
      const root = svg("svg", { viewBox: `0 0 ${width} ${top + tall * data.blocks.length + 8}`, role: "img",
        "aria-label": `Mean gates${two ? ` of ${data.runs[run].name}` : ""} at step ${step}: rows are blocks, input first; columns are submodules. Arrow keys move through the values.`, tabindex: 0 });
      root.style.height = `${top + tall * data.blocks.length + 8}px`;
      data.sites.forEach((site, i) => {
        const [x, y] = [left + cell * (i + 0.5), top - 9];
        root.append(svg("text", turned ? { transform: `translate(${x} ${y}) rotate(-38)` } : { x, y, "text-anchor": "middle" }, short(site, 24)));
      });
      root.append(svg("text", { class: "faint", "text-anchor": "middle", transform: `translate(13 ${top + (tall * data.blocks.length) / 2}) rotate(-90)` },
        data.blocks.length > 3 ? "block, input first" : "block"));
      const cells = [];
      data.blocks.forEach((block, row) => {
        root.append(svg("text", { x: left - 8, y: top + tall * (row + 0.5) + 5, "text-anchor": "end", style: tall < 20 ? "font-size:13px" : "" }, short(block, 24)));
        cells.push(data.sites.map((site, i) => this.cell(left + cell * i, top + tall * row, cell, tall, values[row][i], `block ${block}, ${site}`, step, low, high)));
        root.append(...cells[row]);
      });
      this.walk(root, cells);
      return root;
    }

    /** Arrow keys, Home and End move through the cells. */
    walk(root, cells) {
      const [rows, columns] = [cells.length, cells[0].length];
      let at = null;
      const leave = () => { at?.classList.remove("at"); at = null; hideTip(); };
      root.addEventListener("blur", leave);
      root.addEventListener("keydown", (event) => {
        if (event.key === "Escape") leave();
        const row = Math.max(cells.findIndex((each) => each.includes(at)), 0);
        const column = Math.max(cells[row].indexOf(at), 0);
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -columns], End: [0, columns] }[event.key];
        if (!move) return;
        event.preventDefault();
        const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
        const next = at === null ? cells[0][0] : cells[within(row + move[0], rows)][within(column + move[1], columns)];
        at?.classList.remove("at");
        at = next;
        at.classList.add("at");
        const box = at.getBoundingClientRect();
        at.show(box.left + box.width / 2, box.top + box.height / 2);
      });
    }

    cell(x, y, wide, tall, value, name, step, low, high) {
      const channels = value === null ? null : colourAt((value - low) / (high - low));
      const group = svg("g", { "data-gate": name });
      group.append(svg("rect", { x: x + 1, y: y + 1, width: wide - 2, height: tall - 2, rx: 3, style: `fill:${channels ? rgb(channels) : "var(--missing)"}` }));
      if (channels && wide >= 42 && tall >= 18) group.append(svg("text", { x: x + wide / 2, y: y + tall / 2 + 5.5, "text-anchor": "middle",
        style: `fill:${inkOn(channels)};font-size:${tall < 20 ? 13 : 15}px` }, value.toFixed(2)));
      group.show = (pageX, pageY) => showTip([html("p", {}, html("b", {}, name)),
        html("p", {}, value === null ? "no gate here" : `${value.toFixed(4)} at step ${whole(step)}`)], pageX, pageY);
      group.addEventListener("pointermove", (event) => group.show(event.clientX, event.clientY));
      group.addEventListener("pointerleave", hideTip);
      return group;
    }
  }

  /** The curves of all gates of one submodule: a line for each block. */
  function curvesOf(site, column) {
    const runs = data.runs.map(({ gates }) => data.blocks.map((block, row) => ({
      label: `block ${block}`,
      depth: data.blocks.length > 1 ? row / (data.blocks.length - 1) : 0.5,
      points: gates.steps.map((step, i) => [step, gates.values[i][row][column]]).filter((p) => p[1] !== null),
    })).filter((line) => line.points.length));
    return { section: "each", title: site, axis: "gate, 0 closed to 1 open", runs, ramp: true };
  }

  const hostOf = (section) => document.querySelector(`[data-section="${section}"]`);
  if (data.blocks.length) {
    new HeatMap(hostOf("gates"));
    const each = data.sites.map(curvesOf);
    const values = each.flatMap((c) => c.runs.flat().flatMap((l) => l.points.map((p) => p[1])));
    for (const spec of each) new Chart(hostOf("each"), { ...spec, shared: bounds(values) });
  }
  for (const spec of data.charts) new Chart(hostOf(spec.section), spec);

  const drawAll = () => { hideTip(); for (const each of drawn) each.draw(); };
  let width = 0;
  new ResizeObserver(() => {
    const now = document.documentElement.clientWidth;
    if (now !== width) { width = now; drawAll(); }
  }).observe(document.documentElement);
  dark.addEventListener("change", drawAll);
  ownSteps?.addEventListener("change", drawAll);
  addEventListener("beforeprint", drawAll);
  drawAll();
  document.documentElement.dataset.drawn = String(drawn.length);
})();
