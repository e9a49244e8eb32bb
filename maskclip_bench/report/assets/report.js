"use strict";
// The page's behaviour. Text from the data is always put in as text, never as HTML.
(function () {
  const $ = (selector, root) => (root || document).querySelector(selector);
  const $$ = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "text") element.textContent = value;
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const signed = (points) => (points > 0 ? "+" : points < 0 ? "−" : "±") + Math.abs(points).toFixed(1);

  // --- theme -------------------------------------------------------------------------------------
  const themes = ["auto", "light", "dark"];
  const setTheme = (name) => {
    if (name === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", name);
    const button = $("#theme");
    if (button) button.textContent = "Theme: " + name;
  };
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  let theme = themes.includes(stored()) ? stored() : "auto";
  setTheme(theme);
  if ($("#theme")) $("#theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("theme", theme); } catch { /* private window */ }
    setTheme(theme);
  });

  // --- tables: sort, filter, copy ----------------------------------------------------------------
  for (const box of $$(".tablebox")) {
    const table = $("table", box), body = $("tbody", table);
    const original = $$("tr", body);
    const valueOf = (row, index) => {
      if (index === 0) return $("th", row).textContent.toLowerCase();
      const text = row.cells[index].dataset.value;
      return text === "" ? null : Number(text);
    };
    for (const button of $$("button[data-sort]", table)) {
      button.addEventListener("click", () => {
        const index = Number(button.dataset.sort), header = button.closest("th");
        const before = header.getAttribute("aria-sort");
        const steps = index === 0 ? ["ascending", "descending"] : ["descending", "ascending"];
        const next = before === null ? steps[0] : before === steps[0] ? steps[1] : null;
        for (const other of $$("th", table)) other.removeAttribute("aria-sort");
        let rows = original.slice();
        if (next) {
          header.setAttribute("aria-sort", next);
          const sign = next === "ascending" ? 1 : -1;
          rows.sort((a, b) => {
            const x = valueOf(a, index), y = valueOf(b, index);
            if (x === null || y === null) return (x === null) - (y === null);
            return sign * (x < y ? -1 : x > y ? 1 : 0);
          });
        }
        body.append(...rows);
      });
    }
    const heads = $$("tr.heads th", table), groups = $$("tr.groups th", table);
    const filterRows = (text) => {
      for (const row of original) row.hidden = !$("th", row).textContent.toLowerCase().includes(text);
    };
    const filterColumns = (text) => {
      const shown = heads.map((head, index) => index === 0 || head.dataset.column.toLowerCase().includes(text));
      heads.forEach((head, index) => { head.hidden = !shown[index]; });
      for (const row of original) Array.from(row.cells).forEach((cell, index) => { cell.hidden = !shown[index]; });
      let start = 1;
      for (const group of groups) {
        if (!group.dataset.span) group.dataset.span = group.colSpan;
        const span = Number(group.dataset.span);
        const left = shown.slice(start, start + span).filter(Boolean).length;
        group.hidden = left === 0;
        if (left) group.colSpan = left;
        start += span;
      }
    };
    for (const input of $$("input[data-filter]", box)) {
      input.addEventListener("input", () => {
        const text = input.value.trim().toLowerCase();
        if (input.dataset.filter === "rows") filterRows(text); else filterColumns(text);
      });
    }
    const shownTable = () => {
      const columns = heads.map((head, index) => index).filter((index) => !heads[index].hidden);
      const title = (index) => index === 0 ? "" : heads[index].dataset.column;
      return {
        heads: columns.map(title),
        rows: $$("tr", body).filter((row) => !row.hidden).map((row) => columns.map((index) => {
          if (index === 0) return { number: $("th", row).childNodes[0].textContent.trim(), best: false, spread: "", delta: "" };
          const cell = row.cells[index], part = (name) => { const e = $(name, cell); return e ? e.textContent : ""; };
          return { number: part(".number"), best: cell.classList.contains("best"), spread: part(".spread"), delta: part(".delta") };
        })),
      };
    };
    for (const button of $$("button[data-copy]", box)) {
      button.addEventListener("click", () => {
        const text = formats[button.dataset.copy](shownTable(), $("h3", box).textContent);
        copy(text).then((done) => {
          $(".said", box).textContent = done ? "Copied." : "The browser refused to copy.";
          window.setTimeout(() => { $(".said", box).textContent = ""; }, 2500);
        });
      });
    }
  }
  const latexSigns = { "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#",
    "%": "\\%", "_": "\\_", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "±": "$\\pm$", "−": "$-$",
    "†": "$\\dagger$", "≈": "$\\approx$", "→": "$\\to$", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}" };
  const latex = (text) => Array.from(text).map((sign) => latexSigns[sign] || sign).join("");
  const markdown = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/([\\`*_\[\]|~])/g, "\\$1");
  const csv = (text) => {
    const safe = /^\s*[=+\-@\t\r＝＋－＠]/.test(text) && !/^[+\-−]?[\d.]+$/.test(text) ? "'" + text : text;
    return /[",\n]/.test(safe) ? '"' + safe.replace(/"/g, '""') + '"' : safe;
  };
  const formats = {
    markdown: (table) => {
      const line = (cells) => "| " + cells.join(" | ") + " |";
      const cell = (c) => {
        const number = c.best ? "**" + markdown(c.number) + "**" : markdown(c.number);
        return [number, markdown(c.spread), c.delta ? "(" + markdown(c.delta) + ")" : ""].filter(Boolean).join(" ");
      };
      return [line(table.heads.map(markdown)), line(table.heads.map((_, i) => i ? ":-:" : ":--")),
        ...table.rows.map((row) => line(row.map(cell)))].join("\n") + "\n";
    },
    latex: (table, title) => {
      const cell = (c) => {
        const number = c.best ? "\\textbf{" + latex(c.number) + "}" : latex(c.number);
        const small = [latex(c.spread), c.delta ? "(" + latex(c.delta) + ")" : ""].filter(Boolean).join(" ");
        return small ? number + " {\\scriptsize " + small + "}" : number;
      };
      const line = (cells) => cells.join(" & ") + " \\\\";
      return ["% " + title.replace(/[\r\n]+/g, " "), "% \\usepackage{booktabs}",
        "\\begin{tabular}{l" + "c".repeat(table.heads.length - 1) + "}", "\\toprule", line(table.heads.map(latex)),
        "\\midrule", ...table.rows.map((row) => line(row.map(cell))), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
    },
    csv: (table) => {
      const cell = (c) => [c.number, c.spread, c.delta].filter(Boolean).join(" ");
      return [table.heads, ...table.rows.map((row) => row.map(cell))].map((row) => row.map(csv).join(",")).join("\n") + "\n";
    },
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* not allowed: the old way */ }
    const area = make("textarea", { "aria-hidden": "true", style: "position:fixed;left:-99em" });
    area.value = text;
    document.body.append(area);
    area.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch { done = false; }
    area.remove();
    return done;
  };

  // --- views of what a model sees ------------------------------------------------------------------
  for (const input of $$("input[name='view']")) {
    input.addEventListener("change", () => {
      for (const element of $$("[data-view]")) element.hidden = element.dataset.view !== input.value;
    });
  }

  // --- values of curves under the pointer ----------------------------------------------------------
  const curves = $$("svg[data-scale]");
  if (curves.length) {
    const bubble = make("div", { class: "bubble", "aria-hidden": "true" });
    bubble.hidden = true;
    document.body.append(bubble);
    const short = (value) => String(Number(value.toPrecision(4)));
    const valuesAt = (svg, scale, x) => {
      const found = [];
      for (const line of $$("polyline[data-name]", svg)) {
        let nearest = null;
        for (const point of Array.from(line.points)) {
          if (nearest === null || Math.abs(point.x - x) < Math.abs(nearest.x - x)) nearest = { x: point.x, y: point.y };
        }
        if (nearest && Math.abs(nearest.x - x) <= 10) found.push({ name: line.dataset.name, stroke: line.getAttribute("stroke"), x: nearest.x, y: nearest.y });
      }
      const back = ([low, high, from, to], place) => low + (high - low) * (place - from) / ((to - from) || 1);
      for (const entry of found) {
        const at = back(scale.x, entry.x);
        entry.at = scale.log ? Math.pow(10, at) : at;
        entry.value = back(scale.y, entry.y);
      }
      return found;
    };
    for (const svg of curves) {
      const scale = JSON.parse(svg.dataset.scale);
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const found = valuesAt(svg, scale, (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width);
        bubble.replaceChildren();
        bubble.hidden = found.length === 0;
        if (!found.length) return;
        bubble.append(make("b", { text: scale.x_label + " " + short(found[0].at) }));
        for (const entry of found) {
          bubble.append(make("span", {}, make("i", { style: "background:" + entry.stroke }), make("span", { text: entry.name }), make("span", { class: "num", text: short(entry.value) })));
        }
        const width = bubble.offsetWidth, left = event.clientX + 14 + width > window.innerWidth ? event.clientX - 14 - width : event.clientX + 14;
        bubble.style.left = Math.max(4, left) + "px";
        bubble.style.top = Math.max(4, Math.min(event.clientY + 10, window.innerHeight - bubble.offsetHeight - 4)) + "px";
      });
      svg.addEventListener("pointerleave", () => { bubble.hidden = true; });
    }
  }

  // --- two rows ------------------------------------------------------------------------------------
  const report = window.maskclipReport;
  if (!report || !$("#first")) return;
  const first = $("#first"), second = $("#second");
  const names = Object.fromEntries(report.rows.map((row) => [row.backbone, row.label]));
  const pairOf = (a, b) => {
    const turned = !(a + "|" + b in report.pairs);
    const found = report.pairs[turned ? b + "|" + a : a + "|" + b] || [];
    if (!turned) return found;
    return found.map((test) => test && Object.assign({}, test, {
      difference: -test.difference,
      low: test.low === undefined ? undefined : -test.high,
      high: test.high === undefined ? undefined : -test.low,
    }));
  };
  const isClear = (test) => test && typeof test.corrected_p_value === "number" && test.corrected_p_value <= 0.05;
  let chosen = null;

  const showPair = () => {
    const a = first.value, b = second.value, forest = $("#forest"), tests = a === b ? [] : pairOf(a, b);
    forest.replaceChildren();
    $("#detail").hidden = true;
    if (a === b) { $("#verdict").textContent = "Choose two different rows."; return; }
    const ends = tests.flatMap((t) => t ? [t.difference, t.low, t.high] : []).filter((v) => typeof v === "number");
    const extent = Math.max(0.01, ...ends.map(Math.abs));
    forest.append(make("div", { class: "head", "aria-hidden": "true" }, make("span", { text: "column" }),
      make("span", { class: "num", text: names[a] }), make("span", { class: "num", text: names[b] }),
      make("span", { text: "difference, −" + (100 * extent).toFixed(0) + " to +" + (100 * extent).toFixed(0) + " points" }), make("span", {})));
    report.columns.forEach((column, index) => {
      const test = tests[index];
      if (!test) return;
      const better = (column.higher_is_better ? 1 : -1) * test.difference > 0;
      const clear = isClear(test), colour = clear ? (better ? "var(--good)" : "var(--bad)") : "var(--muted)";
      const at = (value) => 50 + 48 * value / extent;
      const svg = draw("svg", { viewBox: "0 0 100 22", preserveAspectRatio: "none", "aria-hidden": "true" });
      svg.append(draw("line", { x1: 50, x2: 50, y1: 0, y2: 22, stroke: "var(--muted)", "stroke-dasharray": "2 2", "vector-effect": "non-scaling-stroke" }));
      if (typeof test.low === "number") svg.append(draw("line", { x1: at(test.low), x2: at(test.high), y1: 11, y2: 11, stroke: colour, "stroke-width": 2, "vector-effect": "non-scaling-stroke" }));
      const dot = make("i", { style: "position:absolute;left:" + at(test.difference) + "%;top:50%;width:10px;height:10px;margin:-5px;border-radius:50%;border:2px solid " + colour + ";background:" + (clear ? colour : "var(--paper)") });
      const plot = make("span", { class: "plot", style: "position:relative;display:block" }, svg, dot);
      const values = [a, b].map((row) => report.values[row] ? report.values[row][index] : null);
      const shown = values.map((value) => value === null ? "–" : (100 * value).toFixed(1));
      const range = typeof test.low === "number" ? " (" + signed(100 * test.low) + " to " + signed(100 * test.high) + ")" : "";
      const text = make("span", { class: "text" }, make("b", { text: signed(100 * test.difference) + (clear ? "*" : "") }), make("small", { text: range ? range.trim() : "no test" }));
      const button = make("button", { type: "button", "data-index": index, "aria-pressed": "false",
        "aria-label": column.group + " " + column.data_set + " " + column.label + ": " + names[a] + " " + shown[0] + ", " + names[b] + " " + shown[1] + ", difference " + signed(100 * test.difference) + range + (clear ? ", clear" : "") },
        make("span", { class: "name" }, make("span", { text: column.group + (column.label ? " · " + column.label : "") }), make("small", { text: column.data_set })),
        make("span", { class: "num", text: shown[0] }), make("span", { class: "num", text: shown[1] }), plot, text);
      button.addEventListener("click", () => choose(index, button));
      forest.append(button);
    });
    const sign = (index) => (report.columns[index].higher_is_better ? 1 : -1);
    const ahead = tests.filter((t, i) => isClear(t) && sign(i) * t.difference > 0).length;
    const behind = tests.filter((t, i) => isClear(t) && sign(i) * t.difference < 0).length;
    const tested = tests.filter((t) => t && typeof t.p_value === "number").length;
    const shared = tests.filter(Boolean).length;
    $("#verdict").textContent = shared === 0 ? "These two rows share no column that may be compared."
      : names[a] + " is clearly better than " + names[b] + " on " + ahead + " of " + tested + " tested columns, clearly worse on " + behind + "; " + (tested - ahead - behind) + " show no clear difference."
        + (shared > tested ? " " + (shared - tested) + " have no test." : "");
    if (chosen !== null && tests[chosen]) choose(chosen, $("button[data-index='" + chosen + "']", forest), true);
  };

  const waiting = {};
  const load = (index) => new Promise((resolve) => {
    if (report.details[index]) { resolve(report.details[index]); return; }
    if (!report.columns[index].detail) { resolve(null); return; }
    (waiting[index] = waiting[index] || []).push(resolve);
    if (waiting[index].length > 1) return;
    const script = make("script", { src: report.columns[index].detail });
    const end = () => { for (const tell of waiting[index]) tell(report.details[index] || null); waiting[index] = []; };
    script.addEventListener("load", end);
    script.addEventListener("error", end);
    document.head.append(script);
  });

  const choose = async (index, button, quiet) => {
    chosen = index;
    for (const other of $$("#forest button")) other.setAttribute("aria-pressed", String(other === button));
    const column = report.columns[index], a = first.value, b = second.value;
    const detail = await load(index);
    if (chosen !== index || a !== first.value || b !== second.value) return;
    $("#detail").hidden = false;
    $("#detail-title").textContent = column.group + ", " + column.data_set + (column.label ? " (" + column.label + ")" : "") + ": " + names[a] + " minus " + names[b];
    $("#by-class").replaceChildren();
    $("#by-image").replaceChildren();
    const rows = detail ? [detail.rows[a], detail.rows[b]] : [null, null];
    if (!rows[0] || !rows[1]) {
      $("#detail-said").textContent = "The outcomes of single images are not stored for this column.";
    } else {
      const said = showImages(detail, rows, $("#by-image"), [names[a], names[b]]);
      showClasses(detail, rows, $("#by-class"));
      $("#detail-said").textContent = said;
    }
    if (!quiet) { $("#detail-title").focus({ preventScroll: true }); $("#detail").scrollIntoView({ block: "nearest" }); }
  };

  const showClasses = (detail, rows, box) => {
    let lines = [];
    if (rows[0].by_class && rows[1].by_class) {
      lines = detail.names.map((name, c) => ({ name, d: rows[0].by_class[c] === null || rows[1].by_class[c] === null ? null : rows[0].by_class[c] - rows[1].by_class[c] }));
    } else if (detail.labels && detail.names) {
      const sums = detail.names.map(() => ({ n: 0, d: 0, groups: {} }));
      detail.labels.forEach((label, i) => {
        const x = rows[0].values[i], y = rows[1].values[i];
        if (x === null || y === null) return;
        const s = sums[label];
        s.n += 1; s.d += x - y;
        s.groups[detail.groups[i]] = s.groups[detail.groups[i]] || [0, 0];
        s.groups[detail.groups[i]][0] += x - y; s.groups[detail.groups[i]][1] += 1;
      });
      lines = detail.names.map((name, c) => {
        const s = sums[c], mean = s.n ? s.d / s.n : null, groups = Object.values(s.groups);
        if (mean === null) return { name, d: null };
        const squares = groups.reduce((t, g) => t + Math.pow((g[0] - g[1] * mean) / s.n, 2), 0);
        const half = groups.length > 1 ? 1.96 * Math.sqrt(squares * groups.length / (groups.length - 1)) : null;
        return { name, d: mean, half };
      });
    }
    lines = lines.filter((line) => line.d !== null && line.d !== undefined).sort((x, y) => y.d - x.d);
    if (!lines.length) { box.append(make("p", { class: "note", text: "This column has no classes." })); return; }
    const most = 12;
    const parts = lines.length <= 2 * most ? lines : [...lines.slice(0, most), null, ...lines.slice(-most)];
    const extent = Math.max(0.01, ...lines.map((line) => Math.abs(line.d)));
    for (const line of parts) {
      if (line === null) { box.append(make("p", { class: "note", text: (lines.length - 2 * most) + " classes between" })); continue; }
      const width = 50 * Math.abs(line.d) / extent;
      const bar = make("i", { class: line.d < 0 ? "less" : "", style: "left:" + (line.d < 0 ? 50 - width : 50) + "%;width:" + width + "%" });
      const half = line.half === null || line.half === undefined ? "" : " ±" + (100 * line.half).toFixed(0);
      box.append(make("div", { class: "barline" }, make("span", { text: line.name }), make("span", { class: "bar" }, bar, make("u", {})), make("span", { class: "num", text: signed(100 * line.d) + half })));
    }
    box.append(make("p", { class: "note", text: "Points; ± is half of a 95 % interval by group of images, not corrected for the number of classes." }));
  };

  const showImages = (detail, rows, box, labels) => {
    const differences = detail.ids.map((_, i) => {
      const x = rows[0].values[i], y = rows[1].values[i];
      return x === null || y === null ? null : x - y;
    });
    const known = differences.filter((d) => d !== null).length;
    const up = differences.map((d, i) => i).filter((i) => differences[i] > 0).sort((i, j) => differences[j] - differences[i]);
    const down = differences.map((d, i) => i).filter((i) => differences[i] !== null && differences[i] < 0).sort((i, j) => differences[i] - differences[j]);
    const spread = (list) => list.length <= 12 ? list : Array.from({ length: 12 }, (_, k) => list[Math.floor(k * list.length / 12)]);
    const binary = detail.ids.every((_, i) => [0, 1, null].includes(rows[0].values[i]) && [0, 1, null].includes(rows[1].values[i]));
    for (const [list, label, other, turn] of [[up, labels[0], labels[1], 0], [down, labels[1], labels[0], 1]]) {
      box.append(make("p", { class: "note", text: (binary ? "Only " + label + " is right: " : label + " is higher: ") + list.length + " of " + known + (list.length > 12 ? ", 12 of them:" : list.length ? ":" : ".") }));
      const pictures = make("div", { class: "pictures" });
      for (const i of binary ? spread(list) : list.slice(0, 12)) {
        const figure = make("figure", {});
        const place = detail.places ? detail.places[i] : -1;
        const words = [];
        if (detail.captions && detail.captions[i]) words.push("“" + detail.captions[i] + "”");
        else if (detail.labels && detail.names) words.push(detail.names[detail.labels[i]]);
        const said = rows[1 - turn].predictions;
        if (binary && said && said[i] !== null && detail.names) words.push(other + ": " + detail.names[said[i]]);
        if (!binary) words.push(label + " " + (100 * rows[turn].values[i]).toFixed(0) + ", " + other + " " + (100 * rows[1 - turn].values[i]).toFixed(0));
        if (place >= 0 && detail.sheet) {
          const s = detail.sheet, size = 84;
          figure.append(make("span", { class: "tile", role: "img", "aria-label": detail.ids[i],
            style: "width:" + size + "px;height:" + size + "px;background-image:url('" + s.file + "');background-size:" + s.columns * size + "px " + s.rows * size + "px;background-position:-" + (place % s.columns) * size + "px -" + Math.floor(place / s.columns) * size + "px" }));
        } else words.unshift(detail.ids[i]);
        figure.append(make("figcaption", { text: words.join("; ") }));
        pictures.append(figure);
      }
      box.append(pictures);
    }
    return "Of " + known + " samples " + (known - up.length - down.length) + " are equal in both rows." + (report.several_seeds ? " Single images are those of the first seed." : "");
  };

  second.value = report.baseline && report.baseline !== first.value ? report.baseline : report.rows[1].backbone;
  if (first.value === second.value) first.value = report.rows.find((row) => row.backbone !== second.value).backbone;
  if (report.start) { first.value = report.start[0]; second.value = report.start[1]; }
  first.addEventListener("change", showPair);
  second.addEventListener("change", showPair);
  $("#swap").addEventListener("click", () => { [first.value, second.value] = [second.value, first.value]; showPair(); });
  showPair();
})();
