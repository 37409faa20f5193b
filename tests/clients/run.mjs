// Runs a model with onnxruntime-web: node run.mjs JOB.json
//
// The job: {"model": path, "inputs": [{"name", "type", "dims", "file"}, …]}, each file the raw
// bytes of one tensor. The outputs of each input are printed as a line of JSON, {name: numbers}.

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const ARRAYS = { uint8: Uint8Array, float32: Float32Array };

ort.env.wasm.numThreads = 1;
const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(job.model)), {
  executionProviders: ["wasm"],
});
for (const { name, type, dims, file } of job.inputs) {
  const bytes = readFileSync(file);
  const values = new ARRAYS[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  const outputs = await session.run({ [name]: new ort.Tensor(type, values, dims) });
  const numbers = Object.entries(outputs).map(([key, { data }]) => [key, Array.from(data, Number)]);
  console.log(JSON.stringify(Object.fromEntries(numbers)));
}
