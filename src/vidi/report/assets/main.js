// A run: read the JSON of each part and draw it.
import { readView } from "./dom.js";
import { start } from "./start.js";
import { renderSummary } from "./summary.js";
import { renderMistakes } from "./pictures.js";
import { renderSuspects } from "./suspects.js";
import { renderMap } from "./map.js";
import { renderConfusion } from "./confusion.js";
import { renderClasses } from "./classes.js";
import { renderTrust } from "./trust.js";
import { renderCurves } from "./curves.js";
import { renderPlan } from "./plan.js";
import { renderData } from "./data.js";
import { renderEnvironment } from "./environment.js";

start({
  summary: renderSummary, mistakes: renderMistakes, confusion: renderConfusion, classes: renderClasses,
  trust: renderTrust, suspects: renderSuspects, map: renderMap, curves: renderCurves, plan: renderPlan, data: renderData, environment: renderEnvironment,
}, readView("mistakes"));
