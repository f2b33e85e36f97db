-- wrk: POST $BODY with the headers in $HEADERS (one "name: value" a line); one line of JSON at the end.
wrk.method, wrk.body = "POST", os.getenv("BODY")
for line in os.getenv("HEADERS"):gmatch("[^\n]+") do
  local name, value = line:match("^([^:]+):%s*(.*)$")
  wrk.headers[name] = value
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format('\nJSON {"n":%d,"us":%d,"p50_us":%d,"p99_us":%d,"bad":%d}\n', summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.status + e.connect + e.read + e.write + e.timeout))
end
