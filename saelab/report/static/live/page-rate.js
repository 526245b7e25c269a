/* Blind rating: one unit at a time, its pictures and a label, and nothing on where it comes from. */
"use strict"

const grades = { 1: "not at all", 2: "hardly", 3: "partly", 4: "well", 5: "exactly" }

page(async (run, main) => {
  let now = null // what is asked: {item, past: [[code, rating], ...], of}; null while an answer is on its way
  const fault = error => {
    main.querySelector(".fault")?.remove()
    main.prepend(h("p.fault", { role: "alert" }, error.message))
  }
  const begin = () => {
    const start = event => {
      event.preventDefault()
      who.value = who.value.trim()
      if (!who.reportValidity()) return // spaces are no name
      live.name.value = who.value
      ask().catch(fault)
    }
    const who = h("input", { name: "who", value: live.name.value, maxlength: 60, required: true, autocomplete: "name" })
    main.replaceChildren(h("h1", null, "How well do these labels describe the pictures?"),
      h("p.lead", null, "You will see sets of pictures, each with a label. Say how well the label describes what the pictures have in common. Where they come from is hidden. Some labels are wrong on purpose. Answers are kept as you give them: you can stop and come back under the same name, go back to any answer, and take answers back."),
      h("form.controls", { onsubmit: start }, h("label", null, "Your name, or any word that only you use here", who), h("button", null, "Begin")))
    who.focus()
  }
  /* Show an item by its code, or the first that is not answered yet. */
  const ask = async code => {
    now = await live.get("api/rating", { rater: live.name.value, ...(code ? { code } : {}) })
    const focused = document.activeElement?.dataset.key
    main.replaceChildren(...(now.item ? question() : [h("h1", null, "Done. Thank you."), h("p.lead", null, `You rated ${format.plural(now.of, "set")}.`), tools()].flat()))
    if (focused) (main.querySelector(`[data-key="${focused}"]:not(:disabled)`) ?? main.querySelector("[data-key]:not(:disabled)"))?.focus({ preventScroll: true })
    scrollTo(0, 0)
  }
  /* Where the item stands among the rater's answers; behind them all while it has none. */
  const place = () => { const i = now.past.findIndex(([code]) => code === now.item?.code); return i < 0 ? now.past.length : i }
  /* Do one thing at a time: a second key must not answer the next question. */
  const once = async action => {
    if (!now) return
    const shown = now
    now = null
    try {
      await action(shown)
    } catch (error) {
      now = shown
      fault(error)
    }
  }
  const walk = step => {
    if (!now) return
    const to = place() + step
    if (to < 0 || to > now.past.length || (step > 0 && place() === now.past.length)) return
    const code = now.past[to]?.[0]
    return once(() => ask(code))
  }
  const rate = rating => {
    if (!now?.item) return
    const after = now.past[place() + 1]?.[0] // having changed an answer, one goes on to the next
    return once(async ({ item }) => {
      await live.post("api/rating", { rater: live.name.value, code: item.code, rating })
      await ask(after)
    })
  }
  const undo = () => {
    if (!now?.past.length) return
    return once(async () => {
      const { code } = await live.post("api/rating/undo", { rater: live.name.value })
      await ask(code)
    })
  }
  const tools = () => {
    const i = place()
    return h("div.turn", null,
      h("button", { type: "button", "data-key": "back", disabled: i === 0, onclick: () => walk(-1) }, "← Back", h("kbd", null, "b")),
      h("button", { type: "button", "data-key": "forward", disabled: i === now.past.length, onclick: () => walk(1) }, "Forward →", h("kbd", null, "f")),
      h("button", { type: "button", "data-key": "undo", disabled: !now.past.length, onclick: undo }, "Undo the last answer", h("kbd", null, "u")))
  }
  const question = () => {
    const { item, past, of } = now
    const given = past[place()]
    const pressed = value => (given ? String(given[1] === value) : null)
    return [
      h("p.kicker", { role: "status" }, `${place() + 1} of ${of}${given ? ", answered" : ""}`, h("progress", { value: past.length, max: of, "aria-label": "Answered" })),
      h("h1", null, item.label),
      h("p.lead", null, "How well does this describe what the pictures have in common?"),
      h("div.grades", { role: "group", "aria-label": "Rating" },
        Object.entries(grades).map(([n, text]) => h("button", { type: "button", "data-key": n, "aria-pressed": pressed(Number(n)), onclick: () => rate(Number(n)) }, h("b", null, n), ` ${text}`)),
        h("button.quiet", { type: "button", "data-key": "x", "aria-pressed": pressed(null), onclick: () => rate(null) }, "can’t say")),
      tools(),
      h("p.note.wide-only", null, "Keys 1 to 5; x for can’t say."),
      h("div.sheet", null, item.images.map((id, i) => picture(id, `picture ${i + 1}`))),
    ]
  }
  const keys = { x: () => rate(null), b: () => walk(-1), f: () => walk(1), u: undo }
  addEventListener("keydown", event => {
    if (event.target.closest("input") || event.ctrlKey || event.metaKey || event.altKey) return
    if (event.repeat) return event.key === "Enter" && event.preventDefault() // a key held down answers once
    if (grades[event.key]) rate(Number(event.key))
    else keys[event.key]?.()
  })
  begin()
})
