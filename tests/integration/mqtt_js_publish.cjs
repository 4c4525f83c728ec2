// Publishes with MQTT.js as one JSON argument says, and ends with exit code 0 when everything was acknowledged.
const mqtt = require("mqtt");
const fs = require("fs");

const job = JSON.parse(process.argv[2]);
const options = { protocolVersion: job.version, username: job.username, password: job.password, clientId: job.client };
options.reconnectPeriod = 0;
if (job.ca) options.ca = fs.readFileSync(job.ca);
if (job.certificate) {
  options.cert = fs.readFileSync(job.certificate);
  options.key = fs.readFileSync(job.key);
}
const client = mqtt.connect(job.url, options);
client.on("error", (error) => {
  console.error(`${error.code}: ${error.message}`);
  process.exit(1);
});
client.on("connect", async () => {
  for (const qos of job.qos) {
    await Promise.all(
      Array.from({ length: job.count }, (_, number) => client.publishAsync(job.topic, `${qos}-${number}`, { qos })),
    );
  }
  await client.endAsync();
  process.exit(0);
});
