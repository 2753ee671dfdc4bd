// Show and send notices. The node's client keeps the connection: it asks for a fresh token before each attempt.
const find = (selector) => document.querySelector(selector);

const { url } = await (await fetch("/node")).json();
const { connect } = await import(`${url}/linkd.js`);

async function token() {
  const answer = await fetch("/token", { method: "POST" });
  if (answer.status === 401) location.reload(); // the session is over: sign in again
  if (!answer.ok) throw new Error((await answer.json()).message);
  return (await answer.json()).token;
}

function start() {
  const node = connect({ url, token });
  node.status.subscribe(({ state, reason }) => {
    find("#status").textContent = reason ? `${state}: ${reason}` : state;
    find("#send button").disabled = state !== "up";
  });
  node.subscribe("notices", ({ data, offset }) => {
    const item = document.createElement("li");
    item.dataset.offset = offset;
    item.textContent = data.text; // never innerHTML: what others publish is text
    find("#notices").append(item);
  }, { from: "earliest" });
  find("#send").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { text } = event.target.elements;
    // Once it resolves the notice is on the node's disk. A lost connection meanwhile: the client sends it again, once.
    await node.publish("notices", { text: text.value }, { type: "notice" });
    text.value = "";
  });
}

find("#sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/sign-in", { method: "POST", body: event.target.elements.password.value });
  if (!answer.ok) {
    find("#status").textContent = (await answer.json()).message;
    return;
  }
  event.target.hidden = true;
  start();
});
find("#sign-in").hidden = false; // not before: the browser itself would submit it, with the password in the URL
