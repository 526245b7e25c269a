/* What pages can do when a viewer serves them: labels that people changed show everywhere, and can be changed. */
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

  const name = {
    get value() { return localStorage.getItem("saelab-name") ?? "" },
    set value(text) { localStorage.setItem("saelab-name", text) },
  }
  return { get, post, upload, name }
})()

/* ---- changed labels: put into the data where they arrive, so that every page shows them ---- */

{
  const need = saelab.need
  const edits = live.get("api/edits")
  const amended = new WeakSet()

  async function amend(key, value) {
    if (amended.has(value)) return
    amended.add(value)
    if (key === "run") {
      for (const basis of value.bases) for (const card of [...basis.best, ...basis.sample]) relabel(card, (await edits)[basis.name]?.[card.unit])
    }
    const [, what, b] = key.match(/^(units|summary)\W(\d+)/) ?? []
    if (!what) return
    const found = (await edits)[(await need("run")).bases[b].name] ?? {}
    if (what === "units") for (const record of value) relabel(record, found[record.unit])
    else value.units.forEach((unit, i) => { if (found[unit]) value.badge[i] = -1, value.label[i] = found[unit].label === null ? -1 : value.labels.push(found[unit].label) - 1 })
  }

  function relabel(record, edit) {
    if (edit) Object.assign(record, { label: edit.label, edited: edit, abstained: false, badge: null })
  }

  saelab.need = async key => {
    const value = await need(key)
    await amend(key, value)
    return value
  }
}

/* ---- on a unit's page: who changed the label, and a form to change it ---- */

additions.unit = (run, basis, record) => {
  const edit = record.edited
  const note = edit ? h("p.edited", null, `Changed by ${edit.who} on ${edit.when.slice(0, 10)}. The run’s own label is `, edit.was === null ? "none" : h("b", null, edit.was), ", and the numbers below belong to it.") : null
  const fault = h("p.fault", { role: "alert", hidden: true })
  const label = h("input", { name: "label", value: record.label ?? "", maxlength: 200, size: 32, autocomplete: "off" })
  const who = h("input", { name: "who", value: live.name.value, maxlength: 60, size: 16, required: true, autocomplete: "name" })
  const save = async text => {
    if (!who.reportValidity()) return
    try {
      live.name.value = who.value
      await live.post("api/edits", { basis: basis.name, unit: record.unit, label: text, who: who.value })
      location.reload()
    } catch (error) {
      fault.textContent = error.message
      fault.hidden = false
    }
  }
  const other = (text, value) => h("button", { type: "button", onclick: () => save(value) }, text)
  const form = h("form.controls", { onsubmit: event => { event.preventDefault(); save(label.value) } },
    h("label", null, "Label", label), h("label", null, "Your name", who), h("button", null, "Save"), other("No label fits", null),
    edit ? other("Back to the run’s label", edit.was) : null)
  return h("div", null, note, h("details.edit", null, h("summary", null, "Change the label"), form, fault))
}

/* A picture of a unit opens the search for what else it fires. */
document.addEventListener("click", event => {
  const id = event.target.closest?.(".pairs .photo")?.src.match(/(\d+)\.webp$/)?.[1]
  if (id) location.href = `search.html#image=${id}`
})
