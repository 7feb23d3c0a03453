-- wrk: one-message POSTs of a 500-byte JSON body; with KEYS=1 each with an idempotency key of its own.
-- With MADE=1 each request is made anew, as with keys, so that wrk works as much for those without.
-- With PAUSE=n each connection waits so many milliseconds, on the average, before its next request.
-- With API_KEY=k each has that one. With LINES=n each request is NDJSON of n such bodies.
local keyed = os.getenv("KEYS") == "1"
local run = os.getenv("RUN") or "run"

local head = '{"order_id":12345,"customer":"a customer name","lines":[{"sku":"ABC-1","qty":2,"price":12.5}],"note":"'
local tail = '"}'
wrk.method = "POST"
wrk.body = head .. string.rep("x", 500 - #head - #tail) .. tail
wrk.headers["Content-Type"] = "application/json"
local lines = tonumber(os.getenv("LINES") or "1")
if lines > 1 then
  wrk.body = string.rep(wrk.body .. "\n", lines)
  wrk.headers["Content-Type"] = "application/x-ndjson"
end

if (os.getenv("API_KEY") or "") ~= "" then
  wrk.headers["Authorization"] = "Bearer " .. os.getenv("API_KEY")
end

local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

if keyed or os.getenv("MADE") == "1" then
  local sent = 0
  function request()
    sent = sent + 1
    local key = run .. "-" .. number .. "-" .. sent
    if keyed then
      wrk.headers["Idempotency-Key"] = key
    end
    return wrk.format()
  end
end

local pause = tonumber(os.getenv("PAUSE") or "0")
if pause > 0 then
  function delay()
    return math.floor(2 * pause * math.random() + 0.5)
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
