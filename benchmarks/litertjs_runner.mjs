// Times two .tflite files in LiteRT.js under Node, alternately; a job comes in on stdin as JSON,
// the times and outputs go out on stdout. Started by litertjs.py.
import {copyFileSync, mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync} from "node:fs";
import {createRequire} from "node:module";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const job = JSON.parse(readFileSync(0, "utf8"));

// The loaders are UMD scripts inside a package of modules: a copy that says so can be required.
const loaders = join(job.scratch, "wasm");
mkdirSync(loaders);
writeFileSync(join(loaders, "package.json"), '{"type": "commonjs"}');
for (const name of readdirSync(join(job.package, "wasm"))) {
  const from = join(job.package, "wasm", name);
  (name.endsWith(".js") ? copyFileSync : symlinkSync)(from, join(loaders, name));
}
const require = createRequire(join(loaders, "package.json"));
globalThis.self = globalThis;
globalThis.navigator ??= {userAgent: "node", hardwareConcurrency: 1};
globalThis.importScripts = (path) => { globalThis.ModuleFactory = require(path); };

const litert = await import(pathToFileURL(join(job.package, "dist", "index.js")));
await litert.loadLiteRt(loaders);

const ARRAYS = {float32: Float32Array, int32: Int32Array};
const sides = [];
for (const file of job.files) {
  const options = {accelerator: "wasm", cpuOptions: {numThreads: 1}};
  const model = await litert.loadAndCompile(new Uint8Array(readFileSync(file)), options);
  const inputs = model.getInputDetails().map((detail, i) => {
    const bytes = readFileSync(job.inputs[i]);
    const array = new ARRAYS[detail.dtype](bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    return new litert.Tensor(Float32Array === array.constructor
      ? new Float32Array(array) : new Int32Array(array), Array.from(detail.shape));
  });
  sides.push({model, inputs, seconds: []});
}

async function once(side, keep) {
  const results = await side.model.run(side.inputs);
  const values = keep ? results.map((r) => Array.from(r.toTypedArray()).slice(0, 4096)) : null;
  for (const result of results) result.delete();
  return values;
}

async function secondsOf(side, count) {
  const start = process.cpuUsage();
  for (let i = 0; i < count; i++) await once(side, false);
  const used = process.cpuUsage(start);
  return Math.max(1e-9, (used.user + used.system) / 1e6 / count);
}

const outputs = [];
for (const side of sides) outputs.push(await once(side, true));
for (const side of sides) {
  await secondsOf(side, 3);
  side.count = Math.max(1, Math.round(0.05 / await secondsOf(side, 3)));
}
const end = Date.now() + 1000 * job.seconds;
while (Date.now() < end || sides[0].seconds.length < 5) {
  for (const side of sides) side.seconds.push(await secondsOf(side, side.count));
}
process.stdout.write(
  JSON.stringify({seconds: sides.map((s) => s.seconds), outputs}), () => process.exit(0));
