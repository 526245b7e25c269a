/* Search: words, a picture, or a place in a picture, to the units of every basis; the address keeps what was asked. */
"use strict"

page(async (run, main) => {
  const words = h("input", { type: "search", name: "text", size: 34, maxlength: 300, placeholder: "a dog in the snow", "aria-label": "Words" })
  const results = h("div", { role: "status" })
  const picked = h("div") // the picture that is asked about; it stays, with the focus, while places in it are tried
  let last = 0
  let known = null // what `picked` shows: "image=3" or "upload=..."

  const go = asked => {
    const to = `#${new URLSearchParams(asked)}`
    if (to === location.hash) look() // asked again: the first time may have failed
    else location.hash = to
  }
  const show = async (asking, draw) => {
    const own = ++last
    results.setAttribute("aria-busy", "true")
    if (!results.childElementCount) results.replaceChildren(h("p.quiet", null, "Searching …"))
    let made
    try {
      const answer = await asking()
      if (own !== last) return // something else was asked since
      made = await draw(answer)
    } catch (error) {
      made = [h("p.fault", { role: "alert" }, error.message)]
    }
    if (own !== last) return
    results.replaceChildren(...made)
    results.removeAttribute("aria-busy")
  }
  /* A picture by its key, at a place or whole; `answer` where it is known already. */
  const pictured = (asked, answer) => {
    const key = ["image", "upload"].find(name => asked.has(name))
    const one = `${key}=${asked.get(key)}`
    const at = asked.get("at")
    show(() => answer ?? live.get("api/search", { [key]: asked.get(key), ...(at ? { at } : {}) }), async found => {
      await libraries() // heat maps need D3's colours
      const choose = place => go({ [key]: asked.get(key), ...(place ? { at: place } : {}) })
      if (known !== one || !picked.childElementCount) picked.replaceChildren(chooser(found, key === "image" ? `Image ${asked.get(key)} of the run` : "Your picture", one, choose))
      known = one
      point(picked.querySelector(".place"), found, at)
      const whole = picked.querySelector(".whole")
      if (!at && document.activeElement === whole) picked.querySelector(".place").focus({ preventScroll: true }) // it goes
      whole.hidden = !at
      return firing(run, found, at, choose)
    })
  }
  const look = () => {
    const asked = new URLSearchParams(location.hash.slice(1))
    words.value = asked.get("text") ?? ""
    if (asked.has("image") || asked.has("upload")) return pictured(asked)
    picked.replaceChildren()
    known = null
    if (asked.has("text")) show(() => live.get("api/search", { text: asked.get("text") }), answer => described(run, answer, asked.get("text")))
    else results.replaceChildren()
  }
  const field = live.pictures(file => {
    history.pushState(null, "", location.pathname) // what was asked before must not stand beside what becomes of this one
    words.value = ""
    picked.replaceChildren()
    show(() => live.upload("api/search", file), async answer => {
      const asked = new URLSearchParams({ upload: answer.upload })
      history.replaceState(null, "", `#${asked}`)
      pictured(asked, answer)
      return [h("p.quiet", null, "Drawing …")]
    })
  })

  main.replaceChildren(
    h("h1", null, "Search"),
    h("p.lead", null, "Words find the units they describe, whether or not the vocabulary has them. A picture finds the units that it fires unusually strongly, and where; click a place in it to see which units fire there."),
    h("form.controls", { onsubmit: event => { event.preventDefault(); if (words.value.trim()) go({ text: words.value.trim() }) } },
      h("label", null, "Words", words), h("button", null, "Search"), field),
    await samplesOf(run), h("div.looking", null, picked, results))
  addEventListener("hashchange", look)
  look()
})

/* ---- words ---- */

async function described(run, answer, text) {
  const lists = await Promise.all(answer.found.map(async found => {
    const rows = await load(run, found.basis)
    return basisSection(run, found, found.hits.length ? h("ul.near", null, found.hits.map(hit => listed(run, found, hit, rows[hit.unit]))) : h("p.quiet", null, "No unit."))
  }))
  if (!answer.nothing) return [h("h2", null, `Units for “${text}”`), h("p.note", null, "The number is the unit’s score for these words: the run’s scorer, or Pearson’s r where that one makes labels compete. Marks are of the unit’s own label."), h("div.two", null, lists)]
  return [
    h("h2", null, `Nothing like “${text}”`),
    h("p.lead", null, `${format.share(answer.chance)} of made-up words, which mean nothing, come as near to these pictures. “${text}” means nothing to the encoder, or something that they don’t show.`),
    h("details.nearest", null, h("summary", null, "The nearest units all the same"), h("div.two", null, lists)),
  ]
}

/* ---- pictures and places in them ---- */

/* The picture that is asked about, as a button: a click or the arrow keys choose a place. */
function chooser(answer, title, key, choose) {
  const photo = h("img.photo", { src: answer.picture, alt: answer.said ?? title })
  const step = 1 / (answer.found.find(part => part.grid)?.grid[1] ?? 10)
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }
  const frame = h("button.place", {
    type: "button", "aria-label": "Choose a place in the picture: click, or use the arrow keys",
    onclick: event => choose(event.detail ? placeIn(photo, event) : "0.5000,0.5000"), // Enter: the middle
    onkeydown: event => {
      const move = moves[event.key]
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return
      event.preventDefault()
      const now = (frame.dataset.at ?? "0.5,0.5").split(",").map(Number)
      frame.dataset.at = now.map((x, i) => Math.min(0.9999, Math.max(0, x + move[i])).toFixed(4)).join(",")
      choose(frame.dataset.at)
    },
  }, photo)
  return h("div.asking", null, frame, h("h2", null, title), answer.said ? h("p.serif", null, answer.said) : null,
    h("p.note", null, "Click a place in the picture to see which units fire there.", h("span.wide-only", null, " Arrow keys move the place.")),
    h("div.turn", null, h("button.whole", { type: "button", onclick: () => choose(null) }, "The whole picture"), h("a.button", { href: `what-if.html#${key}` }, "What if?")))
}

/* Show the place, and outline the token that lies there (of each layer, where they differ). */
function point(frame, answer, at) {
  for (const older of frame.querySelectorAll("i")) older.remove()
  if (!at) return delete frame.dataset.at
  frame.dataset.at = at
  const [x, y] = at.split(",").map(share => 100 * share)
  const outlines = new Map(answer.found.filter(part => part.cell).map(({ grid, cell, box }) => {
    const [w, h_] = [box[0] / grid[1], box[1] / grid[0]].map(share => 100 * share)
    const style = `left:${50 - 50 * box[0] + cell[1] * w}%;top:${50 - 50 * box[1] + cell[0] * h_}%;width:${w}%;height:${h_}%`
    return [style, h("i.token", { style, "aria-hidden": "true" })]
  }))
  frame.append(...outlines.values(), h("i.spot", { style: `left:${x}%;top:${y}%`, "aria-hidden": "true" }))
}

async function firing(run, answer, at, choose) {
  const unseen = at && answer.found.every(part => part.cell === null)
  const parts = unseen ? [] : await Promise.all(answer.found.map(async found => {
    const rows = await load(run, found.basis)
    const none = at && !found.cell ? "Tokens of this layer have no place in the picture." : `No unit at a fifth of its highest or more${at ? " here" : ""}.`
    return basisSection(run, found, found.hits.length ? h("div.pairs", null, found.hits.map(hit => fired(found, hit, rows[hit.unit], answer.picture, choose))) : h("p.quiet", null, none))
  }))
  if (unseen) return [h("h2", null, "Nothing is known here"), h("p.lead", { role: "alert" }, "The model does not see this place: it looks at the middle of a picture, or its tokens have no place.")]
  const cropped = answer.found.some(part => part.box && Math.min(...part.box) < 0.999)
  return [h("h2", null, at ? "Units that fire here" : "Units that the picture fires"),
    h("p.note", null, `Ranked by how few mined images fire the unit as much (ties count half), times its share of its highest activation on them${at ? ", at this place" : ""}. ${cropped ? "Heat maps end where the model’s view of the picture ends; they" : "Heat maps"} share one scale: `, heatScale()), ...parts]
}

const basisSection = (run, found, list) => h("section.found", { style: `--c:${hue(run, found.basis)}` }, h("h3", null, dot(run, found.basis), inWords(run, found.basis)), list)

function listed(run, found, hit, row) {
  return h("li", null, strip(row.thumbs.slice(0, 3)),
    h("a", { href: unitLink(found.basis, hit.unit) }, h("span.serif", null, row.label ?? "no label"), h("small", null, marks(row), h("span.together", null, `${alone[run.bases[number(run, found.basis)].kind] ?? "unit"} ${hit.unit}`))),
    h("span.tabular.quiet", null, format.number(hit.score, 3)))
}

function fired(found, hit, row, src, choose) {
  const photo = h("img.photo", { src, alt: `where unit ${hit.unit} fires` })
  const frame = h("div.frame", { onclick: event => choose(placeIn(photo, event)) }, photo)
  if (hit.cells) {
    const [height, width] = found.grid
    frame.append(overlay({ height, width, cells: Uint8Array.from(atob(hit.cells), c => c.charCodeAt(0)), box: found.box }))
    if (found.cell) frame.append(h("i.spot", { style: `left:${50 + 100 * found.box[0] * ((found.cell[1] + 0.5) / width - 0.5)}%;top:${50 + 100 * found.box[1] * ((found.cell[0] + 0.5) / height - 0.5)}%`, "aria-hidden": "true" }))
  }
  return h("figure.pair", null, frame,
    h("div.level", null, h("i", { style: `width:${Math.min(100, 100 * hit.share)}%` })),
    h("a", { href: unitLink(found.basis, hit.unit) }, h("span.serif", null, row.label ?? "no label")),
    h("small.marks", null, marks(row)),
    h("small", null, `unit ${hit.unit} · ${format.share(hit.share)} of its highest on mined images`),
    h("small", null, hit.below === 1 ? "more than all of them" : `more than ${format.share(hit.below)} of them`), strip(row.thumbs.slice(0, 3)))
}
