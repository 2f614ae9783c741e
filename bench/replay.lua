-- Sends the requests of the file $REQUESTS in turn. A line is a method, a path, a token (or a minus
-- sign) and, if there is one, a body.
local requests = {}

function init()
  for line in io.lines(os.getenv("REQUESTS")) do
    local method, path, token, body = line:match("^(%S+) (%S+) (%S+) ?(.*)$")
    local headers = {}
    if token ~= "-" then headers["Authorization"] = "Bearer " .. token end
    if body ~= "" then headers["Content-Type"] = "application/json" else body = nil end
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
end

local at = 0

function request()
  at = at % #requests + 1
  return requests[at]
end
