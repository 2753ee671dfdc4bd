// @ts-check
// The little that this page needs of a view library.

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element. `dataset` and `on…` work as in the DOM; children may be strings.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(element.dataset, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Set text only where it differs: a selection in it survives. @param {any} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show `lines` at a place of the window; with null, nothing. @param {{title: string, lines: string[]} | null} what @param {number} [x] @param {number} [y] */
export function hint(what, x = 0, y = 0) {
  const box = byId("hint");
  box.hidden = what === null;
  if (what === null) return;
  box.replaceChildren(make("b", {}, what.title), ...what.lines.map((line) => make("div", {}, line)));
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(Math.max(8, x - width / 2), innerWidth - width - 8);
  const top = y - height - 12 < 8 ? y + 30 : y - height - 12;
  box.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}
