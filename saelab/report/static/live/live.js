/* What pages can do when a viewer serves them: what people say is kept in files beside the run. */
"use strict"

const live = (() => {
  async function ask(address, options) {
    const reply = await fetch(address, options).catch(() => { throw new Error("the viewer does not answer; start saelab view again") })
    const answer = await reply.json().catch(() => ({ error: `the viewer failed (${reply.status}); its terminal says why` }))
    if (!reply.ok) throw new Error(answer.error)
    return answer
  }
  const get = (address, query) => ask(query ? `${address}?${new URLSearchParams(query)}` : address)
  const post = (address, value) => ask(address, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) })
  const largest = 32 // MB of a picture; the server refuses more
  const upload = async (address, file) => {
    if (file.size > largest * 2 ** 20) throw new Error(`${file.name || "This picture"} has ${Math.ceil(file.size / 2 ** 20)} MB; at most ${largest} MB are read`)
    return ask(address, { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file })
  }

  /* The field for a picture of one's own; chosen there, pasted, or dropped anywhere on the page, it is handed to `take`. */
  function pictures(take) {
    const file = h("input", { type: "file", name: "picture", accept: "image/*", "aria-label": "A picture of yours" })
    const first = files => { // what is no picture is refused in words, not in silence
      const all = [...(files ?? [])]
      return all.find(one => one.type.startsWith("image/") || one.type === "") ?? all[0]
    }
    const given = (event, files) => {
      const own = first(files)
      if (!own) return
      event.preventDefault()
      take(own)
    }
    const carries = event => event.dataTransfer?.types.includes("Files")
    file.addEventListener("change", event => { given(event, file.files); file.value = "" }) // the same picture can be chosen again
    document.addEventListener("paste", event => given(event, event.clipboardData?.files))
    document.addEventListener("dragover", event => { if (carries(event)) { event.preventDefault(); document.body.classList.add("dropping") } })
    document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping") })
    document.addEventListener("drop", event => {
      document.body.classList.remove("dropping")
      if (carries(event)) event.preventDefault() // else the browser leaves the page for the file
      given(event, event.dataTransfer?.files)
    })
    return h("label", null, "A picture of yours: choose, paste or drop it (it stays on this machine)", file)
  }

  return { get, post, upload, pictures, name: people.name }
})()

/* A dozen of the run's photos to begin with, as links that put one into the page's address. */
async function samplesOf(run) {
  const first = rowsOf(run.bases[0].name, await saelab.need("summary-0-first"))
  const ids = [...new Set(first.flatMap(row => row.thumbs.slice(0, 1)))]
  const many = Math.min(12, ids.length)
  const drawn = Array.from({ length: many }, (_, i) => ids[Math.floor(((i + 0.5) * ids.length) / many)])
  return h("div", null, h("p.note", null, "Or one of the run’s:"), h("div.strip.samples", null, drawn.map(id => h("a", { href: `#image=${id}` }, picture(id)))))
}

/* Where in a photo was clicked: "x,y" in shares of its centre square, which is what is seen of it. */
function placeIn(photo, event) {
  const box = photo.getBoundingClientRect()
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(x => Math.min(0.9999, Math.max(0, x)).toFixed(4)).join(",")
}

Object.assign(people.source, {
  where: "files",
  read: () => live.get("api/people"),
  keep: ({ basis, unit, who, verdict, star, note, collections, ...row }) => {
    if ("new" in row) return live.post("api/edits", { basis, unit, label: row.new, who })
    const change = Object.fromEntries(Object.entries({ verdict, star, note, collections }).filter(([, value]) => value !== undefined))
    return live.post("api/judgements", { basis, unit, change, who })
  },
})

/* A click on a unit's photo opens the photo at that place: which units fire here. */
document.addEventListener("click", event => {
  const photo = event.target.closest?.(".pairs .photo, .photos .photo")
  const id = photo?.src.match(/(\d+)\.webp$/)?.[1]
  if (!id || photo.closest("a")) return
  location.href = `search.html#${new URLSearchParams({ image: id, ...(photo.closest(".strip") ? {} : { at: placeIn(photo, event) }) })}`
})
