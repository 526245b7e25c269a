/* Two to four units side by side: a column each, their photos, evidence and numbers in the same rows. */
"use strict"

page(async (run, main) => {
  const draw = async () => {
    const wanted = codes(location.hash.slice(1))
    const missing = wanted.find(([b, u]) => !run.bases[b] || !Number.isInteger(u) || u < 0 || u >= run.bases[b].units)
    if (missing) return nothing(run, main, `This report has no unit ${missing.join(".")}.`)
    if (wanted.length < 2 || wanted.length > 4) return main.replaceChildren(h("h1", null, "Side by side"), h("p.standfirst", { role: "alert" }, "Two to four units stand side by side."), h("p", null, "Tick them in the ", h("a", { href: "units.html" }, "browser of units"), ", or press v on their pages."))
    const units = await Promise.all(wanted.map(async ([b, u]) => {
      const records = await saelab.need(`units/${b}/${Math.floor(u / run.chunk)}`)
      return { basis: run.bases[b], record: records[u % run.chunk], place: `${b}.${u}` }
    }))
    const layers = new Set(units.map(({ basis }) => basis.layer))
    const of = layers.size === 1 ? [run.host, ...layers].filter(Boolean).join(" · ") : null // else each unit is named with its own
    main.replaceChildren(...of ? [h("p.kicker", null, of)] : [], h("h1", null, "Side by side"), h("p.lead", null, "A photo that is among the strongest of several of these units is framed. The number under a photo is its activation; small numbers after a measure are its 95\u00a0% interval."), h("div.scroll", null, besideTable(run, units)))
  }
  addEventListener("hashchange", draw)
  await draw()
})

function besideTable(run, units) {
  const together = new Map() // photo -> how many of the units it is among the strongest of
  for (const { record } of units) for (const id of new Set(record.positives)) together.set(id, (together.get(id) ?? 0) + 1)
  const cell = draw => units.map(unit => h("td", { style: `--c:${hue(run, unit.basis.name)}` }, draw(unit)))
  const row = (title, draw) => h("tr", null, h("th", { scope: "row" }, title), cell(draw))
  const keys = numberColumns.filter(key => units.some(({ record }) => record.measured[key] !== null && record.measured[key] !== undefined))
  const value = (record, key) => {
    const two = record.interval[key]
    return h("span.tabular", null, shown(key, record.measured[key]), two ? h("small.quiet", null, ` ${format.number(two[0])} to ${format.number(two[1])}`) : null)
  }
  const photos = (list, names) => (list.length ? h("div.photos", null, list.map(([id, words]) => h("figure", { class: together.get(id) > 1 ? "shared" : null }, picture(id, names[id]), h("figcaption", null, words)))) : h("p.quiet", null, "None."))
  const heldOutRow = (key, title) => (units.some(({ record }) => record.held_out?.[key]) ? row(title, ({ record }) => (record.held_out?.[key] ? photos(record.held_out[key].slice(0, 6).map(([id, x]) => [id, format.number(x)]), record.names) : h("p.quiet", null, "–"))) : null)
  const words = units.every(unit => unit.basis.layer === units[0].basis.layer) ? inFewWords : inWords
  const others = place => units.filter(unit => unit.place !== place).map(unit => unit.place).join("_")
  return h(units.length === 2 ? "table.beside.couple" : "table.beside", null,
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Unit"), units.map(({ basis, record, place }) => h("th", { scope: "col" },
      h("a", { href: unitLink(basis.name, record.unit) }, h("span.serif", null, record.label ?? "no label")),
      h("span.of", null, dot(run, basis.name), `${words(run, basis.name)}\u00a0·\u00a0${record.unit}`, units.length > 2 ? h("a", { href: `#${others(place)}`, "aria-label": `take out ${record.label ?? "this unit"}` }, "×") : null))))),
    h("tbody", null,
      row("What is known of the label", ({ basis, record }) => h("div.marks", null, marks(record, true), saidMarks(people.of(basis.name, record.unit)), record.label === null ? "–" : null)),
      row("Strongest photos", ({ record }) => photos(record.positives.slice(0, 9).map((id, i) => [id, format.number(record.activations[i])]), record.names)),
      heldOutRow("hits", "Held out: hits"), heldOutRow("alarms", "Held out: false alarms"), heldOutRow("strongest", "Held out: strongest, as nobody’s words confirm the label"),
      row("Next best labels", ({ record }) => (record.scores[record.scorer]?.runners_up ?? []).map(([label]) => label).filter(label => label !== record.label).slice(0, 4).join(", ") || "–"),
      row(["Activations ", h("small.quiet.below", null, "square-root heights")], ({ basis, record }) => (record.histogram.length ? activationHistogram(record, hue(run, basis.name)) : "–")),
      keys.map(key => row(term(key), ({ record }) => value(record, key)))))
}
