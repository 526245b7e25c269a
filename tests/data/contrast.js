// WCAG 2.2 contrast of every visible text against the nearest opaque background: [text, colour, ratio] of what is too
// faint. Large text (24 px) may have 3 : 1.
() => {
  const parse = css => (css.match(/[\d.]+/g) || []).map(Number)
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
  const rgba = css => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data] }
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * r + .7152 * g + .0722 * b }
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 200) return c } return [255, 255, 255] }
  const found = []
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement
    if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest('svg, :disabled, .tip')) continue
    const style = getComputedStyle(e)
    const [a, b] = [light(rgba(style.color)), light(behind(e))].sort((x, y) => y - x)
    const needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5
    if ((a + .05) / (b + .05) < needed) found.push([walker.currentNode.data.trim().slice(0, 40), style.color, +((a + .05) / (b + .05)).toFixed(2)])
  }
  return found
}
