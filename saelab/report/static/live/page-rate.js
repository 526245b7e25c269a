/* Blind rating: one unit at a time, its pictures and a label, and nothing on where it comes from. */
"use strict"

const grades = { 1: "not at all", 2: "hardly", 3: "partly", 4: "well", 5: "exactly" }

page(async (run, main) => {
  let item = null
  let place = [0, 0] // answered, of how many
  const past = [] // items of this sitting, to go back to
  const begin = () => {
    const who = h("input", { name: "who", value: live.name.value, maxlength: 60, required: true, autocomplete: "name" })
    main.replaceChildren(h("h1", null, "How well do these labels describe the pictures?"),
      h("p.lead", null, "You will see sets of pictures, each with a label. Say how well the label describes what the pictures have in common. Where they come from is hidden. Some labels are wrong on purpose. Answers are kept as you give them: you can stop and come back under the same name."),
      h("form.controls", { onsubmit: event => { event.preventDefault(); live.name.value = who.value; next() } }, h("label", null, "Your name, or any word that only you use here", who), h("button", null, "Begin")))
    who.focus()
  }
  const next = async () => {
    const { item: found, done, of } = await live.get("api/rating", { rater: live.name.value })
    item = found
    place = [done, of]
    main.replaceChildren(...(item ? question(item, done, of) : [h("h1", null, "Done. Thank you."), h("p.lead", null, `You rated ${format.plural(of, "set")}.`), past.length ? goBack() : null].filter(Boolean)))
    scrollTo(0, 0)
  }
  /* The item before, to be answered anew: a rater's last answer counts. */
  const back = () => {
    if (!past.length) return
    item = past.pop()
    place = [Math.max(0, place[0] - 1), place[1]]
    main.replaceChildren(...question(item, ...place))
  }
  const goBack = () => h("button", { type: "button", onclick: back }, "Back, and change the last answer")
  const rate = async rating => {
    if (!item) return
    const answered = item
    const { code } = item
    item = null // a second key must not answer the next question
    try {
      await live.post("api/rating", { rater: live.name.value, code, rating })
      past.push(answered)
      await next()
    } catch (error) {
      main.prepend(h("p.fault", { role: "alert" }, error.message))
    }
  }
  const question = ({ label, images }, done, of) => [
    h("p.kicker", { role: "status" }, `${done + 1} of ${of}`, h("progress", { value: done, max: of })),
    h("h1", null, label),
    h("p.lead", null, "How well does this describe what the pictures have in common?"),
    h("div.grades", { role: "group", "aria-label": "Rating" },
      Object.entries(grades).map(([n, text]) => h("button", { type: "button", onclick: () => rate(Number(n)) }, h("b", null, n), ` ${text}`)),
      h("button.quiet", { type: "button", onclick: () => rate(null) }, "can’t say")),
    h("p.note", null, "Keys 1 to 5; x for can’t say; b goes back. ", past.length ? goBack() : null),
    h("div.sheet", null, images.map((id, i) => picture(id, `picture ${i + 1}`))),
  ]
  addEventListener("keydown", event => {
    if (event.target.closest("input") || event.ctrlKey || event.metaKey || event.altKey) return
    if (grades[event.key]) rate(Number(event.key))
    if (event.key === "x") rate(null)
    if (event.key === "b") back()
  })
  begin()
})
