// Elements and numbers. Text from outside enters the page through text nodes and attributes only.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element; children are nodes or text, attributes that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const percent = (share) => `${(100 * share).toFixed(share >= 0.995 || share < 0.0005 ? 0 : 1)} %`;

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Return a function that runs `action` once calls have ceased for `ms`. */
export function later(action, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), ms);
  };
}
