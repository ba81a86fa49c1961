// Building the page. Whatever comes from data becomes a text node or an attribute of this list, so
// that no name can become markup.

const SVG = "http://www.w3.org/2000/svg";
const ATTRIBUTES = new Set([
  "class", "id", "title", "type", "href", "role", "tabindex", "for", "value", "min", "max", "step",
  "alt", "src", "width", "height", "loading", "scope", "colspan", "open", "selected", "name",
  "placeholder", "disabled", "list", "hidden",
]);

function apply(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "css") {
      for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    } else if (ATTRIBUTES.has(name) || name.startsWith("aria-") || name.startsWith("data-")) {
      node.setAttribute(name, value === true ? "" : String(value));
    } else {
      throw new Error(`no attribute ${name}`);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

export function el(tag, properties = {}, ...children) {
  return apply(document.createElement(tag), properties, children);
}

/** An SVG element; its attributes are ours, never the data's. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

export function readView(name) {
  const node = document.getElementById(`view-${name}`);
  return node === null ? null : JSON.parse(node.textContent);
}

/** Draw now, and again whenever the width changes. */
export function drawn(root, draw) {
  let width = 0;
  const again = () => {
    const now = Math.floor(root.clientWidth);
    if (now > 0 && now !== width) {
      width = now;
      draw(now);
    }
  };
  new ResizeObserver(again).observe(root);
  again();
}

export function definitions(pairs) {
  return el("dl", { class: "facts" }, pairs.map(([term, ...values]) => [
    el("dt", {}, term),
    el("dd", {}, ...values),
  ]));
}

export function button(label, listener, properties = {}) {
  return el("button", { type: "button", on: { click: listener }, ...properties }, label);
}
