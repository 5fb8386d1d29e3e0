// Small helpers for the DOM. Text is only ever set as text.

export const find = (root, name) => root.querySelector(`[data-${name}]`);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets a text only if it differs: a live region would be read again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const button = (label, onclick, kind = "quiet") => element("button", { type: "button", class: kind, onclick }, label);

/** Shows a sentence and what can be done about it; without a sentence, nothing. */
export function notice(node, text, ...buttons) {
  node.hidden = !text;
  let [line, row] = node.children;
  if (!line) node.append((line = element("p")), (row = element("div", { class: "buttons" })));
  say(line, text ?? "");
  const labels = buttons.map((each) => each.textContent).join("|");
  if (row.dataset.labels === labels) return;
  row.dataset.labels = labels;
  row.replaceChildren(...buttons);
}

/** Says something to who can't see the screen. */
export function announce(text) {
  say(find(document, "announce"), text);
}

export const isVisible = (node) => document.visibilityState === "visible" && node.getClientRects().length > 0;
