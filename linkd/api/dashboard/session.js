// @ts-check
// Who may see this page: a token becomes a cookie session.
import { byId, setText } from "./dom.js";

/** Spend the token of the address, if there is one. Resolves once the calls that follow may count on the session. */
export async function enter() {
  const address = new URL(location.href);
  const token = address.searchParams.get("token");
  if (!token) return;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
  await exchange(token);
}

/** @param {string} token @returns {Promise<boolean>} whether the node took it */
async function exchange(token) {
  const headers = { Authorization: `Bearer ${token.trim()}` };
  const answer = await fetch("v1/session", { method: "POST", headers }).catch(() => null);
  return answer !== null && answer.ok;
}

/** Ask for a token until there is a session; calls `entered` then. @param {() => void} entered */
export function askForToken(entered) {
  const dialog = byId("sign-in");
  if (dialog.open) return;
  dialog.showModal();
  byId("sign-in-form").onsubmit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const field = byId("sign-in-token");
    if (await exchange(field.value)) {
      field.value = "";
      setText(byId("sign-in-answer"), "");
      dialog.close();
      entered();
    } else setText(byId("sign-in-answer"), "That token is not valid, or no longer: each works once, for 30 s.");
  };
}
