/* What if: a picture to its outputs, the units that carry the first one, and a slider that takes a unit out or amplifies it. */
"use strict"

page(async (run, main) => {
  const results = h("div", { role: "status" })
  let last = 0
  const show = async (asking, key) => {
    const own = ++last
    if (!key) history.pushState(null, "", location.pathname) // a picture that is refused has no address, nor the one before it
    results.replaceChildren(h("p.quiet", null, "Looking …"))
    try {
      const answer = await asking()
      if (own !== last) return // another picture was given since
      const asked = key ?? { upload: answer.upload }
      if (!key) history.replaceState(null, "", `#${new URLSearchParams(asked)}`)
      results.replaceChildren(...seen(run, answer, asked))
    } catch (error) {
      if (own === last) results.replaceChildren(fault(error))
    }
  }
  const look = () => {
    const given = new URLSearchParams(location.hash.slice(1))
    const name = ["image", "upload"].find(one => given.has(one))
    if (!name) return results.replaceChildren()
    const key = { [name]: given.get(name) }
    return show(() => live.get("api/what-if", key), key)
  }
  main.replaceChildren(
    h("h1", null, "What if?"),
    h("p.lead", null, "Give a picture. You see what the model says, and which units carry its first choice. Then take a unit out, or make it stronger, and see what the model says instead."),
    h("form.controls", { onsubmit: event => event.preventDefault() }, live.pictures(own => show(() => live.upload("api/what-if", own)))),
    await samplesOf(run), results)
  addEventListener("hashchange", look)
  look()
})

const fault = error => h("p.fault", { role: "alert" }, error.message)

/* The picture's outputs, and a list of units for each basis; a unit opens the slider. */
function seen(run, answer, asked) {
  const table = h("div.outputs", null, rows(answer.outputs.map(([name, share]) => [name, share, share])))
  const control = h("div.what-if", { "aria-live": "polite" }, h("p.quiet", null, "Choose a unit of the lists, or any by its number."))
  const choose = (basis, unit, label) => {
    control.replaceChildren(...slider(run, basis, unit, label, asked, table))
    control.scrollIntoView({ block: "nearest" }) // on a phone it stands above the units
  }
  return [h("div.weigh", null,
    h("div", null, h("a", { href: `search.html#${new URLSearchParams(asked)}`, title: "which units fire where" }, h("img.photo.asked", { src: answer.picture, alt: "the picture: search with it" })), table, control),
    h("div", null, h("h2", null, `What carries ${answer.output}`),
      h("p.note", null, `Effect: what the logit of ${answer.output}, less the mean of all, loses without the unit; below 0 the unit works against it. The largest either way.`),
      h("div.bases", null, answer.bases.map(found => units(run, found, choose)))))]
}

function units(run, found, choose) {
  const number = h("input", { type: "number", min: 0, step: 1, size: 7, "aria-label": `Unit of ${inWords(run, found.basis)}` })
  const ask = event => { event.preventDefault(); if (number.value !== "") choose(found.basis, Number(number.value), null) }
  const line = hit => h("li", null,
    h("button", { type: "button", onclick: () => choose(found.basis, hit.unit, hit.label) }, `Unit ${hit.unit}`),
    h("a", { href: unitLink(found.basis, hit.unit) }, h("span.serif", null, hit.label ?? "no label")),
    h("span.tabular.quiet", null, format.number(hit.effect, 3)))
  return h("section.found", { style: `--c:${hue(run, found.basis)}` }, h("h3", null, dot(run, found.basis), inWords(run, found.basis)),
    found.units.length ? h("ul.near.carry", null, found.units.map(line)) : h("p.quiet", null, "No unit carries it."),
    h("form.controls", { onsubmit: ask }, h("label", null, "Another unit", number), h("button", null, "Choose")))
}

function slider(run, basis, unit, label, picture, table) {
  const range = h("input", { type: "range", name: "strength", min: 0, max: 4, step: 0.25, value: 1, "aria-label": `Strength of unit ${unit}` })
  const said = h("output", null, "1 ×"), note = h("p.note")
  let asked = 0
  const show = async () => {
    const own = ++asked
    said.textContent = `${range.value} ×`
    try {
      const answer = await live.get("api/what-if", { ...picture, basis, unit, strength: range.value })
      if (own !== asked) return
      table.replaceChildren(rows(answer.outputs))
      note.textContent = answer.silent
        ? "The unit is silent on this picture. It is added everywhere, as multiples of what it usually has where it fires."
        : "Multiples of what the unit has on this picture; 0 takes it out."
    } catch (error) {
      note.replaceChildren(fault(error))
    }
  }
  range.addEventListener("input", show)
  show()
  return [h("p", null, h("a", { href: unitLink(basis, unit) }, `${inWords(run, basis)}, unit ${unit}`), label ? h("span.serif", null, ` ${label}`) : null),
    h("label", null, "Strength", range, said), note]
}

/* Outputs with their shares, before (grey) and after. */
function rows(outputs) {
  const bar = (share, kind) => h(`div.level.${kind}`, null, h("i", { style: `width:${(100 * share).toFixed(1)}%` }))
  return h("table", null, h("thead", null, h("tr", null, h("th", null, "Output"), h("th", null, "As it is"), h("th", null, "Changed"), h("th", null, "grey: as it is"))),
    h("tbody", null, outputs.map(([name, before, after]) => h("tr", null, h("th", { scope: "row" }, name),
      h("td.tabular", null, format.share(before)), h("td.tabular", null, format.share(after)), h("td.axis", null, bar(before, "was"), bar(after, "now"))))))
}
