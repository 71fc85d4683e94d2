/** Changes elements on the page into others, with as few changes as possible. */

/** Make the children of `parent`, from the one numbered `from` on, equal to `fresh`. */
export function patch(parent, fresh, from = 0) {
  let was = parent.childNodes[from] ?? null;
  for (const node of fresh) {
    const next = was?.nextSibling ?? null;
    if (!was) parent.append(node);
    else if (isSameKind(was, node)) adopt(was, node);
    else was.replaceWith(node);
    was = next;
  }
  while (was) {
    const next = was.nextSibling;
    was.remove();
    was = next;
  }
}

function isSameKind(one, other) {
  if (one.nodeName !== other.nodeName) return false;
  return one.nodeType === Node.TEXT_NODE || attributesOf(one) === attributesOf(other);
}

function attributesOf(element) {
  return [...element.attributes].map(({ name, value }) => `${name}=${value}`).join("\n");
}

function adopt(was, node) {
  if (was.nodeType !== Node.TEXT_NODE) patch(was, [...node.childNodes]);
  else if (node.data.startsWith(was.data)) was.appendData(node.data.slice(was.data.length));
  else was.data = node.data;
}
