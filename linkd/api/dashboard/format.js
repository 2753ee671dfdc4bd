// @ts-check
// Numbers and times as people read them. Every number has its unit; what is not known is a dash.

export const DASH = "–";

const TONES = { up: "good", resuming: "warn", unknown: "warn", stopped: "off" };

/** How a link's state looks: good, warn, off or bad. @param {string} state */
export function tone(state) {
  return TONES[state] ?? "bad";
}

/** The states of a link that is down and is being tried need no word of their own. @param {string} state */
export function stateWord(state) {
  return ["connecting", "opening", "resuming", "waiting"].includes(state) ? "down" : state;
}

/** Round trips and the like: 12 ms, 1.24 s. @param {number | null | undefined} seconds */
export function short(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 0.001) return `${(seconds * 1000).toFixed(2)} ms`;
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

/** How long something has lasted: 8 s, 3 min 20 s, 4 h 12 min, 12 d 3 h. @param {number | null | undefined} seconds */
export function lasting(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** 4.1 GiB, as `linkd status` prints it. @param {number | null | undefined} bytes */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return DASH;
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  const power = Math.min(4, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${value.toFixed(value < 9.95 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** 1,840; 12.4 k; 3.1 M. @param {number | null | undefined} number */
export function count(number) {
  if (number === null || number === undefined) return DASH;
  if (number < 10_000) return Math.round(number).toLocaleString("en");
  return number < 1e6 ? `${(number / 1e3).toFixed(1)} k` : `${(number / 1e6).toFixed(1)} M`;
}

/** A share that never rounds up to "100 %" while something was missing. @param {number} share */
export function percent(share) {
  if (share >= 1) return "100 %";
  return `${(Math.floor(share * 1e5) / 1e3).toFixed(share < 0.99 ? 1 : 3)} %`;
}

/** In UTC, as the log and the commands: clock time of today, date and time otherwise. @param {number} at milliseconds */
export function clock(at) {
  const [day, time] = new Date(at).toISOString().split("T");
  return day === new Date().toISOString().slice(0, 10) ? time.slice(0, 8) : `${day.slice(5)} ${time.slice(0, 8)}`;
}
