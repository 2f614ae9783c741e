-- Sends the requests of the file $REQUESTS in turn: a line is a method, a path and a body.
local requests = {}

function init()
  for line in io.lines(os.getenv("REQUESTS")) do
    local method, path, body = line:match("^(%S+) (%S+) ?(.*)$")
    local headers = {}
    if body ~= "" then headers["Content-Type"] = "application/json" else body = nil end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
end

local at = 0

function request()
  at = at % #requests + 1
  return requests[at]
end
