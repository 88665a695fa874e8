// What an answer took: one line, and on demand where the time went. The server's figures where it gives them (the
// last chunk's `timings`, in seconds), else what this browser measured.

import { el } from "./dom.js";
import { number, seconds, t } from "./i18n.js";

const STAGES = ["queue", "fetch", "decode", "preprocess", "encode", "prefill"];
const LEAST_SECONDS = 0.00005;  // what is shorter would read as 0.0 ms
const LEAST_SHARE = 0.004;  // what is shorter could not be seen in the bar

export function figuresOf(message) {
  const { usage, timings = {}, measured } = message;
  if (!measured?.total || !measured.first) return null;
  const line = lineOf(usage, timings, measured);
  const stages = stagesOf(timings, measured);
  const rows = rowsOf(usage, timings, measured).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
  return el(
    "details",
    { class: "figures" },
    el("summary", {}, ...line),
    el("div", { class: "figures-body" }, barOf(stages), legendOf(stages), el("dl", {}, ...rows)),
  );
}

function lineOf(usage, timings, measured) {
  const first = timings.time_to_first_token ?? measured.first;
  const parts = [];
  if (usage) {
    parts.push(t("figureIn", { count: number(usage.prompt_tokens) }));
    const vision = usage.prompt_tokens_details?.vision_tokens;
    if (vision) parts.push(t("figureVision", { count: number(vision) }));
    parts.push(t("figureOut", { count: number(usage.completion_tokens) }));
  }
  parts.push(t("figureFirst", { time: seconds(first) }));
  const speed = timings.tokens_per_second ?? measuredSpeed(usage, measured);
  if (speed) parts.push(t("figureSpeed", { count: number(speed, speed < 10 ? 1 : 0) }));
  return parts.map((part) => el("span", {}, part));
}

function measuredSpeed(usage, { first, total }) {
  const tokens = (usage?.completion_tokens ?? 0) - 1;
  return tokens > 0 && total > first ? tokens / (total - first) : null;
}

// [[name, seconds]]: how the answer's time divides.
function stagesOf(timings, measured) {
  const total = timings.total ?? measured.total;
  const first = timings.time_to_first_token ?? measured.first;
  const known = STAGES.filter((name) => timings[name] >= LEAST_SECONDS).map((name) => [name, timings[name]]);
  const before = known.length ? known : [["first", first]];
  return [...before, ["writing", Math.max(0, total - first)]];
}

function barOf(stages) {
  const sum = stages.reduce((all, [, time]) => all + time, 0) || 1;
  const bar = el("div", { class: "bar", "aria-hidden": "true" });
  for (const [name, time] of stages) {
    const part = el("span", { class: `stage-${name}` });
    part.style.flexGrow = Math.max(LEAST_SHARE, time / sum);
    bar.append(part);
  }
  return bar;
}

function legendOf(stages) {
  const entries = stages.map(([name, time]) => {
    const swatch = el("span", { class: `swatch stage-${name}`, "aria-hidden": "true" });
    return el("li", {}, swatch, el("span", {}, t(`stage_${name}`)), el("b", {}, seconds(time)));
  });
  return el("ul", { class: "legend", "aria-label": t("figureStages") }, ...entries);
}

function rowsOf(usage, timings, measured) {
  const rows = [[t("figureTotal"), seconds(timings.total ?? measured.total)]];
  // The difference is the way to the server and back.
  if (timings.total) rows.push([t("figureHere"), seconds(measured.total)]);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached) rows.push([t("figureCached"), number(cached)]);
  return rows;
}
