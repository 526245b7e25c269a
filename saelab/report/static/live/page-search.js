/* Search: words, or a picture, to the units of every basis; the address keeps what was asked. */
"use strict"

page(async (run, main) => {
  const words = h("input", { type: "search", name: "text", size: 34, maxlength: 300, placeholder: "a dog in the snow", "aria-label": "Words" })
  const file = h("input", { type: "file", name: "picture", accept: "image/*", "aria-label": "A picture of yours" })
  const results = h("div", { role: "status" })
  const samples = h("div.strip.samples")
  const show = async (asking, what) => {
    results.replaceChildren(h("p.quiet", null, "Searching; the first search loads the models …"))
    try {
      results.replaceChildren(...await drawn(run, await asking, what))
    } catch (error) {
      results.replaceChildren(h("p.fault", { role: "alert" }, error.message))
    }
  }
  const look = () => {
    const asked = new URLSearchParams(location.hash.slice(1))
    words.value = asked.get("text") ?? ""
    if (asked.has("text")) show(live.get("api/search", { text: asked.get("text") }), `“${asked.get("text")}”`)
    else if (asked.has("image")) show(live.get("api/search", { image: asked.get("image") }), `image ${asked.get("image")} of the run`)
    else results.replaceChildren()
  }
  file.addEventListener("change", () => {
    if (!file.files.length) return
    history.replaceState(null, "", "#")
    words.value = ""
    show(live.upload("api/search", file.files[0]), file.files[0].name)
  })

  main.replaceChildren(
    h("h1", null, "Search"),
    h("p.lead", null, "Words find the units they describe, whether or not the vocabulary has them. A picture finds the units that it fires unusually strongly, and shows where."),
    h("form.controls", { onsubmit: event => { event.preventDefault(); if (words.value.trim()) location.hash = new URLSearchParams({ text: words.value.trim() }) } },
      h("label", null, "Words", words), h("button", null, "Search"), h("label", null, "Or a picture of yours (it stays on this machine)", file)),
    h("p.note", null, "Or one of the run’s:"), samples, results)
  addEventListener("hashchange", look)
  const first = await saelab.need("summary-0")
  const ids = [...new Set(first.thumbs.flatMap(t => t.slice(0, 1)))]
  samples.append(...[...Array(Math.min(12, ids.length)).keys()].map(i => ids[Math.floor(((i + 0.5) * ids.length) / Math.min(12, ids.length))])
    .map(id => h("a", { href: `#image=${id}` }, picture(id))))
  look()
})

/* What was found, a section for each basis. */
async function drawn(run, answer, what) {
  const parts = await Promise.all(answer.found.map(async found => {
    const summary = await saelab.need(`summary-${number(run, found.basis)}`)
    const row = hit => (answer.picture ? fired(run, found, hit, summary, answer.picture) : listed(run, found, hit, summary))
    return h("section.found", { style: `--c:${hue(run, found.basis)}` }, h("h3", null, dot(run, found.basis), inWords(run, found.basis)),
      found.hits.length ? h(answer.picture ? "div.pairs" : "ul.near", null, found.hits.map(row)) : h("p.quiet", null, "No unit."))
  }))
  const asked = answer.picture ? h("img.photo.asked", { src: answer.picture, alt: what }) : null
  const scale = answer.picture ? h("p.note", null, "Ranked by the share of images that fire the unit less. Heat:", heatScale()) : null
  return [h("h2", null, `Units for ${what}`), asked, scale, answer.picture ? parts : h("div.two", null, parts)].flat().filter(Boolean)
}

const labelOf = (summary, unit) => (summary.label[unit] < 0 ? "no label" : summary.labels[summary.label[unit]])

const marksOf = (summary, unit) => marks({ label: labelOf(summary, unit), abstained: summary.label[unit] >= 0 && summary.abstained.includes(unit), badge: summary.badges[summary.badge[unit]] })

function listed(run, found, hit, summary) {
  return h("li", null, strip(summary.thumbs[hit.unit].slice(0, 3)),
    h("a", { href: unitLink(found.basis, hit.unit) }, h("span.serif", null, labelOf(summary, hit.unit)), h("small", null, marksOf(summary, hit.unit), `${alone[run.bases[number(run, found.basis)].kind] ?? "unit"} ${hit.unit}`)),
    h("span.tabular.quiet", null, format.number(hit.score, 3)))
}

function fired(run, found, hit, summary, src) {
  const frame = h("div.frame", null, h("img.photo", { src, alt: `where unit ${hit.unit} fires` }))
  if (hit.cells) {
    const [height, width] = found.grid
    frame.append(overlay({ height, width, cells: Uint8Array.from(atob(hit.cells), c => c.charCodeAt(0)), box: found.box }))
  }
  return h("figure.pair", null, frame,
    h("div.level", null, h("i", { style: `width:${Math.min(100, 100 * hit.share)}%` })),
    h("a", { href: unitLink(found.basis, hit.unit) }, h("span.serif", null, labelOf(summary, hit.unit))),
    h("small", null, marksOf(summary, hit.unit)),
    h("small", null, `unit ${hit.unit} · ${format.share(hit.share)} of its highest`),
    h("small", null, `more than ${format.share(hit.score)} of images`), strip(summary.thumbs[hit.unit].slice(0, 3)))
}
