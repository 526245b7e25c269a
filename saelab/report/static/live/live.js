/* What pages can do when a viewer serves them: what people say is kept in files beside the run. */
"use strict"

const live = (() => {
  async function ask(address, options) {
    const reply = await fetch(address, options)
    const answer = await reply.json()
    if (!reply.ok) throw new Error(answer.error)
    return answer
  }
  const get = (address, query) => ask(query ? `${address}?${new URLSearchParams(query)}` : address)
  const post = (address, value) => ask(address, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) })
  const upload = (address, file) => ask(address, { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file })
  return { get, post, upload, name: people.name }
})()

Object.assign(people.source, {
  where: "files",
  read: () => live.get("api/people"),
  keep: ({ basis, unit, who, verdict, star, note, collections, ...row }) => {
    if ("new" in row) return live.post("api/edits", { basis, unit, label: row.new, who })
    const change = Object.fromEntries(Object.entries({ verdict, star, note, collections }).filter(([, value]) => value !== undefined))
    return live.post("api/judgements", { basis, unit, change, who })
  },
})

/* A picture of a unit opens the search for what else it fires. */
document.addEventListener("click", event => {
  const id = event.target.closest?.(".pairs .photo")?.src.match(/(\d+)\.webp$/)?.[1]
  if (id) location.href = `search.html#image=${id}`
})
