/** The server's models: bases, each with its adapters. */

import { listModels } from "./api.js";

/**
 * @typedef {{id: string, name: string, scale?: number, engine?: string}} Adapter `scale` applies
 *   without `@`
 * @typedef {{id: string, engine?: string, adapters: Adapter[]}} Base
 */

const withoutTemplate = new Set();
const seeing = new Set();

/** The most that a request may hold: bytes of its body, pixels of a picture. */
export const limits = { body: 2 << 20, pixels: 1 << 26 };

/** @returns {Promise<Base[]>} */
export async function loadBases() {
  const { data, limits: most } = await listModels();
  Object.assign(limits, most);
  withoutTemplate.clear();
  seeing.clear();
  for (const { id, chat_template, architecture } of data) {
    if (chat_template === false) withoutTemplate.add(id);
    if (architecture?.input_modalities?.includes("image")) seeing.add(id);
  }
  return basesOf(data);
}

/** Bring a list of bases up to date in place, while the server may add and remove adapters. */
export async function refreshBases(bases) {
  bases.splice(0, bases.length, ...await loadBases());
}

/** Whether a model answers conversations; one without a template only continues a text. */
export function hasTemplate(id) {
  return !withoutTemplate.has(unscaled(id));
}

/** Whether a model takes pictures. */
export function takesImages(id) {
  return seeing.has(unscaled(id));
}

/** A model's id without the scale that the reader chose. */
export function unscaled(id) {
  return id.replace(/@[^:@]*$/, "");
}

/** The models of /v1/models, with the adapters under their bases. */
export function basesOf(models) {
  const bases = new Map(models.filter(({ parent }) => !parent).map(({ id, engine }) => [id, { id, engine, adapters: [] }]));
  for (const { id, parent, scale, engine } of models) {
    bases.get(parent)?.adapters.push({ id, name: nameOf(id, parent), scale, engine });
  }
  return [...bases.values()];
}

function nameOf(id, parent) {
  return id.startsWith(`${parent}:`) ? id.slice(parent.length + 1) : id;
}

/** The id of an adapter at a scale, as the server reads it. */
export function scaledId(adapter, scale) {
  return scale === adapter.scale ? adapter.id : `${adapter.id}@${scale}`;
}
