// What the scripts for the clients share: names, the cluster's models, and checks of answers and errors.

import assert from "node:assert/strict";
import { z } from "zod";

/** A model that chats. */
export const CHAT = "smollm2-135m-instruct";
/** A base model without a chat template. */
export const BASE = "gemma3-270m";
/** A model whose only worker is taken; one request may wait for it, for a moment. */
export const BUSY = "busy";

export const SYSTEM = "You answer in one short sentence.";
export const QUESTION = "Why is the sky blue?";

export const Bee = z.object({
  name: z.string().max(20),
  colour: z.enum(["yellow", "black", "both"]),
  legs: z.int().min(2).max(8),
});
export const Weather = z.object({ city: z.enum(["Oslo", "Rome", "Lima"]), day: z.int().min(1).max(31) });

/** The error that awaiting this raises: of this class, with these members. */
export async function refused(kind, about, promise) {
  const error = await promise.then(
    (answer) => assert.fail(`nothing was raised where ${kind.name} should be: ${JSON.stringify(answer)}`),
    (error) => error,
  );
  assert.ok(error instanceof kind, error);
  for (const [name, value] of Object.entries(about)) assert.equal(error[name], value, error);
  return error;
}

/**
 * Asks twice at once for the busy model. Returns both errors by status: one request finds the line full, the other one
 * waits in it until it hears that nobody became free. Both are told when to come back. `read` gives an error's status
 * and that time.
 */
export async function crowd(ask, read) {
  const settled = await Promise.allSettled([ask(), ask()]);
  const errors = new Map();
  for (const { reason } of settled) {
    assert.ok(reason, "a busy worker answered");
    const [status, retryAfter] = read(reason);
    assert.ok(Number.parseInt(retryAfter) >= 1, reason);
    errors.set(status, reason);
  }
  assert.deepEqual([...errors.keys()].sort(), [429, 503]);
  return errors;
}
