/** The server's models: bases, each with its adapters. */

import { listModels } from "./api.js";

/**
 * @typedef {{id: string, name: string, scale?: number}} Adapter `scale` applies without `@`
 * @typedef {{id: string, adapters: Adapter[]}} Base
 */

const withoutTemplate = new Set();

/** @returns {Promise<Base[]>} */
export async function loadBases() {
  const models = await listModels();
  withoutTemplate.clear();
  for (const { id, chat_template } of models) if (chat_template === false) withoutTemplate.add(id);
  return basesOf(models);
}

/** Bring a list of bases up to date in place, while the server may add and remove adapters. */
export async function refreshBases(bases) {
  bases.splice(0, bases.length, ...await loadBases());
}

/** Whether a model answers conversations; one without a template only continues a text. */
export function hasTemplate(id) {
  return !withoutTemplate.has(id.replace(/@[^:@]*$/, ""));
}

/** The models of /v1/models, with the adapters under their bases. */
export function basesOf(models) {
  const bases = new Map(models.filter(({ parent }) => !parent).map(({ id }) => [id, { id, adapters: [] }]));
  for (const { id, parent, scale } of models) {
    bases.get(parent)?.adapters.push({ id, name: nameOf(id, parent), scale });
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
