// A light for one link, with RxJS: green while it is up, red while it is down, gray while the node itself is away.
const { combineLatest, distinctUntilChanged, from, map, of, switchMap, timer } = rxjs;

/** A link that comes back in less than so many milliseconds does not turn the light red: a restart of the peer. */
const PATIENCE_MS = 1000;

/**
 * Return a stream of `{ light, why }`.
 * @param node What `connect({ status: true })` of linkd.js returned.
 * @param {string} peer
 */
export function light(node, peer) {
  // `links` is empty while the page has no connection to the node: never a stale green.
  return combineLatest([from(node.links), from(node.status)]).pipe(
    map(([links, status]) => {
      const link = links.get(peer);
      if (!link) return { light: "unknown", why: status.reason ?? "" };
      return link.state === "up" ? { light: "up", why: "" } : { light: "down", why: link.outage_reason ?? "" };
    }),
    distinctUntilChanged((a, b) => a.light === b.light && a.why === b.why),
    // A later state within this time replaces it. Green and gray are shown at once.
    switchMap((state) => (state.light === "down" ? timer(PATIENCE_MS).pipe(map(() => state)) : of(state))),
    distinctUntilChanged((a, b) => a.light === b.light && a.why === b.why),
  );
}

/** Return a token from the page's own server; first have the user sign in where that is needed. */
async function token() {
  const answer = await fetch("/token", { method: "POST" });
  if (answer.ok) return (await answer.json()).token;
  const form = document.querySelector("#sign-in");
  form.hidden = answer.status !== 401;
  throw new Error(answer.status === 401 ? "sign in first" : `no token: ${answer.status}`);
}

const { url } = await (await fetch("/node")).json();
const { connect } = await import(`${url}/linkd.js`);
const node = connect({ url, token, status: true });
const peer = new URLSearchParams(location.search).get("peer") ?? "hub";

light(node, peer).subscribe(({ light, why }) => {
  const shown = document.querySelector("#light");
  shown.textContent = shown.className = light;
  document.querySelector("#why").textContent = why;
});

document.querySelector("#sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/sign-in", { method: "POST", body: event.target.elements.password.value });
  event.target.hidden = answer.ok;
  if (answer.ok) node.kick(); // do not wait for the next attempt
});
