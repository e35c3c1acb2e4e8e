// What makes an evaluation's report answer to its reader: light or dark, tooltips, sorted tables, the plot's legend and
// the browser of pairs. No library and no network; names reach the page as text only, never as markup.
"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** A new element with a class and text. */
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

/** A button beside the title that turns the page dark or light; without a click the page follows the system. */
function addThemeButton() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const button = make("button", "theme");
  button.type = "button";
  const label = () => (button.textContent = isDark() ? "Light" : "Dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
  document.querySelector("header").append(button);
}

/** Shows the text of data-tip beside what the pointer rests on or the keyboard has reached. */
function addTips() {
  const tip = make("div", "tip");
  tip.id = "tip";
  tip.role = "tooltip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (event) => {
    const target = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const box = target.getBoundingClientRect();
    tip.style.left = `${clamp(box.left, 8, Math.max(8, innerWidth - tip.offsetWidth - 8))}px`;
    const below = box.bottom + 6;
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : box.top - tip.offsetHeight - 6}px`;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("scroll", () => (tip.hidden = true), true);
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
}

/** Makes the columns of a table sortable within each group of rows: best first, worst first, as it was. */
function makeSortable(table) {
  const heads = all("thead th", table);
  const bodies = all("tbody", table).map((body) => [body, all("tr:not(.heading)", body)]);
  heads.forEach((head, column) => {
    const button = make("button");
    button.append(...head.childNodes);
    if (head.dataset.tip) {
      button.dataset.tip = head.dataset.tip;
      button.setAttribute("aria-description", head.dataset.tip);
      delete head.dataset.tip;
    }
    button.type = "button";
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const bestFirst = head.dataset.better === "higher" ? "descending" : "ascending";
    const worstFirst = bestFirst === "ascending" ? "descending" : "ascending";
    const following = { none: bestFirst, [bestFirst]: worstFirst, [worstFirst]: "none" };
    button.addEventListener("click", () => {
      const order = following[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
      for (const [body, rows] of bodies) body.append(...(order === "none" ? rows : sorted(rows, column, order)));
    });
  });
}

/** Rows by the numbers (data-sort) or text of a column; those without a number come last. */
function sorted(rows, column, order) {
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.sort;
  return rows.toSorted((a, b) => {
    if (column === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
    if (!value(a) || !value(b)) return !value(a) - !value(b);
    return value(a) === value(b) ? 0 : sign * (Number(value(a)) - Number(value(b)));
  });
}

/** Buttons above the table that choose what its cells show. */
function addViews(table) {
  const bar = make("div", "views");
  bar.role = "group";
  bar.setAttribute("aria-label", "What the cells show");
  const views = { mean: "Mean and 95 % interval", rank: "Rank", spread: "Median and range" };
  const buttons = Object.entries(views).map(([view, text]) => {
    const button = make("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => choose(view));
    button.dataset.view = view;
    return button;
  });
  const choose = (view) => {
    table.dataset.view = view;
    buttons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === view));
  };
  choose("mean");
  bar.append(...buttons);
  table.closest(".scroll").before(bar);
}

/** Legend entries bring out their line; a click keeps it out. */
function connectLegend(legend) {
  const plot = legend.previousElementSibling;
  const buttons = all("button", legend);
  let kept = null;
  const bringOut = (row) => {
    row === null ? delete plot.dataset.on : (plot.dataset.on = row);
    all(".line", plot).forEach((part) => part.classList.toggle("on", part.dataset.row === row));
  };
  for (const button of buttons) {
    const row = button.dataset.row;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("pointerenter", () => bringOut(row));
    button.addEventListener("pointerleave", () => bringOut(kept));
    button.addEventListener("click", () => {
      kept = kept === row ? null : row;
      buttons.forEach((other) => other.setAttribute("aria-pressed", other.dataset.row === kept));
      bringOut(kept);
    });
  }
}

/** Pictures of the chosen pair: two under a slider, or all side by side, with one zoom for all of them. */
class Stage {
  constructor(root) {
    this.root = root;
    this.stage = root.querySelector(".stage");
    this.cut = 0.5;
    this.pointers = new Map();
    this.turn = 0;
    this.whole();
    this.stage.addEventListener("pointerdown", (event) => this.down(event));
    this.stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    this.stage.addEventListener("dblclick", (event) => this.magnify(this.zoom > 1 ? 0 : 3, this.place(event)));
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shows pictures, given as [caption, source]; what is on the screen stays until they are decoded. */
  async show(pictures, isMany) {
    const turn = ++this.turn;
    const layers = pictures.map(([caption, source]) => {
      const layer = make("figure", "layer");
      const image = make("img");
      image.alt = caption;
      image.draggable = false;
      image.src = source;
      layer.append(image, make("figcaption", "", caption));
      return layer;
    });
    const images = layers.map((layer) => layer.firstChild);
    await Promise.all(images.map((image) => image.decode().catch(() => undefined)));
    if (turn !== this.turn) return;
    const hadFocus = document.activeElement?.classList.contains("handle");
    this.stage.className = isMany ? "stage many" : "stage two";
    if (images[0]) this.stage.style.setProperty("--shape", images[0].naturalWidth / images[0].naturalHeight || 4 / 3);
    this.stage.replaceChildren(...layers, ...(isMany || !layers.length ? [] : [this.newHandle(pictures)]));
    if (hadFocus) this.handle?.focus();
    this.stage.dataset.turn = turn;
    this.draw();
  }

  newHandle([[left], [right]]) {
    const handle = make("div", "handle");
    handle.tabIndex = 0;
    handle.role = "slider";
    handle.setAttribute("aria-label", `${left} on the left, ${right} on the right`);
    handle.setAttribute("aria-valuemin", 0);
    handle.setAttribute("aria-valuemax", 100);
    handle.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 0.1 : 0.02;
      const ends = { Home: 0, End: 1 };
      const steps = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -0.1, PageUp: 0.1 };
      if (!(event.key in ends) && !(event.key in steps)) return;
      this.cut = clamp(ends[event.key] ?? this.cut + steps[event.key], 0, 1);
      this.draw();
      event.preventDefault();
    });
    return handle;
  }

  get handle() {
    return this.stage.querySelector(".handle");
  }

  /** Where an event is, in fractions of the picture it is over. */
  place(event) {
    const target = document.elementFromPoint(event.clientX, event.clientY)?.closest(".layer");
    const box = (target && this.stage.contains(target) ? target : this.stage).getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  down(event) {
    if (event.button !== 0) return;
    this.pointers.set(event.pointerId, event);
    this.stage.setPointerCapture(event.pointerId);
    this.cuts = this.handle && (this.zoom === 1 || event.target === this.handle);
    if (this.cuts && event.target !== this.handle && event.pointerType === "mouse") this.cutAt(event);
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const others = [...this.pointers.values()].filter((other) => other.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (others.length) {
      const apart = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY);
      this.magnify(this.zoom * (apart(event) / Math.max(1, apart(last))), this.place(event));
    } else if (this.cuts) {
      this.cutAt(event);
    } else {
      const box = this.stage.querySelector(".layer").getBoundingClientRect();
      this.x += (event.clientX - last.clientX) / box.width;
      this.y += (event.clientY - last.clientY) / box.height;
      this.draw();
    }
  }

  cutAt(event) {
    const box = this.stage.getBoundingClientRect();
    this.cut = clamp((event.clientX - box.left) / box.width, 0, 1);
    this.draw();
  }

  wheel(event) {
    if (!event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    this.magnify(this.zoom * Math.exp(-event.deltaY / 200), this.place(event));
  }

  key(event) {
    const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
    if (factor === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.magnify(this.zoom * factor);
  }

  /** Zooms so that one place of the picture stays where it is. */
  magnify(zoom, [atX, atY] = [0.5, 0.5]) {
    const wanted = clamp(zoom, 1, 16);
    const factor = wanted / this.zoom;
    this.x = atX - (atX - this.x) * factor;
    this.y = atY - (atY - this.y) * factor;
    this.zoom = wanted < 1.01 ? 1 : wanted;
    this.draw();
  }

  whole() {
    [this.zoom, this.x, this.y] = [1, 0, 0];
    this.draw();
  }

  draw() {
    this.x = clamp(this.x, 1 - this.zoom, 0);
    this.y = clamp(this.y, 1 - this.zoom, 0);
    for (const name of ["zoom", "x", "y", "cut"]) this.stage.style.setProperty(`--${name}`, this[name]);
    this.stage.classList.toggle("near", this.zoom > 1);
    this.stage.classList.toggle("close", this.zoom >= 4);
    this.root.querySelector(".factor").textContent = `${this.zoom.toFixed(1).replace(".0", "")}×`;
    this.handle?.setAttribute("aria-valuenow", Math.round(this.cut * 100));
  }
}

/** The list of pairs, the choice of pictures and the scores under them. */
class Browser {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.part = Object.fromEntries(
      ["find", "by", "of", "turned", "list", "found", "previous", "next", "name", "out", "in", "whole", "left", "swap"]
        .concat(["right", "all", "detail"])
        .map((name) => [name, root.querySelector(`.${name}`)]),
    );
    this.table = root.querySelector("table");
    this.stage = new Stage(root);
    this.fillChoices();
    this.connect();
    root.hidden = false;
    this.chosen = data.first;
    this.arrange();
    this.choose(data.first);
  }

  fillChoices() {
    const { captions, metrics, rows } = this.data;
    const options = (select, names) => select.append(...names.map((name, place) => new Option(name, place)));
    options(this.part.left, captions);
    options(this.part.right, captions);
    this.part.left.value = captions.length > 2 ? 1 : 0;
    this.part.right.value = captions.length > 2 ? 2 : 1;
    this.part.by.append(new Option("name", "name"), new Option("brightness", "brightness"));
    options(this.part.by, metrics.map((metric) => `${metric.name}, worst first`));
    options(this.part.of, rows.map((row) => row.name));
    this.items = this.data.pairs.map((pair, place) => {
      const item = make("div");
      item.id = `pair-${place}`;
      item.role = "option";
      item.append(make("span", "", pair.name), make("span"));
      item.title = pair.name;
      item.addEventListener("click", () => this.choose(place));
      return item;
    });
  }

  connect() {
    const part = this.part;
    part.find.addEventListener("input", () => this.arrange());
    for (const control of [part.by, part.of, part.turned]) control.addEventListener("change", () => this.arrange());
    for (const control of [part.left, part.right]) control.addEventListener("change", () => this.showPictures());
    part.previous.addEventListener("click", () => this.step(-1));
    part.next.addEventListener("click", () => this.step(1));
    part.swap.addEventListener("click", () => {
      [part.left.value, part.right.value] = [part.right.value, part.left.value];
      this.showPictures();
    });
    part.all.addEventListener("click", () => {
      part.all.setAttribute("aria-pressed", part.all.getAttribute("aria-pressed") !== "true");
      this.showPictures();
    });
    part.in.addEventListener("click", () => this.stage.magnify(this.stage.zoom * 1.5));
    part.out.addEventListener("click", () => this.stage.magnify(this.stage.zoom / 1.5));
    part.whole.addEventListener("click", () => this.stage.whole());
    part.list.addEventListener("keydown", (event) => this.listKey(event));
    document.addEventListener("keydown", (event) => this.pageKey(event));
    document.addEventListener("click", (event) => {
      const link = event.target instanceof Element ? event.target.closest("a[data-pair]") : null;
      if (link) this.follow(link);
    });
  }

  listKey(event) {
    const steps = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.step(steps[event.key]);
  }

  /** ← and → go to other pairs while the browser is in view and nothing else wants them. */
  pageKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    const focused = document.activeElement;
    const inside = this.root.contains(focused) && !focused.closest("input, select, .scroll");
    const box = this.root.getBoundingClientRect();
    const inView = box.top < innerHeight * 0.7 && box.bottom > innerHeight * 0.3;
    if (!inside && !(focused === document.body && inView)) return;
    event.preventDefault();
    this.step(step);
  }

  /** A link of another section: its pair, with its method on the right. */
  follow(link) {
    const method = this.data.captions.indexOf(link.dataset.method);
    if (method >= 0) this.part.right.value = method;
    this.part.find.value = "";
    this.arrange();
    this.choose(Number(link.dataset.pair));
  }

  /** The number behind an order, so that the smallest comes first; and its text. */
  measure(place) {
    const by = this.part.by.value;
    if (by === "name") return [place, ""];
    if (by === "brightness") return [this.data.pairs[place].brightness, this.data.pairs[place].brightness.toFixed(0)];
    const metric = this.data.metrics[by];
    const value = this.data.scores[this.part.of.value][by][place];
    return [number(value) * (metric.higher ? 1 : -1), written(value, metric)];
  }

  /** Puts the pairs that are looked for in order. */
  arrange() {
    const part = this.part;
    part.of.disabled = ["name", "brightness"].includes(part.by.value);
    const wanted = part.find.value.trim().toLowerCase();
    const found = this.data.pairs
      .map((pair, place) => ({ place, name: pair.name, measured: this.measure(place) }))
      .filter((item) => item.name.toLowerCase().includes(wanted));
    const sign = part.turned.checked ? -1 : 1;
    found.sort((a, b) => {
      const [x, y] = [a.measured[0], b.measured[0]];
      return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x < y ? -1 : x > y);
    });
    this.order = found.map((item) => item.place);
    for (const item of found) this.items[item.place].lastChild.textContent = item.measured[1];
    part.list.replaceChildren(...this.order.map((place) => this.items[place]));
    part.found.textContent = `${found.length} of ${this.data.pairs.length} pairs`;
    this.mark();
  }

  step(by) {
    if (!this.order.length) return;
    const now = this.order.indexOf(this.chosen);
    this.choose(this.order[now < 0 ? 0 : clamp(now + by, 0, this.order.length - 1)]);
  }

  choose(place) {
    this.chosen = place;
    this.mark();
    this.part.name.textContent = this.data.pairs[place].name;
    this.showScores();
    return this.showPictures();
  }

  mark() {
    const item = this.items[this.chosen];
    for (const other of this.items) other.ariaSelected = other === item ? "true" : "false";
    if (!item.isConnected) return this.part.list.removeAttribute("aria-activedescendant");
    this.part.list.setAttribute("aria-activedescendant", item.id);
    const { offsetTop: top, offsetHeight: height } = item;
    const list = this.part.list; // scrolled by itself: scrollIntoView would move the page as well
    if (top < list.scrollTop || top + height > list.scrollTop + list.clientHeight) {
      list.scrollTop = top - (list.clientHeight - height) / 2;
    }
  }

  showPictures() {
    const stored = document.getElementById(`pictures-${this.chosen}`);
    const sources = stored ? JSON.parse(stored.textContent) : [];
    const isMany = this.part.all.getAttribute("aria-pressed") === "true";
    const places = isMany ? this.data.captions.keys() : [this.part.left.value, this.part.right.value];
    const pictures = sources.length ? [...places].map((place) => [this.data.captions[place], sources[place]]) : [];
    this.part.detail.textContent = this.data.details[this.data.pairs[this.chosen].detail];
    for (const control of [this.part.left, this.part.right, this.part.swap]) control.disabled = isMany;
    const urls = pictures.map(([caption, text]) => [caption, `data:image/webp;base64,${text}`]);
    return this.stage.show(urls, isMany);
  }

  showScores() {
    const { metrics, rows, scores } = this.data;
    const head = make("tr");
    head.append(make("th", "", "this pair"));
    for (const metric of metrics) {
      const cell = make("th", "n", `${metric.name}\u00a0${metric.higher ? "↑" : "↓"}`);
      cell.dataset.tip = metric.meaning;
      head.append(cell);
    }
    for (const cell of head.cells) cell.scope = "col";
    const values = metrics.map((metric, column) => rows.map((row, place) => scores[place][column][this.chosen]));
    const best = values.map((column, place) => bestOf(column, rows, metrics[place]));
    const bodies = [false, true].map((isTrivial) => {
      const body = make("tbody", isTrivial ? "aside" : "");
      rows.forEach((row, place) => {
        if (row.trivial !== isTrivial) return;
        const line = make("tr");
        const name = make("th", "", row.name);
        name.scope = "row";
        line.append(name);
        metrics.forEach((metric, column) => {
          const value = values[column][place];
          const isBest = !isTrivial && number(value) === best[column];
          line.append(make("td", isBest ? "n best" : "n", written(value, metric)));
        });
        body.append(line);
      });
      return body;
    });
    const thead = make("thead");
    thead.append(head);
    this.table.replaceChildren(thead, ...bodies.filter((body) => body.rows.length));
  }
}

/** A score: null is undefined, "inf" is that of identical pictures. */
function number(value) {
  return value === null ? NaN : Number(value === "inf" ? Infinity : value);
}

function written(value, metric) {
  if (value === null) return "–";
  return value === "inf" ? "∞" : value.toFixed(metric.decimals);
}

/** The best score among the methods, where at least two compete. */
function bestOf(column, rows, metric) {
  const values = column.filter((_, place) => !rows[place].trivial).map(number).filter((value) => !Number.isNaN(value));
  if (values.length < 2) return NaN;
  return metric.higher ? Math.max(...values) : Math.min(...values);
}

addThemeButton();
addTips();
all("table[data-sortable]").forEach(makeSortable);
all("table[data-view]").forEach(addViews);
all(".plot + .legend").forEach(connectLegend);
for (const root of all(".browser")) new Browser(root, JSON.parse(document.getElementById("browser-data").textContent));
document.documentElement.dataset.ready = "true";
