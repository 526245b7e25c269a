/* Charts by Observable Plot, in the page's colours and type; drawn again when the width or the theme changes. */
"use strict"

let loading = null

/* D3 and Plot are loaded when the first chart is drawn: tables don't wait for them. */
const libraries = () => (loading ??= Promise.all(["d3.min.js", "plot.umd.min.js"].map(name => saelab.script(`assets/${name}`, true))))

/* A figure that keeps itself drawn: `draw(width)` returns a plot. `says` is its text for those who can't see it. */
function figure(says, draw, caption) {
  const box = h("div.plot", { role: "img", "aria-label": says })
  const whole = h("figure", null, box, caption ? h("figcaption", null, caption) : null)
  let width = 0
  const redraw = async () => {
    await libraries()
    if (!width) return
    const drawn = draw(width)
    drawn.setAttribute("aria-hidden", "true") // the box says in words what is drawn
    box.replaceChildren(drawn)
  }
  new ResizeObserver(([entry]) => {
    const found = Math.floor(entry.contentRect.width)
    if (found !== width) { width = found; requestAnimationFrame(redraw) }
  }).observe(box)
  document.addEventListener("themechange", redraw)
  whole.redraw = redraw
  return whole
}

const plotStyle = { background: "transparent", fontFamily: "var(--sans)", fontSize: "12px", color: "var(--soft)", overflow: "visible" }

/* Counts of images per activation, low to high; the text counts the images on which the unit is silent. */
function activationHistogram(record, css) {
  const [low, high] = record.range
  const step = (high - low) / record.histogram.length
  const bins = record.histogram.map((n, i) => ({ x1: low + i * step, x2: low + (i + 1) * step, n }))
  const fires = record.images - record.silent
  return figure(`Histogram: the unit fires on ${fires} of ${format.plural(record.images, "image")}, up to ${format.number(high)}`, width =>
    Plot.plot({
      width, height: 196, marginLeft: 46, marginBottom: 44, marginTop: 22, style: plotStyle,
      x: { label: "activation →", ticks: width < 200 ? 2 : 5 },
      y: { label: "↑ images", type: "sqrt", ticks: 4, grid: true, tickFormat: "d" },
      marks: [
        Plot.rectY(bins, { x1: "x1", x2: "x2", y: "n", fill: colour(css), insetLeft: 0.5, insetRight: 0.5, title: b => `${format.plural(b.n, "image")} between ${format.number(b.x1)} and ${format.number(b.x2)}` }),
        Plot.ruleY([0], { stroke: "currentColor" }),
      ],
    }))
}

/* [low, high], widened to a tenth of the value where all are alike: ticks of a narrower axis have more digits than room. */
function roomy([low, high], most = Infinity) {
  const wide = 0.1 * Math.max(Math.abs(low), Math.abs(high)) || 0.1
  return high - low >= wide ? [low, high] : [(low + high - wide) / 2, Math.min(most, (low + high + wide) / 2)]
}

const many = 6000 // dots above which a scatter plot shows counts of units in hexagons instead

/* Rate against a number, one dot a unit; a click opens the unit, a rectangle keeps its two ranges: brushed([low, high]
   of the rate, [low, high] of the number). `rate`, `value`: of a row; a row has {label, basis, unit}. `names(basis)`: in words. */
function scatter(rows, { rate, value, title, colours, names, open, brushed, height = 320 }) {
  const drawn = []
  for (const row of rows) {
    const [x, y] = [rate(row), value(row)]
    if (x > 0 && y !== null && y !== undefined) drawn.push({ row, x, y })
  }
  if (!drawn.length) return h("p.quiet", null, "No dot to draw: no unit matches, or none has both numbers.")
  const says = `Scatter plot of ${format.plural(drawn.length, "unit")}: share of images on which a unit fires against ${title}`
  return figure(says, width => {
    const dots = drawn.length <= many
    const css = Object.fromEntries(Object.entries(colours).map(([basis, own]) => [basis, colour(own)]))
    const [least, most] = roomy(d3.extent(drawn, d => d.x), 1)
    const type = most < 5 * least ? "linear" : "log" // a logarithmic axis of less than a decade has hardly a tick
    const axes = { type, x: [least, most], y: d3.nice(...roomy(d3.extent(drawn, d => d.y)), 10) }
    const tip = () => Plot.tip(drawn, Plot.pointer({
      x: "x", y: "y", maxRadius: 24, fill: "var(--paper)", stroke: "var(--line)", textPadding: 10,
      title: ({ row, x, y }) => `${inWordsOfMarks(row)}\n${names(row.basis)}, unit ${row.unit}\n${title} ${format.number(y)}, fires on ${format.share(x)}`,
    }))
    const plot = Plot.plot({
      width, height, marginLeft: 46, marginBottom: 46, marginTop: 24, style: plotStyle,
      x: { type, domain: axes.x, label: `fires on, share of images${type === "log" ? " (log)" : ""} →`, tickFormat: x => `${+(100 * x).toPrecision(3)} %`, ticks: width < 500 ? 4 : 7 },
      y: { label: `↑ ${title}`, grid: true, domain: axes.y },
      r: { range: [0, 12] }, inset: dots ? 6 : 0, // no dot lies on a tick
      marks: [
        dots
          ? Plot.dot(drawn, { x: "x", y: "y", fill: d => css[d.row.basis], r: drawn.length > 1500 ? 2 : 3.2, fillOpacity: drawn.length > 1500 ? 0.45 : 0.65 })
          : Plot.dot(counted(drawn, axes, width - 66, height - 70), { x: "x", y: "y", r: "count", fill: d => css[d.basis], fillOpacity: 0.6 }),
        dots ? tip() : null,
      ],
    })
    plot.addEventListener("click", () => plot.value && open(plot.value.row))
    plot.style.cursor = "pointer"
    if (brushed) brush(plot, width, height, brushed)
    return plot
  }, drawn.length <= many ? "Each dot is a unit; a click opens it." : "A dot stands for the units around it: the larger, the more.")
}

/* Units of a basis counted in hexagons, 14 pixels apart, on a field of so many pixels: {basis, x, y, count}, largest first.
   A hexagon's middle is the nearest point of two lattices of rectangles, each in the middle of the other's. */
function counted(drawn, axes, width, height) {
  const [x, y] = [(axes.type === "log" ? d3.scaleLog : d3.scaleLinear)(axes.x, [0, width]), d3.scaleLinear(axes.y, [height, 0])]
  const [wide, high] = [14, 14 * Math.sqrt(3)]
  const found = new Map()
  for (const { row, x: rate, y: value } of drawn) {
    const [px, py] = [x(rate) / wide, y(value) / high]
    const even = [Math.round(px), Math.round(py)]
    const odd = [Math.floor(px) + 0.5, Math.floor(py) + 0.5]
    const far = ([a, b]) => ((a - px) * wide) ** 2 + ((b - py) * high) ** 2
    const [a, b] = far(even) <= far(odd) ? even : odd
    const key = `${a} ${b} ${row.basis}`
    const own = found.get(key)
    if (own) own.count++
    else found.set(key, { basis: row.basis, x: x.invert(a * wide), y: y.invert(b * high), count: 1 })
  }
  return [...found.values()].sort((a, b) => b.count - a.count)
}

function brush(plot, width, height, brushed) {
  const [x, y] = [plot.scale("x"), plot.scale("y")]
  const layer = d3.select(plot).append("g").attr("class", "brush")
  layer.call(d3.brush().extent([[46, 24], [width - 20, height - 46]]).on("end", ({ selection }) => {
    if (!selection) return
    const [[left, top], [right, bottom]] = selection
    brushed([x.invert(left), x.invert(right)], [y.invert(bottom), y.invert(top)])
  }))
}

/* Medians and middle halves of one number per basis. rows: {name, colour, q: [q1, q2, q3]}; `show`: a number in words. */
function ranges(rows, title, show = format.number) {
  const says = `${title}: ` + rows.map(r => `${r.name} median ${show(r.q[1])}`).join("; ")
  return figure(says, width =>
    Plot.plot({
      width, height: 34 * rows.length + 34, marginLeft: 14, marginRight: 30, marginTop: 6, marginBottom: 26, style: plotStyle,
      x: { label: null, ticks: 4, domain: roomy(d3.extent(rows.flatMap(r => r.q))), nice: true, grid: true, tickFormat: show === format.share ? show : undefined },
      y: { axis: null, domain: rows.map(r => r.name) },
      marks: [
        Plot.ruleY(rows, { x1: r => r.q[0], x2: r => r.q[2], y: "name", stroke: r => colour(r.colour), strokeWidth: 6, strokeOpacity: 0.35, strokeLinecap: "round" }),
        Plot.dot(rows, { x: r => r.q[1], y: "name", fill: r => colour(r.colour), r: 5, stroke: "var(--paper)", strokeWidth: 1.5 }),
        Plot.text(rows, { x: r => r.q[1], y: "name", text: r => show(r.q[1]), dy: -13, fill: "currentColor", fontVariant: "tabular-nums" }),
      ],
    }))
}

/* Means of all groups on one axis: rows {name, note, css, mean, low, high, control}; `at`: the reference's mean. */
function forest(rows, { title, reference, at }) {
  const says = `${title}: ` + rows.map(r => `${r.name} ${format.number(r.mean, 3)}${r.low === null ? "" : `, interval ${format.number(r.low, 3)} to ${format.number(r.high, 3)}`}`).join("; ")
  const ends = [0, ...rows.flatMap(r => [r.mean, r.low, r.high])].filter(x => x !== null)
  const span = Math.max(...ends) - Math.min(...ends) || 1
  const named = 24 + 6.6 * Math.max(...rows.map(r => r.name.length + 8)) // of 12 pixels, a letter takes 6.6 at most in the mean
  const words = (name, width) => (named > 0.55 * width && name.length > 18 ? `${name.slice(0, 17)}…` : name)
  return figure(says, width => Plot.plot({
    width, height: 34 * rows.length + 52, marginLeft: Math.min(named, 0.55 * width), marginRight: 20, marginTop: 8, marginBottom: 44, style: plotStyle,
    x: { label: `${title} →`, ticks: width < 480 ? 3 : 5, grid: true, domain: [Math.min(...ends) - 0.04 * span, Math.max(...ends) + 0.06 * span] },
    y: { label: null, domain: rows.map(r => r.name), padding: 0.5, tickSize: 0, tickPadding: 12, tickFormat: name => `${words(name, width)}   ${format.number(rows.find(r => r.name === name).mean, 3)}` },
    marks: [
      Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.7 }),
      at === null ? null : Plot.ruleX([at], { stroke: colour(reference.css), strokeDasharray: "4 3" }),
      Plot.ruleY(rows.filter(r => r.low !== null), { x1: "low", x2: "high", y: "name", stroke: r => colour(r.css), strokeWidth: 5, strokeOpacity: 0.4, strokeLinecap: "round" }),
      Plot.dot(rows, { x: "mean", y: "name", fill: r => (r.control ? "var(--paper)" : colour(r.css)), stroke: r => colour(r.css), strokeWidth: 2, r: 5 }),
      Plot.text(rows.filter(r => r.note), { x: "mean", y: "name", text: "note", dy: -12, fill: "currentColor" }),
    ],
  }), [h("span", null, reference
    ? `Dot: mean over all named units, above what a typical label reaches (0). Bar: 95 % interval of the difference from ${reference.name} (dashed line); a bar that crosses the line shows no difference. Hollow: controls.`
    : "Dot: mean over all named units.")])
}

/* How often features fire: counts of features by log10 of the share of tokens that fire them. */
function densityHistogram(density, css) {
  const bins = density.counts.map((n, i) => ({ x1: density.edges[i], x2: density.edges[i + 1], n }))
  const filled = bins.filter(b => b.n)
  const low = filled.length ? Math.min(-3, filled[0].x1) : -6
  return figure(`Histogram of ${d3Sum(density.counts)} features by the share of held-out tokens that fire them`, width => Plot.plot({
    width, height: 180, marginLeft: 44, marginRight: 24, marginBottom: 48, marginTop: 22, style: plotStyle,
    x: { label: "share of held-out tokens that fire it (log) →", domain: [low, 0], ticks: 4, tickFormat: x => `${+(100 * 10 ** x).toPrecision(1)} %` },
    y: { label: "↑ features", ticks: 4, grid: true },
    marks: [Plot.rectY(bins.filter(b => b.x1 >= low), { x1: "x1", x2: "x2", y: "n", fill: colour(css), insetLeft: 0.5, insetRight: 0.5, title: b => format.plural(b.n, "feature") }), Plot.ruleY([0], { stroke: "currentColor" })],
  }))
}

const d3Sum = counts => counts.reduce((sum, n) => sum + n, 0)
