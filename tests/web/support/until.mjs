/** Wait until `what()` is true (or resolves to it); fail after `seconds`. */
export async function until(what, seconds = 5) {
  const end = performance.now() + seconds * 1000;
  for (;;) {
    const value = await what();
    if (value) return value;
    if (performance.now() > end) throw new Error(`not within ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
