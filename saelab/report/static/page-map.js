/* The map: every unit of a layer as a dot, near those that are like it; a rectangle lists what lies in it. */
"use strict"

const shownOfMap = 24
const listed = 500 // units that an address can name
const hues = ["#d1495b", "#2e86ab", "#4d9f5d", "#b07aa1", "#d98324", "#7b6ccf", "#3a9e9e", "#a3803c", "#c45a9b", "#6f8f2f"] // of the most common labels; 3 : 1 on both papers
const usualMap = { map: "0", by: "basis", q: "", box: "" }

page(async (run, main) => {
  const [maps] = await Promise.all([saelab.need("maps"), libraries()])
  if (!maps.length) return main.replaceChildren(h("h1", null, "Map"), h("p.standfirst", { role: "alert" }, "This run has nothing to draw a map from: neither its image embeddings nor SAEs."))
  const state = { ...usualMap }
  const controls = h("form.controls", { onsubmit: event => event.preventDefault() })
  const [dots, over] = [h("canvas", { "aria-hidden": "true" }), h("canvas", { "aria-hidden": "true" })]
  const box = h("div.map", { role: "img" }, dots, over)
  const [key, list, note] = [h("p.legend"), h("div", { role: "region", "aria-label": "Units of the map" }), h("p.note")]
  let points = []
  let scale = { at: 1, left: 0, top: 0 }
  let tree = null

  const keep = changes => {
    Object.assign(state, changes)
    history.replaceState(null, "", `#${new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== usualMap[key]))}`)
  }
  /* What the address asks for; a map or a colour that this report has not is the usual one. */
  const fromAddress = () => {
    Object.assign(state, usualMap, Object.fromEntries(new URLSearchParams(location.hash.slice(1))))
    controls.q.value = state.q
    for (const name of ["map", "by"]) {
      if (![...controls[name].options].some(one => one.value === state[name])) state[name] = usualMap[name]
      controls[name].value = state[name]
    }
  }
  const chosenMap = () => maps[Number(state.map)]

  async function read() {
    const map = chosenMap()
    points = (await Promise.all(map.bases.map(async (b, i) => (await load(run, run.bases[b].name)).map((row, u) => ({ row, x: map.x[i][u], y: map.y[i][u] }))))).flat()
    draw()
  }

  /* Dots in the colours that were asked for; those that the search leaves out are faint. */
  function draw() {
    const width = Math.floor(box.clientWidth)
    if (!width) return
    const height = Math.round(Math.min(620, Math.max(320, width * 0.86)))
    const ratio = devicePixelRatio || 1
    for (const canvas of [dots, over]) Object.assign(canvas, { width: width * ratio, height: height * ratio }).style.cssText = `width:${width}px;height:${height}px`
    box.style.height = `${height}px`
    const [right, bottom] = [d3.max(points, p => p.x) || 1, d3.max(points, p => p.y) || 1]
    const at = Math.min((width - 24) / right, (height - 24) / bottom)
    scale = { at, left: (width - at * right) / 2, top: (height - at * bottom) / 2 }
    const paint = painter()
    const context = dots.getContext("2d")
    context.setTransform(ratio, 0, 0, ratio, 0, 0)
    const wanted = state.q ? query(state.q) : null
    const round = points.length <= 8000 // a circle takes several times as long as a square; of this size nobody tells them apart
    const size = !round ? 2.5 : points.length > 1000 ? 4.4 : 6
    for (const p of points) { p.px = scale.left + at * p.x; p.py = height - scale.top - at * p.y; p.in = !wanted || wanted(p.row) }
    for (const faint of [true, false]) for (const p of points) {
      if (p.in === faint) continue
      context.globalAlpha = faint ? 0.12 : 0.75
      context.fillStyle = paint.of(p.row)
      if (round) {
        context.beginPath()
        context.arc(p.px, p.py, size / 2, 0, 2 * Math.PI)
        context.fill()
      } else context.fillRect(p.px - size / 2, p.py - size / 2, size, size)
    }
    tree = d3.quadtree(points, p => p.px, p => p.py)
    if (paint.named) names(context, paint.named, width, height)
    key.replaceChildren(...paint.legend)
    const map = chosenMap()
    const inside = points.filter(p => p.in).length
    box.setAttribute("aria-label", `Map of ${format.plural(points.length, "unit")}${state.q ? `, ${format.count(inside)} of them found` : ""}; the list below names those in the rectangle`)
    note.replaceChildren(...described(map))
    choose()
  }

  /* The colour of a row, and what the colours mean. */
  function painter() {
    const none = colour("var(--dim)")
    if (state.by === "basis") {
      const css = Object.fromEntries(run.bases.map(b => [b.name, colour(hue(run, b.name))]))
      return { of: r => css[r.basis], legend: chosenMap().bases.map(b => h("span", null, dot(run, run.bases[b].name), inFewWords(run, run.bases[b].name))) }
    }
    if (state.by === "badge") {
      const css = { holds: colour("var(--good)"), weak: colour("var(--warn)"), "may be luck": colour("var(--soft)") }
      return { of: r => css[r.badge] ?? none, legend: legendOf([...Object.entries(css), ["no label", none]]) }
    }
    if (state.by === "label") {
      const common = d3.rollups(points.filter(p => p.in && p.row.label), own => own, p => p.row.label).sort((a, b) => b[1].length - a[1].length)
      const css = new Map(common.slice(0, hues.length).map(([label], i) => [label, hues[i]]))
      return { of: r => css.get(r.label) ?? none, named: common.slice(0, 40), legend: legendOf([...css, [common.length > css.size ? `${format.plural(common.length - css.size, "other label")}, or none` : "no label", none]]) }
    }
    const numbers = points.map(p => p.row[state.by]).filter(x => x !== null && x !== undefined).sort(d3.ascending)
    const [low, high] = [d3.quantileSorted(numbers, 0.02), d3.quantileSorted(numbers, 0.98)]
    const [first, last] = d3.lab(colour("var(--paper)")).l > 50 ? [0, 0.88] : [0.2, 1] // what stands out from the paper
    const ramp = d3.range(0, 1.001, 0.01).map(t => d3.interpolateViridis(first + (last - first) * t))
    const of = x => (x === null || x === undefined ? none : ramp[high > low ? Math.round(100 * Math.max(0, Math.min(1, (x - low) / (high - low)))) : 50])
    return { of: r => of(r[state.by]), legend: [h("span.scale", null, `${terms[state.by].title}: ${shown(state.by, low)}`, h("i", { style: `background:linear-gradient(to right,${ramp.filter((_, i) => i % 10 === 0)})`, "aria-hidden": "true" }), shown(state.by, high)), ...legendOf([["no number", none]])] }
  }

  /* The labels of most units, each at the unit in the middle of them, as far as they find room. */
  function names(context, groups, width, height) {
    const taken = []
    context.globalAlpha = 1
    context.font = "600 12px Inter, sans-serif"
    Object.assign(context, { textAlign: "center", textBaseline: "middle", lineJoin: "round", lineWidth: 4, strokeStyle: colour("var(--paper)"), fillStyle: colour("var(--ink)") })
    for (const [label, own] of groups) {
      const [mx, my] = [d3.median(own, p => p.px), d3.median(own, p => p.py)]
      const middle = own[d3.leastIndex(own, p => (p.px - mx) ** 2 + (p.py - my) ** 2)]
      const half = context.measureText(label).width / 2 + 4
      const [x, y] = [Math.max(half, Math.min(width - half, middle.px)), Math.max(10, Math.min(height - 10, middle.py - 11))]
      if (taken.some(t => Math.abs(t.x - x) < t.half + half && Math.abs(t.y - y) < 16)) continue
      taken.push({ x, y, half })
      context.strokeText(label, x, y)
      context.fillText(label, x, y)
    }
  }

  /* The corners of the rectangle, [left, bottom, right, top], or null. */
  const current = () => { const found = state.box.split("_").map(Number); return found.length === 4 && found.every(Number.isFinite) ? found : null }

  /* The units in the rectangle, or without one those that the search finds. */
  function choose() {
    const corners = current()
    const inBox = corners ? p => p.x >= corners[0] && p.x <= corners[2] && p.y >= corners[1] && p.y <= corners[3] : null
    mark(corners)
    const found = points.filter(p => p.in && (!inBox || inBox(p))).map(p => p.row)
    const common = d3.rollups(found.filter(r => r.label), rows => rows.length, r => r.label).sort((a, b) => b[1] - a[1])
    if (!inBox && !state.q) return list.replaceChildren(...overview(common.slice(0, 24)))
    const some = sorted(found, { sort: "score", down: "1" }).slice(0, shownOfMap)
    const only = found.length && found.length <= listed ? `units.html#${new URLSearchParams({ basis: "*", only: found.map(r => code(run, r.basis, r.unit)).join("_") })}` : null
    list.replaceChildren(
      h("h2", null, `${format.plural(found.length, "unit")}${inBox ? " in the rectangle" : ""}`),
      h("p.lead", null, common.slice(0, 12).map(([label, n]) => `${label}\u00a0${n}`).join("\u00a0· ")),
      h("p", null, only ? h("a.button", { href: only }, "Open as a list") : found.length ? h("span.quiet", null, `Up to ${listed} units open as a list: draw a smaller rectangle.`) : null, " ", inBox ? h("button", { type: "button", "data-key": "whole", onclick: () => { keep({ box: "" }); choose(); controls.q.focus({ preventScroll: true }) } }, "Take the rectangle away") : null),
      h("div.cards", null, some.map(r => h("a.card", { href: unitLink(r.basis, r.unit) }, h("span.mosaic", null, r.thumbs.slice(0, 3).map((id, j) => picture(id, `strongest image ${j + 1} of unit ${r.unit}`))),
        h("div.name", null, r.label ?? "no label"), h("div.meta", null, dot(run, r.basis), inBrief(run, r.basis, r.unit)), h("div", null, marks(r), saidMarks(r.said))))),
      found.length > some.length ? h("p.note", { style: "margin-top:1rem" }, `The ${some.length} of the highest score are shown.`) : "")
  }

  /* Before anything is asked for: what to do, and the commonest labels to begin with. */
  function overview(common) {
    const find = label => { controls.q.value = `"${label.replaceAll('"', "")}"`; keep({ q: controls.q.value }); draw(); controls.q.focus({ preventScroll: true }) }
    return [
      h("h2", null, "Commonest labels"),
      h("p.quiet", null, "Choose one, search, or draw a rectangle on the map to list units. A click on a dot opens its unit."),
      h("div.chips", null, common.map(([label, n]) => h("button", { type: "button", onclick: () => find(label) }, label, h("span.n", null, format.count(n))))),
    ]
  }

  function mark(corners, hovered) {
    const ratio = devicePixelRatio || 1
    const context = over.getContext("2d")
    context.setTransform(ratio, 0, 0, ratio, 0, 0)
    context.clearRect(0, 0, over.width, over.height)
    context.strokeStyle = context.fillStyle = colour("var(--ink)")
    if (corners) {
      const [left, bottom, right, top] = [scale.left + scale.at * corners[0], box.clientHeight - scale.top - scale.at * corners[1], scale.left + scale.at * corners[2], box.clientHeight - scale.top - scale.at * corners[3]]
      context.globalAlpha = 0.1
      context.fillRect(left, top, right - left, bottom - top)
      context.globalAlpha = 1
      context.strokeRect(left, top, right - left, bottom - top)
    }
    if (hovered) {
      context.lineWidth = 2
      context.strokeRect(hovered.px - 5, hovered.py - 5, 10, 10)
      context.lineWidth = 1
    }
  }

  /* ---- the pointer: a drag draws a rectangle, a click opens a unit, hovering names it ---- */
  const label = h("div.tip.of-map", { hidden: true, "aria-hidden": "true" })
  box.append(label)
  let from = null
  const spot = event => { const edge = box.getBoundingClientRect(); return [event.clientX - edge.left, event.clientY - edge.top] }
  const place = ([px, py]) => [(px - scale.left) / scale.at, (box.clientHeight - scale.top - py) / scale.at]
  const cornersOf = (a, b) => { const [p, q] = [place(a), place(b)]; return [Math.min(p[0], q[0]), Math.min(p[1], q[1]), Math.max(p[0], q[0]), Math.max(p[1], q[1])].map(Math.round) }
  box.addEventListener("pointerdown", event => { if (event.button === 0) { from = spot(event); box.setPointerCapture(event.pointerId) } })
  box.addEventListener("pointermove", event => {
    const now = spot(event)
    if (from) return mark(cornersOf(from, now))
    const near = tree?.find(...now, 12)
    mark(current(), near)
    label.hidden = !near
    if (!near) return
    label.replaceChildren(h("strong", null, inWordsOfMarks(near.row)), h("p", null, `${inFewWords(run, near.row.basis)} · ${near.row.unit}`))
    label.style.cssText = `left:${Math.min(near.px + 10, box.clientWidth - 220)}px;top:${near.py + 10}px`
  })
  box.addEventListener("pointerleave", () => { label.hidden = true; mark(current()) })
  box.addEventListener("pointerup", event => {
    const to = spot(event)
    const [dragged, near] = [from && Math.hypot(to[0] - from[0], to[1] - from[1]) > 5, tree?.find(...to, 12)]
    if (dragged) { keep({ box: cornersOf(from, to).join("_") }); choose() } else if (from && near) location.href = unitLink(near.row.basis, near.row.unit)
    from = null
  })

  box.addEventListener("pointercancel", () => { from = null; mark(current()) }) // a finger that scrolls the page
  const option = (value, text) => h("option", { value }, text)
  const title = map => `${map.of === "meaning" ? "meaning" : `directions of ${inFewWords(run, run.bases[map.bases[0]].name)}`}${run.bases.some(b => b.layer !== map.layer) ? `, ${map.layer}` : ""} (${map.by === "umap" ? "UMAP" : "PCA"})`
  controls.append(
    h("label.whole", null, "Map of", h("select", { name: "map", onchange: e => { keep({ map: e.target.value, box: "" }); read() } }, maps.map((map, i) => option(String(i), title(map))))),
    h("label", null, "Colour", h("select", { name: "by", onchange: e => { keep({ by: e.target.value }); draw() } }, option("basis", "basis"), option("label", "label"), run.bases.some(b => b.badges) ? option("badge", "does the label hold") : null, numberColumns.filter(k => run.bases.some(b => b.quartiles[k])).map(k => option(k, terms[k].title)))),
    h("label", null, "Search labels", h("input", { type: "search", name: "q", placeholder: "cat OR dog ( / )", oninput: e => { keep({ q: e.target.value }); draw() } })))
  main.replaceChildren(h("h1", null, "Map"), h("p.lead", null, "Every unit of the layer, or of the SAE, is a dot. Draw a rectangle to list what lies in it."), controls, key, h("div.atlas", null, h("div", null, box, note), list))
  new ResizeObserver(() => points.length && draw()).observe(main)
  document.addEventListener("themechange", draw)
  addEventListener("keydown", event => { if (event.key === "/" && !event.target.closest("input, select")) { event.preventDefault(); controls.q.focus() } })
  addEventListener("hashchange", () => { fromAddress(); read() })
  fromAddress()
  await read()
})

/* Dots of a legend with their words: [[word, CSS colour]]. */
const legendOf = rows => rows.map(([word, css]) => h("span", null, h("i.dot", { style: `background:${css}`, "aria-hidden": "true" }), word))

/* How the map was made and what may be read from it. */
function described(map) {
  const what = map.of === "meaning" ? "the mean embedding of each unit’s strongest images, in the space in which labels were made" : "the directions that this SAE’s features write"
  if (map.by === "umap") return [h("b", null, "UMAP"), ` of ${what}: units that are near each other are alike; how far apart groups lie, and how dense they are, means little.`]
  return ["Two ", h("b", null, "principal components"), ` of ${what}: they hold ${map.shares.map(s => format.share(s).replace(" ", "\u00a0")).join(" and ")} of the variance, so units that lie together need not be alike, while units far apart differ. With `, h("code", null, "pip install 'saelab[map]'"), " the map is drawn by UMAP instead, which keeps neighbours together."]
}
